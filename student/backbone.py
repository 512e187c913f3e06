"""A timm network as a pyramid of feature maps."""

import difflib
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn

from distill.core.errors import ConfigError, WeightsError, in_one_line, nearest
from distill.core.geometry import image_size, resize_images
from distill.core.unfilled import weights_follow
from student.arguments import LOWEST, check_colours, check_options, check_scales, check_whole
from student.debias import BLANK_CELLS, PositionalDebias
from student.lora import Lora, add_adapters, checked_use, merge_adapters
from student.weights import load_weights

Tuning = Literal["full", "fixed_norm", "frozen"]


class Backbone(nn.Module):
    """A timm network that returns its feature maps at the requested strides, without prefix tokens.

    The network is used through timm's feature contract, ``feature_info`` and ``forward_intermediates``, which
    convolutional networks and transformers share. Layers behind the last map that is read are removed.

    An image whose sides the coarsest stride that is read does not divide is resized to the nearest whole number of such cells
    before the network sees it. So each cell covers an equal share of the image, as
    :func:`distill.core.geometry.cell_centres` takes it to. Only a plain vision transformer refuses an image, at scale 1.

    Args:
        name: of the timm model.
        strides: px per cell of the maps to return, finest first.
        weights: a safetensors file with the network's weights, "pretrained" for timm's own (downloaded), or nothing for
            random ones. The file may hold more than is used, such as a classifier.
        mean: of each colour channel, in [0, 1], that the weights were trained with; without it, that of
            ``timm.data.resolve_data_config``.
        std: the same for the standard deviation.
        options: further arguments of ``timm.create_model``, such as ``pad_type: same``.
        layers: of a network whose maps all have one stride (a plain vision transformer): indices of the blocks to read,
            -1 being the last; without it, the last one. One map is returned for each.
        tuning: "full" trains all weights; "fixed_norm" trains them but keeps the running statistics of batch
            normalisation, which small batches would spoil; "frozen" trains nothing.
        lora: rank, alpha and targets of low-rank adapters, see :class:`student.lora.Lora`; everything else in the
            network is frozen then.
        debias: number of directions that tell the position in the image and are projected out of the features of a
            vision transformer, see :class:`student.debias.PositionalDebias`; 0 for none.
        scales: sizes at which an image is described, as fractions of its own. Each adds a map for every stride or block. A
            network that was trained on small images recognises parts better in a smaller image, and places them better in
            a larger one.

    Raises:
        ConfigError: for an unknown model, one without the feature contract, a stride or block that it does not have, strides
            that do not ascend, a mean or standard deviation that cannot be one, an unknown tuning, or scales outside (0, 1].
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
        layers: Sequence[int] | None = None,
        tuning: Tuning = "full",
        lora: dict[str, Any] | None = None,
        debias: int = 0,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        check_scales(scales)
        check_options(options)
        check_whole("strides", strides)
        check_whole("layers", [] if layers is None else layers)
        adapters = None if lora is None else Lora.of(lora)
        _check_name(name)
        if tuning not in get_args(Tuning):
            raise ConfigError(
                f"Expected student.tuning to be known but got {tuning!r}; {nearest(tuning, get_args(Tuning))}."
            )
        for key, given in (("mean", mean), ("std", std)):
            if given is not None:
                check_colours(key, given)
        self.name, self.tuning, self.options = name, tuning, dict(options or {})
        self.network = _create(name, weights == "pretrained", self.options)
        if weights not in (None, "pretrained"):
            load_weights(self.network, Path(str(weights)), name)
        info = _feature_info(self.network, name)
        self.levels = _choose_levels(name, [level["reduction"] for level in info], strides, layers)
        channels = [info[level]["num_chs"] for level in self.levels]
        self.patch = info[0]["reduction"] if len({level["reduction"] for level in info}) == 1 else 1
        self._reductions = [info[level]["reduction"] for level in self.levels]  # px per cell, at scale 1
        self.coarsest = max(self._reductions)
        strides_of = [reduction / scale for scale in scales for reduction in self._reductions]
        self.scales, self._order = tuple(scales), list(range(len(strides_of)))
        if len(scales) > 1:  # at one scale the order is that of strides, which files of students rely on
            self._order.sort(key=strides_of.__getitem__)
        self.strides = tuple(strides_of[place] for place in self._order)
        self.channels = tuple((channels * len(scales))[place] for place in self._order)
        if hasattr(self.network, "prune_intermediate_layers"):
            self.network.prune_intermediate_layers(sorted(set(self.levels)), prune_norm=False, prune_head=True)
        preprocessing = timm.data.resolve_data_config(model=self.network)
        for key, given in (("mean", mean), ("std", std)):
            chosen = preprocessing[key] if given is None else given
            self.register_buffer(key, torch.tensor([float(value) for value in chosen]).view(3, 1, 1))
        self.register_load_state_dict_post_hook(_check_loaded_colours)
        self.debias: nn.ModuleList | None = None
        if debias:
            self._debias(debias, channels)
        self.adapters = adapters
        self.frozen = tuning == "frozen" or adapters is not None
        if self.frozen:
            self.network.requires_grad_(False)
        if adapters is not None:
            add_adapters(self.network, adapters)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns feature maps (B, C, h, w) of ``images`` (B, 3, H, W) in [0, 1], one for each of ``strides``.

        h and w are H / stride and W / stride, H and W being rounded to whole cells of the coarsest stride at each scale.

        Raises:
            ConfigError: when the network's patches do not divide the images, or its maps have other strides than timm says.
        """
        self.check_size(images.shape[-2], images.shape[-1])
        images = images.to(self.mean.dtype)
        maps = [level for scale in self.scales for level in self._maps(self._scaled(images, scale))]
        return [maps[place] for place in self._order]

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        """Returns images (B, 3, H, W) at a fraction of their sides, to the nearest whole cell."""
        return resize_images(images, whole_cells(image_size(images), scale, self.coarsest))

    def resamples(self, size: tuple[int, int]) -> bool:
        """Returns whether a network of several strides sees images of ``size`` (H, W), px, rounded to whole cells at some scale."""
        scaled = [whole_cells(size, scale, 1) for scale in self.scales]
        return self.patch == 1 and any(side % self.coarsest for sides in scaled for side in sides)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of ``levels`` of images at one scale."""
        wanted = sorted(set(self.levels))
        # Convolutions keep the memory layout of their input; channels last is a fifth faster on a CPU.
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = self.network.forward_intermediates(
            images,
            indices=wanted,
            norm=self.patch > 1,  # features of transformers are read after their last normalisation
            output_fmt="NCHW",
            intermediates_only=True,
        )
        chosen = [maps[wanted.index(level)] for level in self.levels]
        for stride, feature_map in zip(self._reductions, chosen, strict=True):
            self._check_cells(stride, image_size(feature_map), image_size(images))
        if self.debias is None:
            return chosen
        return [debias(feature_map) for debias, feature_map in zip(self.debias, chosen, strict=True)]

    def _debias(self, components: int, channels: Sequence[int]) -> None:
        """Finds the directions that tell the position from an image of the mean colour.

        Raises:
            ConfigError: for a network that is no transformer, and for a number of directions that there is not.
        """
        if self.patch == 1:
            raise ConfigError(
                f"Expected debias=0 for {self.name}, which is no plain vision transformer, but got {components}."
            )
        debiases = [PositionalDebias(count, components) for count in channels]
        if not (self.mean.is_meta or weights_follow()):  # else the directions follow from a file
            side = BLANK_CELLS * self.patch
            blank, training = self.mean.expand(1, 3, side, side), self.network.training
            self.network.eval()
            with torch.no_grad():
                for debias, feature_map in zip(debiases, self._maps(blank.to(self.mean.dtype)), strict=True):
                    debias.fit(feature_map)
            self.network.train(training)
        self.debias = nn.ModuleList(debiases)

    def check_size(self, height: int, width: int) -> None:
        """Raises a :class:`ConfigError` unless the network's patches divide an image of that size, px."""
        if height % self.patch or width % self.patch:
            below = max(1, min(height, width) // self.patch) * self.patch
            raise ConfigError(
                f"Expected images whose sides {self.patch}, the patch of {self.name}, divides but got {height} x {width} "
                f"px; set data.size={below} or data.size={below + self.patch}."
            )

    def _check_cells(self, stride: int, cells: tuple[int, int], size: tuple[int, int]) -> None:
        """Raises a :class:`ConfigError` unless a map has one cell for each ``stride`` px of an image.

        Without padding, as in Inception, the cells at the border are missing and the others do not lie where they are read.

        Args:
            stride: px per cell.
            cells: (h, w) of the map.
            size: (H, W) of the image, px.
        """
        if (cells[0] * stride, cells[1] * stride) != size:
            raise ConfigError(
                f"Expected maps of {self.name} whose cells cover the image, {stride} px each as timm says, but got {cells[0]} x {cells[1]} "
                f"cells of {size[0]} x {size[1]} px; choose other strides, or another backbone."
            )

    @torch.no_grad()
    def try_size(self, size: int) -> None:
        """Computes the maps of one black image of ``size`` x ``size`` px, to find out whether the network can.

        Raises:
            ConfigError: when the network takes other sizes only, gives other channels than timm announces, or leaves adapters out.
        """
        self.check_size(size, size)
        training, image = self.training, torch.zeros(1, 3, size, size, device=self.mean.device)
        try:
            with nullcontext() if self.adapters is None else checked_use(self.network, self.adapters):
                maps = self.eval()(image)
        except (AssertionError, RuntimeError, ValueError) as error:  # timm's ways to say that a size does not fit
            reason = in_one_line(error, 120)
            raise ConfigError(
                f"Expected a backbone for images of {size} x {size} px but {self.name} takes none of this size ({reason}); "
                f"set {self._other_size(size)}."
            ) from error
        finally:
            self.train(training)
        channels = tuple(feature_map.shape[1] for feature_map in maps)
        if channels != self.channels:
            raise ConfigError(
                f"Expected {self.name} to give {_listed(self.channels)} channels, as timm says, but got "
                f"{_listed(channels)}; choose another backbone."
            )

    def _other_size(self, size: int) -> str:
        """Returns the settings with which a network of one image size works."""
        native = (getattr(self.network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
        settings = [f"data.size={native}"] if native != size else []
        if _takes(type(self.network), "img_size"):
            settings.append(f"student.options={{img_size: {size}}}")
        return ", or ".join([*settings, "student.backbone=<another>"])

    def fix_size(self, size: int) -> None:
        """Fixes the image size to ``size`` px, so that an exported graph does not resample position embeddings.

        With several scales the network sees several sizes, so none is fixed and the graph resamples them.
        """
        if len(self.scales) > 1:
            return
        absolute = getattr(self.network, "pos_embed", None) is not None and hasattr(self.network, "set_input_size")
        if self.patch > 1 and absolute and getattr(self.network, "dynamic_img_size", False):
            self.network.set_input_size(img_size=whole_cells((size, size), self.scales[0], self.patch))
            self.network.dynamic_img_size = self.network.patch_embed.dynamic_img_pad = False
            # With a fixed size the patches come as a sequence, as if the network had been built for it.
            self.network.patch_embed.flatten, self.network.patch_embed.output_fmt = True, None

    def merge_adapters(self) -> None:
        """Adds low-rank adapters, if there are any, to the weights that they adapt."""
        self.adapters = None
        merge_adapters(self.network)

    def train(self, mode: bool = True) -> "Backbone":
        """Switches between training and evaluation mode; what is frozen, and layers that ``tuning`` fixes, stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        if self.tuning == "fixed_norm":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def _check_name(name: Any) -> None:
    """Raises a :class:`ConfigError` unless timm has the model; None gets timm's own error, which becomes that of a missing value."""
    if not isinstance(name, str | None) or not timm.is_model(name):
        raise ConfigError(f"Expected backbone to be a timm model but got {name!r:.80}; {_similar(str(name))}.")


def whole_cells(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """Returns (H, W) of an image at a fraction of its sides, each the nearest multiple of ``stride``, and at least one, px."""
    height, width = (max(1, int(int(side) * scale / stride + 0.5)) * stride for side in size)
    return height, width


def _check_loaded_colours(backbone: nn.Module, _: Any) -> None:
    """Checks the normalisation that came with loaded weights, see :func:`check_colours`."""
    for key in LOWEST:
        values: Tensor = getattr(backbone, key)
        if not values.is_meta:
            try:
                check_colours(key, [round(value, 6) for value in values.flatten().tolist()])
            except ConfigError as error:
                raise WeightsError(f"Expected weights that can be used but {key} among them cannot: {error}") from error


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """Returns timm's network without its classifier.

    Raises:
        ConfigError: when it does not take the options.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **{**_free_size(name), **options})
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError) as error:
        if not options:
            raise
        reason = in_one_line(error, 160)
        raise ConfigError(
            f"Expected options that {name} takes but got {options}: {reason}; correct student.options, or leave it out."
        ) from error


def _free_size(name: str) -> dict[str, bool]:
    """Returns the option that lets a transformer take images of any size, if the network has it."""
    with torch.device("meta"):
        plain = timm.create_model(name)
    return {"dynamic_img_size": True} if _takes(type(plain), "dynamic_img_size") else {}


def _takes(kind: type, argument: str) -> bool:
    """Returns whether a class takes an argument, itself or by handing it on to the class that it extends."""
    parameters = inspect.signature(kind).parameters
    if argument in parameters:
        return True
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return hands_on and kind.__base__ is not None and _takes(kind.__base__, argument)


def _feature_info(network: nn.Module, name: str) -> list[dict[str, Any]]:
    """Returns timm's description of a network's feature maps, "num_chs" and "reduction" of each."""
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"Expected a backbone with intermediate feature maps but {name} has no forward_intermediates in this version of "
            "timm; choose another, such as resnet18, convnext_atto or vit_small_patch14_dinov2."
        )
    info: Any = network.feature_info
    return list(info if isinstance(info, list) else info.info)


def _choose_levels(
    name: str, reductions: list[int], strides: Sequence[int], layers: Sequence[int] | None
) -> tuple[int, ...]:
    """Returns the indices of the feature maps for ``strides``, or for ``layers`` of a transformer."""
    if not strides or not set(strides) <= set(reductions):
        known = sorted(set(reductions))
        raise ConfigError(f"Expected strides among those of {name}, {known}, but got {list(strides)}; correct strides.")
    uniform = len(set(reductions)) == 1
    if not uniform and layers is not None:
        raise ConfigError(
            f"Expected layers only for a backbone of one stride but {name} has {sorted(set(reductions))}; use strides."
        )
    if not uniform:
        if list(strides) != sorted(strides):
            raise ConfigError(
                f"Expected strides of {name} from the finest on, {sorted(strides)}, but got {list(strides)}; put them in this order."
            )
        last = {stride: level for level, stride in enumerate(reductions)}
        return tuple(last[stride] for stride in strides)
    count = len(reductions)
    chosen = [-1] if layers is None else list(layers)
    if not chosen or not all(-count <= layer < count for layer in chosen):
        raise ConfigError(
            f"Expected layers of {name} between {-count} and {count - 1} but got {chosen}; correct layers."
        )
    return tuple(layer % count for layer in chosen)


def _similar(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=5)
    return nearest(name, close or ["resnet18", "mobilenetv2_100", "convnext_atto"])
