"""A dictionary of bounded size."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

Value = TypeVar("Value")


class LRUCache(OrderedDict[Hashable, Value]):
    """A dictionary that forgets what was not used for longest.

    Args:
        capacity: how many values are kept.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = max(1, capacity)

    def __getitem__(self, name: Hashable) -> Value:
        self.move_to_end(name)
        return super().__getitem__(name)

    def __setitem__(self, name: Hashable, value: Value) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        if len(self) > self.capacity:
            self.popitem(last=False)
