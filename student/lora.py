"""Low-rank adapters (Hu et al., "LoRA", ICLR 2022) in a backbone, through peft."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from distill.core.errors import ConfigError, nearest
from distill.core.numbers import is_number, is_whole

ALL_LINEAR = "all-linear"
"""Stands for the names of all linear layers."""


@dataclass(frozen=True)
class Lora:
    """Settings of low-rank adapters.

    Attributes:
        rank: of the adapters.
        alpha: their output is scaled by alpha / rank; without it, alpha is twice the rank.
        targets: ending, or endings, of the names of the linear and convolutional layers to adapt, such as ["qkv", "fc1"],
            or "all-linear" for every linear one.

    Raises:
        ConfigError: for a rank that is no whole number of at least 1, an alpha that is not positive, and targets that are no names.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Sequence[str] | str = ALL_LINEAR

    def __post_init__(self) -> None:
        if not is_whole(self.rank, 1):
            raise ConfigError(
                f"Expected student.lora.rank of at least 1, a whole number, but got {self.rank!r}; 8 is usual."
            )
        if self.alpha is not None and not (is_number(self.alpha) and 0 < self.alpha < math.inf):
            raise ConfigError(
                f"Expected student.lora.alpha as a positive number but got {self.alpha!r}; leave it out for twice the rank."
            )
        listed = self.targets if isinstance(self.targets, str | list | tuple) else []
        if not listed or not all(isinstance(name, str) and name for name in listed):
            raise ConfigError(
                f"Expected student.lora.targets as names of layers but got {self.targets!r}; such as [qkv, fc1], or {ALL_LINEAR}."
            )

    @classmethod
    def of(cls, given: Any) -> "Lora":
        """Returns the settings that a configuration gives.

        Raises:
            ConfigError: when it is no mapping, or holds other settings.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"Expected student.lora as a mapping of {', '.join(known)} but got {given!r:.80}; write {{rank: 8}}, or null for none."
            )
        unknown = [key for key in given if key not in known]
        if unknown:
            raise ConfigError(
                f"Expected settings of student.lora that are known but got {unknown[0]!r}; {nearest(str(unknown[0]), known)}."
            )
        return cls(**given)


def add_adapters(network: nn.Module, lora: Lora) -> None:
    """Adds trainable adapters to a frozen network, in place.

    Raises:
        ConfigError: when peft is not installed, a target names no layer, or one whose adapters could not be merged, or the rank
            exceeds that of all layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # optional, and slow to import
    except ImportError as error:
        raise ConfigError(
            "Expected the package peft for student.lora but it is not installed; pip install 'distill[lora]'."
        ) from error
    layers = _adapted_layers(network, lora.targets)
    for name, layer in layers.items():
        _check_merging(name, layer)
    widest = max(min(len(layer.weight), layer.weight[0].numel()) for layer in layers.values())
    if lora.rank > widest:
        raise ConfigError(
            f"Expected student.lora.rank of at most {widest}, that of the largest adapted layer, but got {lora.rank}; 8 is usual."
        )
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(layers)), network)


@contextmanager
def checked_use(network: nn.Module, lora: Lora) -> Iterator[None]:
    """Within it ``network`` describes an image; afterwards each target must name an adapted layer that was called.

    Some networks, such as BEiT and Swin v2, read the weight of a layer without calling it, so that its adapter has no effect.

    Raises:
        ConfigError: for a target of which no layer was called.
    """
    called: set[str] = set()
    adapted = {name: module for name, module in network.named_modules() if _has_adapter(module)}
    handles = [m.register_forward_hook(lambda *_, name=name: called.add(name)) for name, m in adapted.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for target in _names(lora.targets):
        if not any(target == ALL_LINEAR or _is_named(name, target) for name in called):
            raise ConfigError(
                f"Expected student.lora.targets of layers that the backbone calls but it only reads the weight of {target!r}, whose "
                f"adapters have no effect then, or leaves it out; of those adapted it calls {_last_names(called)}."
            )


def merge_adapters(network: nn.Module) -> None:
    """Adds the adapters' weights to those they adapt and removes the adapters, in place."""
    for name, module in list(network.named_modules()):
        if _has_adapter(module):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.get_base_layer())


def unmerged(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights of a network without adapters, or with merged ones, by their names in ``network``, which has adapters.

    The adapters keep the weights that they have, which at the start are without effect.

    Args:
        network: with adapters or without.
        tensors: the weights by name; weights of a network whose adapters are not merged stay as they are.
    """
    given = dict(tensors)
    for name, module in network.named_modules():
        if _has_adapter(module) and f"{name}.weight" in given:
            for key, own in module.state_dict(prefix=f"{name}.").items():
                merged = key.replace(f"{name}.base_layer.", f"{name}.")
                if merged == key:
                    given[key] = own
                elif merged in given:
                    given[key] = given.pop(merged)
    return given


def _has_adapter(module: nn.Module) -> Any:  # Any: mypy does not know the methods of peft's layers
    return hasattr(module, "base_layer") and hasattr(module, "merge")


def _adapted_layers(network: nn.Module, targets: Sequence[str] | str) -> dict[str, Any]:
    """Returns the linear and convolutional layers, by full name, that ``targets`` name.

    Raises:
        ConfigError: for a target that names none.
    """
    linear: dict[str, Any] = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    convolutions: dict[str, Any] = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    named, both = _names(targets), linear | convolutions
    found = [
        linear if name == ALL_LINEAR else {key: both[key] for key in both if _is_named(key, name)} for name in named
    ]
    for name, layers in zip(named, found, strict=True):
        if not layers:
            raise ConfigError(
                f"Expected student.lora.targets among the layers of the backbone but {name!r} names none; its linear layers are called "
                f"{_last_names(linear)}, its convolutions {_last_names(convolutions)}."
            )
    return {name: layer for layers in found for name, layer in layers.items()}


def _names(targets: Sequence[str] | str) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)


def _is_named(layer: str, target: str) -> bool:
    return f".{layer}".endswith(f".{target}")


def _check_merging(name: str, layer: nn.Module) -> None:
    """Raises a :class:`ConfigError` for a convolution whose weight is not just that of its adapter added."""
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or type(layer) is not nn.Conv2d):
        reason = f"has {layer.groups} groups" if layer.groups > 1 else f"is a {type(layer).__name__}"
        raise ConfigError(
            "Expected student.lora.targets of linear layers and plain convolutions, as adapters of others cannot be merged, but "
            f"{name} {reason}; leave it out of student.lora.targets."
        )


def _last_names(layers: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers})) or "nothing, as it has none"
