"""Low-rank adapters (Hu et al., "LoRA", ICLR 2022) in a backbone, through peft."""

from collections.abc import Sequence

from torch import nn

from distill.core.errors import ConfigError


def add_adapters(
    network: nn.Module, rank: int = 8, alpha: float | None = None, targets: Sequence[str] | str = "all-linear"
) -> None:
    """Adds trainable adapters to a frozen network, in place.

    Args:
        network: whose layers are adapted.
        rank: of the adapters.
        alpha: their output is scaled by alpha / rank; without it, alpha is twice the rank.
        targets: ending, or endings, of the names of the linear and convolutional layers to adapt, such as ["qkv", "fc1"],
            or "all-linear" for every linear one.

    Raises:
        ConfigError: when peft is not installed, the rank is below 1, or the network has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # optional, and slow to import
    except ImportError as error:
        raise ConfigError(
            "Expected the package peft for student.lora but it is not installed; pip install 'distill[lora]'."
        ) from error
    if rank < 1:
        raise ConfigError(f"Expected student.lora.rank of at least 1 but got {rank}; 8 is usual.")
    named = [targets] if isinstance(targets, str) else list(targets)
    endings = linear_layers(network) if targets == "all-linear" else named
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=endings)
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        present = sorted({name.rpartition(".")[2] for name in linear_layers(network)})
        raise ConfigError(
            f"Expected student.lora.targets among the layers of the backbone but got {named}; its linear layers "
            f"are called {', '.join(present) or 'nothing: it has none'}."
        ) from error


def merge_adapters(network: nn.Module) -> None:
    """Adds the adapters' weights to those they adapt and removes the adapters, in place."""
    for name, module in list(network.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.get_base_layer())


def linear_layers(network: nn.Module) -> list[str]:
    """Returns the full names of the network's linear layers."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
