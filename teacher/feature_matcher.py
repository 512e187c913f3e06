"""Nearest neighbours among features of a frozen generative model: what all its kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import Strict
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_images, check_query
from distill.core.errors import WeightsError
from distill.core.geometry import image_size, sample_at
from distill.core.precision import without_autocast
from distill.core.readout import windowed_soft_argmax
from distill.core.tensor_cache import TensorCache
from distill.core.types import Matches, PairBatch
from teacher.adaptive_batch import AdaptiveBatch
from teacher.crop_sampling import generator
from teacher.frozen_model import settle_precision
from teacher.prompt_optimization import content_hashes
from teacher.settings import Amount, CheckedSettings, Count, Positive, Precision, Seed


class FeatureSettings(CheckedSettings):
    """Settings of features of a generative model, those that all its kinds share.

    Attributes:
        draws: draws of noise that are averaged. 0 for no noise and a single pass.
        temperature: divides the cosines before the softmax over cells, of whose window around the best cell the mean is taken.
        radius_cells: of that window.
        precision: "fp32", or "bf16" or "fp16" for weights and activations of the model.
        seed: of the noise; with the image's content it decides each draw.
        batch_size: draws that run together, at most. When memory runs out, the cache is emptied first, then it is halved.
        feature_cache_size: bound on the memory of kept features of images, GiB, on the model's device.
    """

    draws: Annotated[int, Strict(), Ge(0)] = 8
    temperature: Positive = 0.05
    radius_cells: Positive = 2.0
    precision: Precision = "fp32"
    seed: Seed = 0
    batch_size: Count = 8
    feature_cache_size: Amount = 1.0

    def decisive(self) -> dict[str, str]:
        """Returns the settings that decide an answer, by name; the seed does where noise is drawn."""
        without_effect = {"batch_size", "feature_cache_size"} | (set() if self.draws else {"seed"})
        return {name: str(value) for name, value in self.model_dump(exclude=without_effect).items()}


class FeatureMatcher(ABC):
    """Compares descriptors of images by their cosine.

    What is random about an image depends on the seed and its content only.

    Args:
        device: of the model.
        settings: of its features; a precision that the device does not have is replaced.

    Attributes:
        passes: images and draws of noise run so far.
    """

    settings: FeatureSettings

    def __init__(self, device: torch.device, settings: FeatureSettings) -> None:
        self.device = device
        self.settings = settings.model_copy(update={"precision": settle_precision(settings.precision, device)})
        self._cache = TensorCache(settings.feature_cache_size)
        self._batch = AdaptiveBatch(settings.batch_size, (self._cache,))
        self.passes = 0

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        The heatmap is the distribution whose mean in a window is the answer: a softmax over the cells of cosines divided by
        the temperature. Cosines as they are hardly differ, and a student of their heatmap would learn an even spread. The
        confidence is the best cosine, as (1 + cos) / 2.

        Raises:
            DataError: for images or points that are not as the contract says.
            WeightsError: when the model's features are not finite.
        """
        check_query(src_img, trg_img, src_kps)
        return self._match(src_img, trg_img, src_kps, *map(content_hashes, (src_img, trg_img)))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``, which name their images' content."""
        check_images(pairs.src_img, "src_img")
        check_images(pairs.trg_img, "trg_img")
        return self._match(pairs.src_img, pairs.trg_img, pairs.src_kps, pairs.src_hash, pairs.trg_hash)

    def describe(self, images: Tensor, keys: Sequence[str] | None = None) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), on the model's device.

        Args:
            images: (B, 3, H, W) in [0, 1].
            keys: names of their content; without them, hashes.
        """
        keys = content_hashes(images) if keys is None else keys
        return torch.stack([self._described(image, key) for image, key in zip(images, keys, strict=True)])

    @torch.no_grad()
    def _match(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, src_keys: list[str], trg_keys: list[str]
    ) -> Matches:
        points, size = src_kps.to(self.device, torch.float32), image_size(trg_img)
        with without_autocast(points):
            src_map, trg_map = self.describe(src_img, src_keys), self.describe(trg_img, trg_keys)
            queries = F.normalize(sample_at(src_map, points, image_size(src_img)), dim=-1)
            cosines = torch.einsum("bnc,bchw->bnhw", queries, trg_map)
            found = windowed_soft_argmax(cosines, size, self.settings.temperature, self.settings.radius_cells)
            heatmap = (cosines / self.settings.temperature).flatten(2).softmax(-1).view_as(cosines)
        confidence = ((1 + cosines.amax((-2, -1))) / 2).clamp(0, 1)
        return Matches(*(values.to(src_kps.device) for values in (found, confidence, heatmap)))

    @torch.no_grad()
    def _described(self, image: Tensor, key: str) -> Tensor:
        if key in self._cache:
            return self._cache[key]
        with without_autocast(
            torch.empty(0, device=self.device)
        ):  # an answer does not depend on the caller's precision
            descriptors = self._compute(image, key)
        if not bool(torch.isfinite(descriptors).all()):
            raise WeightsError(
                f"Expected finite features of the model in precision {self.settings.precision} but got NaN or infinity; fp16 holds no "
                "large values: take bf16 or fp32; if these give NaN too, choose other weights."
            )
        self._cache[key] = descriptors
        return descriptors

    def _noise(self, latent: Tensor, key: str) -> Tensor:
        """Returns each draw's noise (draws, C, h, w) for the latent (1, C, h, w) of the image of content ``key``."""
        generators = [generator(self.settings.seed, key, draw) for draw in range(self.settings.draws)]
        return torch.cat([torch.randn(latent.shape, generator=random) for random in generators]).to(latent)

    @abstractmethod
    def _compute(self, image: Tensor, key: str) -> Tensor:
        """Returns descriptors of length 1, (C, h, w), of ``image`` (3, H, W) in [0, 1]."""


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Returns maps (C', h', w') of several layers as one, (C, h, w), of length 1 at each cell, on the finest grid.

    Each is brought to length 1, enlarged bilinearly, and brought to length 1 again, so that all layers weigh the same.
    """
    if len(maps) == 1:
        return F.normalize(maps[0].float(), dim=0)
    side = max(feature_map.shape[-1] for feature_map in maps)
    of_layers = []
    for feature_map in maps:
        normalised = F.normalize(feature_map.float(), dim=0)
        finer = F.interpolate(normalised[None], (side, side), mode="bilinear", align_corners=False)[0]
        of_layers.append(F.normalize(finer, dim=0))
    return F.normalize(torch.cat(of_layers), dim=0)
