"""Image pairs of the procedural world, with exact keypoints."""

from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, nearest
from distill.core.types import PairBatch
from distill.data.datasets.shapes.categories import CATEGORIES
from distill.data.datasets.shapes.images import SPLITS
from distill.data.datasets.shapes.render import render
from distill.data.datasets.shapes.scene import Scene, find_difficulty, sample_scene
from distill.data.pair_sampling import sample_pairs
from distill.data.pairs import AnnotatedImage, ImageView, Threshold, make_pair

WORLD_VERSION = 2
"""Raised whenever a change of the code changes a picture, so that old labels are refused."""

VISIBILITY_SIZE = 128
"""Side, in px, of the rendering that says which keypoints are visible and whether an object is occluded."""

SURFACE = 0.06  # half image sides; keypoints sit on or just below the surface


class ShapesPairs(Dataset[PairBatch]):
    """Same-category pairs of rendered objects.

    Every image serves in several pairs, as in SPair-71k, so that a prompt which was optimised for a source point is used again.

    Args:
        split: "train", "val" or "test"; no scene is in two of them.
        n_pairs: how many pairs.
        seed: of the world and of the pairing.
        size: side of the images, px.
        difficulty: "easy", "medium", "colourful" or "hard".
        pairs_per_image: how many targets a source image has.

    Raises:
        ConfigError: for an unknown split or difficulty, no number of pairs, or a size below 16.
    """

    name = "shapes"
    threshold: Threshold = "bbox"

    def __init__(
        self,
        split: str,
        n_pairs: int,
        seed: int = 0,
        size: int = 128,
        difficulty: str = "medium",
        pairs_per_image: int = 4,
    ) -> None:
        if split not in ("train", "val", "test"):
            raise ConfigError(
                f"Expected data.split to name a split but got {split!r}; {nearest(split, ('train', 'val', 'test'))}."
            )
        if n_pairs is None or n_pairs < 1:
            raise ConfigError(
                f"Expected data.n_pairs of at least 1 but got {n_pairs}; the world of shapes has no last pair."
            )
        if size < 16:
            raise ConfigError(f"Expected data.size of at least 16 px but got {size}.")
        find_difficulty(difficulty)
        self.split, self.seed, self.size, self.difficulty = split, seed, size, difficulty
        names = list(CATEGORIES)
        n_images = len(names) * max(pairs_per_image + 1, ceil(n_pairs / pairs_per_image / len(names)))
        self.pairs = sample_pairs([names[i % len(names)] for i in range(n_images)], n_pairs, seed, pairs_per_image)
        self._make_caches()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the caches behind, for processes that share no memory."""
        return {name: value for name, value in vars(self).items() if name not in ("scene", "image", "view")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def _make_caches(self) -> None:
        self.scene = lru_cache(maxsize=4096)(self._scene)
        self.image = lru_cache(maxsize=4096)(self._image)
        self.view = lru_cache(maxsize=32)(self._view)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        source, target = self.pairs[index]
        (src, src_occluded), (trg, trg_occluded) = self.image(source), self.image(target)
        flags = variation(self.scene(source), self.scene(target), src_occluded, trg_occluded)
        return make_pair(src, trg, self.threshold, flags)

    def views(self, index: int, size: int) -> tuple[ImageView, ImageView]:
        """Returns source and target of a pair rendered at ``size`` px a side."""
        source, target = self.pairs[index]
        return self.view(source, size), self.view(target, size)

    def _view(self, number: int, size: int) -> ImageView:
        image = self.image(number)[0].image if size == self.size else render([self.scene(number)], size).image[0]
        return ImageView(image, f"{self._name(number)}@{size}")

    def _name(self, number: int) -> str:
        """Returns what a scene is known by, at any size."""
        return f"shapes-{WORLD_VERSION}/seed{self.seed}/{self.difficulty}/{self.split}/{number:06d}"

    def _scene(self, number: int) -> Scene:
        return sample_scene(self.seed, SPLITS[self.split].start + number, self.difficulty)

    def _image(self, number: int) -> tuple[AnnotatedImage, bool]:
        scene, size = self.scene(number), self.size
        rendering = render([scene], size)
        # Which points are visible does not depend on the size: labels at one size serve all others.
        depth = rendering.depth if size == VISIBILITY_SIZE else render([scene], VISIBILITY_SIZE).depth
        points = torch.as_tensor((scene.keypoints[:, :2] + 1) * size / 2)
        bbox = torch.as_tensor((scene.bbox + 1) * size / 2)
        name = f"{self.difficulty}/{self.split}/{number:06d}"
        annotated = AnnotatedImage(
            image=rendering.image[0],
            keypoints=points.float(),
            visible=visible_keypoints(scene, depth[0]),
            bbox=bbox.float(),
            original_size=(size, size),
            category=scene.category,
            id=name,
            hash=f"{self._name(number)}@{size}",
            original_hash=self._name(number),
        )
        return annotated, bool(_occluded(scene, VISIBILITY_SIZE))


def visible_keypoints(scene: Scene, depth: Tensor) -> Tensor:
    """Returns (K,) bool: which keypoints lie in the image with nothing in front of them.

    Args:
        scene: with K keypoints.
        depth: (S, S) what was rendered.
    """
    size = depth.shape[-1]
    pixel = np.floor((scene.keypoints[:, :2] + 1) * size / 2).astype(int)
    inside = (pixel >= 0).all(1) & (pixel < size).all(1)
    column, row = pixel.clip(0, size - 1).T
    surface = depth.cpu().numpy()[row, column]
    return torch.as_tensor(inside & (scene.keypoints[:, 2] <= surface + SURFACE))


def variation(src: Scene, trg: Scene, src_occluded: bool, trg_occluded: bool) -> tuple[int, int, int, int]:
    """Returns SPair-71k's flags: viewpoint 0-2, scale 0-2, truncation and occlusion 0-3.

    Viewpoint is 0 below 15 degrees between the two yaws, 1 below 90; scale is 0 below a factor of 1.2 between the
    boxes' longer sides, 1 below 1.5. Truncation and occlusion are 0 for none, 1 source, 2 target, 3 both.
    """
    turn = abs((src.yaw - trg.yaw + 180) % 360 - 180)
    sides = [float((scene.bbox[2:] - scene.bbox[:2]).max()) for scene in (src, trg)]
    ratio = max(sides) / max(min(sides), 1e-6)
    return (
        int(turn >= 15) + int(turn >= 90),
        int(ratio >= 1.2) + int(ratio >= 1.5),
        int(src.truncated) + 2 * int(trg.truncated),
        int(src_occluded) + 2 * int(trg_occluded),
    )


def _occluded(scene: Scene, size: int) -> bool:
    """Returns whether something in front hides a part of the object."""
    front = scene.centre[scene.n_object :, 2] < 0
    if not front.any():
        return False
    with_occluder = render([scene], size).mask.sum()
    return bool(with_occluder < render([scene.without_extras()], size).mask.sum())
