"""Repeating a step on a GPU without launching its kernels one by one."""

import logging
import warnings
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps taken as usual first, so that libraries have chosen their kernels and set their memory aside."""


def repeat(step: Callable[[], object], times: int, captured: bool) -> None:
    """Takes a step several times.

    ``step`` is called fewer times than that where it is replayed, and once more for the capture, which takes no step.

    Args:
        step: reads and writes the same tensors at every call, and copies nothing between host and device.
        times: how often.
        captured: whether the kernels that a step launches are captured once and replayed as one CUDA graph. Where that
            fails, the steps are taken as usual. An optimiser among them has to be made with ``capturable=True``.
    """
    if not captured or times <= WARM_UP + 1:
        _call(step, times)
        return
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
        _call(step, times - WARM_UP)
        return
    for _ in range(times - WARM_UP):
        graph.replay()


def _call(step: Callable[[], object], times: int) -> None:
    with warnings.catch_warnings():
        # torch's optimisers say of every step that is not captured that it is not.
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        for _ in range(times):
            step()
