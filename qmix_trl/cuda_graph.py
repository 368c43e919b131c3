"""CUDA graphs: one launch on a GPU instead of thousands."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def warmed_up(function: Callable[[], Result]) -> Result:
    """Return the result of a function's first call, which is made outside of any graph.

    First calls allocate and compile, which cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def captured(function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    """Capture a function as a CUDA graph; return its static outputs and a function to replay it.

    The caller has called the function before (``warmed_up``). Capturing computes nothing: each
    replay computes the outputs, in place, from the tensors that the function read.

    Raises:
        RuntimeError: if the function does anything that a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay
