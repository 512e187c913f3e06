"""Any timm backbone as a pyramid of feature maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import ConfigError, WeightsError, nearest


class Backbone(nn.Module):
    """A timm network that returns its feature maps at the strides asked for.

    Args:
        name: of the timm model.
        strides: px per cell of the maps to return, finest first; vision transformers have one stride only.
        weights: a safetensors file with the network's weights, "pretrained" for timm's own (downloaded), or nothing for
            random ones. The file may hold more than is used, such as a classifier.
        mean: of the colours the weights were trained with; without it, what timm says of the model.
        std: the same for the standard deviation.
        options: further arguments of ``timm.create_model``, such as ``pad_type: same``.

    Raises:
        ConfigError: for an unknown model or a stride that it does not have.
        WeightsError: for a file that is missing, damaged, or of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(f"Expected backbone to be a timm model but got {name!r}; {_similar(name)}.")
        pretrained = weights == "pretrained"
        self.network = timm.create_model(name, pretrained=pretrained, features_only=True, **(options or {}))
        info = self.network.feature_info
        levels: dict[int, int] = {stride: level for level, stride in enumerate(info.reduction())}
        missing = [stride for stride in strides if stride not in levels]
        if missing or not strides:
            raise ConfigError(f"Expected strides among those of {name}, {sorted(levels)}, but got {list(strides)}.")
        self.strides = tuple(strides)
        self.channels = tuple(info.channels()[levels[stride]] for stride in strides)
        self._levels = [levels[stride] for stride in strides]
        known = self.network.pretrained_cfg if hasattr(self.network, "pretrained_cfg") else {}
        for key, value in (
            ("mean", mean or known.get("mean", (0.5,) * 3)),
            ("std", std or known.get("std", (0.5,) * 3)),
        ):
            self.register_buffer(key, torch.tensor(list(value)).view(3, 1, 1))
        if weights is not None and not pretrained:
            load_weights(self.network, Path(weights), name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns feature maps (B, C, H / stride, W / stride) of ``images`` (B, 3, H, W) in [0, 1], as in ``strides``."""
        maps = self.network((images - self.mean) / self.std)
        return [maps[level] for level in self._levels]


def load_weights(network: nn.Module, file: Path, name: str) -> None:
    """Fills all of ``network`` from a safetensors file, or raises a :class:`WeightsError` and leaves it untouched."""
    if not file.is_file():
        raise WeightsError(f"Expected weights of {name} in {file} but there is no such file; check student.weights.")
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Expected whole safetensors in {file} but got: {error}; copy the file again.") from error
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in given]
    differing = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or differing:
        example = (missing + differing)[0]
        raise WeightsError(
            f"Expected weights of {name} in {file} but {len(missing)} tensors are missing and {len(differing)} have "
            f"another shape, such as {example}; choose the backbone that the file was made for."
        )
    network.load_state_dict({key: given[key] for key in wanted}, strict=False)


def _similar(name: str) -> str:
    return nearest(name, timm.list_models(f"*{name[:6]}*")[:8] or ["resnet18", "mobilenetv2_100", "convnext_atto"])
