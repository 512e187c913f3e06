"""Features of several networks as one description of an image (Zhang et al., "A Tale of Two Features", NeurIPS 2023)."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.digest import state_digest
from distill.core.errors import ConfigError, DataError, nearest
from distill.core.geometry import resize_images
from distill.core.numbers import is_number
from distill.core.precision import in_single


class Describer(Protocol):
    """A network that describes images densely."""

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of ``images`` (B, 3, H, W) in [0, 1]."""
        ...


class FusedFeatures(nn.Module):
    """Joins the descriptors of several sources, each of length 1 times its weight.

    The cosine of two joined descriptors is the mean of the sources' cosines, weighted by the squares of the weights. Maps are
    enlarged bilinearly to the finest grid. Zhang et al. join Stable Diffusion and DINOv2 with equal weights; they reduce the
    former by a joint PCA of both images first, which is not done here.

    Args:
        sources: what describes images, by names of your choice: :class:`student.NearestNeighbour`,
            ``teacher.DiffusionFeatures``, or any object with ``describe``; None leaves an entry out.
        weights: of the sources, by name; 1 where none is named. None counts as not named.
        sizes: side in px that images are resized to for a source, by name; sources without one are given the images as they are.

    Raises:
        ConfigError: for no source, names that are not sources, or weights and sizes that are not positive.
    """

    def __init__(
        self,
        sources: Mapping[str, Describer | None] | None,
        weights: Mapping[str, float | None] | None = None,
        sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.sources: dict[str, Describer] = {name: s for name, s in (sources or {}).items() if s is not None}
        if sources is None or not self.sources:
            raise ConfigError("Expected at least one source of fused features but got none; name one in sources.")
        blind = [name for name, source in self.sources.items() if not callable(getattr(source, "describe", None))]
        if blind:
            raise ConfigError(
                f"Expected sources of fused features that describe images but {blind[0]} has no method describe; choose another."
            )
        told, sides = _checked("weights", weights, sources), _checked("sizes", sizes, sources)
        self.weights = {name: told.get(name, 1.0) for name in self.sources}
        self.sizes = {name: int(side) for name, side in sides.items() if name in self.sources}
        # Those that are modules are moved and counted with this one; the others see to their own weights.
        self.networks = nn.ModuleList(s for s in self.sources.values() if isinstance(s, nn.Module))
        self.eval().requires_grad_(False)

    @property
    def size(self) -> int | None:
        """Side of the images that it is best given, px: the largest in ``sizes``; None where none is named."""
        return max(self.sizes.values(), default=None)

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides a description, by field name; see :class:`distill.core.protocols.Fingerprinted`."""
        fields: dict[str, str] = {}
        for name, source in self.sources.items():
            told = source_fingerprint(source) | {"weight": str(self.weights[name])}
            told |= {"size": str(self.sizes[name])} if name in self.sizes else {}
            fields |= {f"{name}.{field}": value for field, value in told.items()}
        return fields

    def resamples(self, size: tuple[int, int]) -> bool:
        """Returns whether a source rounds images of ``size`` (H, W), px, see :meth:`student.backbone.Backbone.resamples`."""
        for name, source in self.sources.items():
            resamples, side = getattr(source, "resamples", None), self.sizes.get(name)
            if callable(resamples) and resamples(size if side is None else (side, side)):
                return True
        return False

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of ``images`` (B, 3, H, W) in [0, 1].

        Raises:
            DataError: when a source answers with another shape, or with NaN.
        """
        maps = []
        for name, source in self.sources.items():
            described = _checked_maps(source.describe(_resized(images, self.sizes.get(name))), len(images), name)
            maps.append(F.normalize(in_single(described).to(images.device), dim=1))
        grid = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        finer = [F.interpolate(m, grid, mode="bilinear", align_corners=False) for m in maps]
        weighted = [w * F.normalize(m, dim=1) for w, m in zip(self.weights.values(), finer, strict=True)]
        return F.normalize(torch.cat(weighted, dim=1), dim=1)


def source_fingerprint(source: Any) -> dict[str, str]:
    """Returns what decides the descriptions of ``source``: its own fingerprint, or its class and weights.

    Raises:
        ConfigError: for a source that has neither.
    """
    own = getattr(source, "fingerprint", None)
    if callable(own):
        return dict(own())
    if not isinstance(source, nn.Module):
        raise ConfigError(
            f"Expected a source of features with a fingerprint, or a torch.nn.Module, but got {type(source).__name__}; give it a "
            "method fingerprint() that returns what decides its answers."
        )
    return {"model": type(source).__name__, "weights": state_digest(source)}


def _checked_maps(maps: Any, count: int, name: str) -> Tensor:
    if not isinstance(maps, Tensor) or maps.ndim != 4 or len(maps) != count or 0 in maps.shape:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise DataError(
            f"Expected features ({count}, C, h, w) of {count} images from the source {name} but got {got}; correct its describe."
        )
    if not bool(torch.isfinite(maps).all()):
        raise DataError(
            f"Expected finite features from the source {name} but got NaN or infinity; check its weights and its precision."
        )
    return maps


def _resized(images: Tensor, size: int | None) -> Tensor:
    return images if size is None else resize_images(images, (size, size))


def _checked(what: str, given: Mapping[str, float | None] | None, sources: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers that are ``given``, without those that are None."""
    found = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in found.items():
        if name not in sources:
            raise ConfigError(f"Expected {what} of fused features by the names of sources; {nearest(name, sources)}.")
        if not is_number(value) or not 0 < value < float("inf"):
            raise ConfigError(
                f"Expected positive {what} of fused features but {name} has {value!r}; correct {what}.{name}."
            )
        if what == "sizes" and value != int(value):
            raise ConfigError(f"Expected sizes of fused features as whole px but {name} has {value!r}; round it.")
    return {name: float(value) for name, value in found.items()}
