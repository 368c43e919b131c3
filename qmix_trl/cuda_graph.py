"""CUDA graphs: one launch on a GPU instead of thousands."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from qmix_trl.errors import one_line

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


def captured(
    function: Callable[[], Result], generators: Iterable[torch.Generator] = ()
) -> tuple[Result, Callable[[], None]]:
    """Capture a function as a CUDA graph; return its static outputs and a function to replay it.

    The caller has called the function before (``warmed_up``). Capturing computes nothing: each
    replay computes the outputs, in place, from the tensors that the function read. Draws of the
    generators go on from replay to replay, with the numbers of eager calls.

    Args:
        function: computes on the current device, and never waits for it.
        generators: of that device, that the function draws from; torch's default one needs no
            mention.

    Raises:
        OutOfMemoryError: of torch, if the device has no room for the graph.
        RuntimeError: if the function does anything that a graph cannot hold.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    for generator in generators:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:
        # Where the end of the capture raises, torch leaves the process on the capture's stream,
        # and the function's own error is the context.
        torch.cuda.set_stream(stream)
        cause = error.__context__ or error
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise RuntimeError(one_line(cause)) from error
    return result, graph.replay
