"""Bounds on what it takes to build the network that a file describes.

A description is short, and options such as ``depth``, window sizes, and lists multiply layers and buffers. So the network is
first planned, without any memory, within bounds that depend on the tensors of the file. Then it is built with parameters that have no
values yet. An operating system gives memory only to what is written, so layers that are left out in the end take none.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from distill.core.errors import WeightsError
from distill.core.unfilled import weights_following

LARGEST_PLAN = (80_000, 20)
"""Calls of torch that planning a student may take, of itself and for each tensor of its file; timm's largest take 66 000."""
SPARE = 512 << 20
"""Bytes by which a plan's buffers together, or one of its tensors, may exceed the tensors of the file, which may hold few of the layers.

Of timm's networks a regnety_2560 has the largest tensor, of 416 MiB, and a beit_large of 512 px the largest buffers, of 192 MiB. These
count twice, as a second network is made to find out what options it takes.
"""
FILLS = ("uniform_", "normal_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_", "copy_")
"""In-place methods by which weights are initialised, besides the functions of ``torch.nn.init``."""


@contextmanager
def planned(tensors: Mapping[str, Tensor], path: str | Path) -> Iterator[None]:
    """Within it modules have no memory, and building them is bounded by :data:`LARGEST_PLAN` and :data:`SPARE`.

    Raises:
        WeightsError: when a bound is passed.
    """
    planning = _Planning(tensors, path)
    with weights_following(), torch.device("meta"), planning, _registered("buffer", planning.add_buffer):
        yield


@contextmanager
def unfilled() -> Iterator[None]:
    """Within it parameters of modules are not initialised; buffers are, as many are in no file."""
    with weights_following(), _SkippedFills(), _registered("parameter", _untouched):
        yield


class _SkippedFills(TorchFunctionMode):
    """Writes nothing to parameters, and to no tensors without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return torch.empty_like(target)  # what is written to it is gone
        fills = getattr(func, "__name__", None) in FILLS or getattr(func, "__module__", None) == nn.init.__name__
        if fills and isinstance(target, Tensor) and (isinstance(target, nn.Parameter) or target.is_meta):
            return target
        return func(*args, **kwargs)


class _Planning(_SkippedFills):
    """Bounds the calls of torch, the size of what they return, and of all buffers; see :func:`planned`."""

    def __init__(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        super().__init__()
        alone, each = LARGEST_PLAN
        self.tensors, self.path, self.left = len(tensors), path, alone + each * len(tensors)
        self.given, self.buffers = sum(value.nbytes for value in tensors.values()), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        # Only where a layer is made: an error at the end of a no_grad would leave gradients switched off.
        if self.left < 0 and func is torch.empty:
            raise WeightsError(
                f"Expected {self.path} to describe a student of about the {self.tensors} tensors that it holds but it describes one of "
                "many more; correct its options, its lists or upsample, or give the student.safetensors of a fit."
            )
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self.check_bytes(result.nbytes)
        return result

    def add_buffer(self, buffer: Tensor) -> None:
        """Counts a buffer that a module registers, also one that is in no file, or whose module is left out later."""
        self.buffers += buffer.nbytes
        self.check_bytes(self.buffers)

    def check_bytes(self, wanted: int) -> None:
        """Raises a :class:`WeightsError` for more bytes than the file's and :data:`SPARE`."""
        if wanted > self.given + SPARE:
            raise WeightsError(
                f"Expected {self.path} to describe a student that takes little more than the {self.given / 2**20:.1f} MiB of its tensors "
                f"but it takes {wanted >> 20} MiB or more; correct its options or width, or give the student.safetensors of a fit."
            )


def _untouched(parameter: Tensor) -> Tensor:
    """Returns a parameter of the same shape to which nothing was written."""
    return nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)


class _Hooks(threading.local):
    """What this thread does with each tensor that a module registers, if anything; what it returns is registered instead."""

    parameter: Callable[[Tensor], Tensor | None] | None = None
    buffer: Callable[[Tensor], Tensor | None] | None = None


_hooks = _Hooks()


def _on_parameter(module: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    return _hooks.parameter(tensor) if _hooks.parameter is not None and tensor is not None else None


def _on_buffer(module: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    return _hooks.buffer(tensor) if _hooks.buffer is not None and tensor is not None else None


# Once and for all: torch goes through its hooks of all threads while a module registers, and they must not change meanwhile.
register_module_parameter_registration_hook(_on_parameter)  # type: ignore[arg-type]  # by its documentation it may return a tensor
register_module_buffer_registration_hook(_on_buffer)  # type: ignore[arg-type]


@contextmanager
def _registered(kind: str, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls ``hook`` with each tensor of a ``kind``, "parameter" or "buffer", that a module of this thread registers."""
    before = getattr(_hooks, kind)
    setattr(_hooks, kind, hook)
    try:
        yield
    finally:
        setattr(_hooks, kind, before)
