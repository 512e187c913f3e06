"""A cache of tensors that is bounded by their bytes."""

from collections.abc import Hashable
from typing import Any

from cachetools import LRUCache
from torch import Tensor

GIB = 2**30


class TensorCache(LRUCache[Hashable, Any]):
    """A dictionary bounded by the bytes of the tensors in its values. The least recently used are dropped.

    A value that is larger than the bound is not kept.

    Args:
        size: bound, GiB; 0 keeps nothing.
    """

    def __init__(self, size: float) -> None:
        super().__init__(maxsize=size * GIB, getsizeof=tensor_bytes)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        if tensor_bytes(value) <= self.maxsize:
            super().__setitem__(key, value)


def tensor_bytes(value: Any) -> int:
    """Returns the bytes of a tensor, or of all tensors in a nested sequence."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0
