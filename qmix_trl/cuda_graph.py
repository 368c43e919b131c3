"""Work on a GPU as one CUDA graph: a launch instead of thousands."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def warmed_up(function: Callable[[], Result]) -> Result:
    """Call a function aside, so that what is set up at a first call is no part of a graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        result = function()
    torch.cuda.current_stream().wait_stream(aside)
    return result


def captured(function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    """Return where a function puts what it gives, and what computes it, from the same places.

    The function was called before (``warmed_up``); it is not computed now.

    Raises:
        RuntimeError: if it does anything that no graph can hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay
