"""Single precision for coordinates and geometry, whatever autocast does, and double precision where a device has it.

Under ``torch.autocast`` products of matrices are computed in half precision. A coordinate of 427 px becomes 428 px in
bfloat16. Networks may be computed so; grids, warps and the read-out of a heatmap may not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SINGLE_ONLY = ("mps",)
"""Types of devices that have no float64."""


def in_double(tensor: Tensor) -> Tensor:
    """Returns ``tensor``, of any shape, as float64; as float32 on a device that has none."""
    return tensor.to(torch.float32 if tensor.device.type in SINGLE_ONLY else torch.float64)


def in_single_where_needed(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns ``move``, which brings a tensor to a device, for tensors of float64 as well: in float32 where it refuses them.

    MPS refuses float64 by a ``TypeError``.
    """

    def moved(tensor: Tensor) -> Tensor:
        """Returns the tensor where ``move`` brings it."""
        try:
            return move(tensor)
        except TypeError:
            if tensor.dtype != torch.float64:
                raise
            return move(tensor.float())

    return moved


def in_single(tensor: Tensor) -> Tensor:
    """Returns ``tensor``, of any shape, as float32 if it holds float16, bfloat16 or whole numbers, else unchanged."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


@contextmanager
def without_autocast(like: Tensor) -> Iterator[None]:
    """Disables autocast inside the context, for the device of ``like``. Tensors keep their dtype."""
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            yield
    else:
        yield
