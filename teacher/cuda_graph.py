"""Repeating a step on a GPU without launching its kernels one by one."""

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps taken as usual first, so that libraries have chosen their kernels and set their memory aside."""


def repeat(step: Callable[[], object], times: int, captured: bool) -> int:
    """Takes a step several times.

    Args:
        step: reads and writes the same tensors at every call, and copies nothing between host and device.
        times: how often.
        captured: whether the kernels that a step launches are captured once and replayed as one CUDA graph. Where that
            fails, the steps are taken as usual.

    Returns:
        How many of the steps were taken by calling ``step``.
    """
    if not captured or times <= WARM_UP + 1:
        return _call(step, times)
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(current)
    with torch.cuda.stream(other):
        _call(step, WARM_UP)
    current.wait_stream(other)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.warning("The steps of the optimisation cannot be captured and are taken one by one: %s", error)
        return WARM_UP + _call(step, times - WARM_UP)
    for _ in range(times - WARM_UP):
        graph.replay()
    return WARM_UP


def _call(step: Callable[[], object], times: int) -> int:
    for _ in range(times):
        step()
    return times
