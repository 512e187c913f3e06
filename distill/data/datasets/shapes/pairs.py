"""Image pairs of the procedural world, with exact keypoints."""

from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, nearest
from distill.core.types import PairBatch
from distill.data.datasets.shapes.categories import CATEGORIES, part_names
from distill.data.datasets.shapes.images import SPLITS
from distill.data.datasets.shapes.render import cast, render
from distill.data.datasets.shapes.scene import Scene, find_difficulty, sample_scene
from distill.data.pair_list import pairs_fingerprint
from distill.data.pair_sampling import check_pairs_per_image, sample_pairs
from distill.data.pairs import AnnotatedImage, ImageView, Query, Threshold, make_pair
from distill.data.symmetry import named_groups

WORLD_VERSION = 2
"""Raised whenever a change of the code changes a picture, so that old labels are refused."""

VISIBILITY_SIZE = 128
"""Side, in px, of the rendering that says which keypoints are visible and whether an object is occluded."""

_BLOCK = 32
"""Images of which it is found out together what is known of them without rendering."""

_CACHES = ("scene", "image", "view", "block")

SURFACE = 0.06
"""Half image sides that a keypoint may lie below what is seen at its pixel and still count as visible.

It is the same for all sizes of an object. Points inside of a large object's parts, such as a bicycle's crank, lie deeper and count
as hidden; docs/limits.md says how many. Another value changes which points count, and with them WORLD_VERSION and all figures.
"""


class _Source(NamedTuple):
    """What is known of an image without rendering it.

    Attributes:
        points: (K, 2) float64, x, y of the keypoints in fractions of the sides.
        visible: (K,) bool.
        box: (4,) x0, y0, x1, y1 of the object in fractions of the sides.
    """

    points: NDArray[np.float64]
    visible: NDArray[np.bool_]
    box: NDArray[np.float64]


class ShapesPairs(Dataset[PairBatch]):
    """Same-category pairs of rendered objects.

    Every image serves in several pairs, as in SPair-71k, so that a prompt which was optimised for a source point is used again.

    Args:
        split: "train", "val" or "test"; no scene is in two of them.
        n_pairs: how many pairs.
        seed: of the world and of the pairing.
        size: side of the images, px.
        difficulty: a name in :data:`~distill.data.datasets.shapes.scene.DIFFICULTIES`.
        pairs_per_image: how many targets a source image has.

    Raises:
        ConfigError: for an unknown split or difficulty, no number of pairs, a number per image below 1, or a size below 16.
    """

    name = "shapes"
    threshold: Threshold = "bbox"
    symmetric_groups: ClassVar = {category: named_groups(part_names(category)) for category in CATEGORIES}

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
        check_pairs_per_image(pairs_per_image)
        find_difficulty(difficulty)
        self.split, self.seed, self.size, self.difficulty = split, seed, size, difficulty
        names = list(CATEGORIES)
        n_images = len(names) * max(pairs_per_image + 1, ceil(n_pairs / pairs_per_image / len(names)))
        self.pairs = sample_pairs([names[i % len(names)] for i in range(n_images)], n_pairs, seed, pairs_per_image)
        self._make_caches()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the caches behind, for processes that share no memory."""
        return {name: value for name, value in vars(self).items() if name not in _CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def _make_caches(self) -> None:
        self.scene = lru_cache(maxsize=4096)(self._scene)
        self.image = lru_cache(maxsize=4096)(self._image)
        self.view = lru_cache(maxsize=32)(self._view)
        self.block = lru_cache(maxsize=4096)(self._block)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        source, target = self.pairs[index]
        (src, src_occluded), (trg, trg_occluded) = self.image(source), self.image(target)
        flags = variation(self.scene(source), self.scene(target), src_occluded, trg_occluded)
        return make_pair(src, trg, self.threshold, flags)

    def fingerprint(self) -> str:
        """Returns a digest of which pairs these are, in which order: of the world's version, seed, difficulty, split and scenes.

        The size is not in it: it says how the same pairs are seen.
        """
        return pairs_fingerprint(f"{self._name(source)} -> {self._name(target)}" for source, target in self.pairs)

    def query(self, index: int) -> Query:
        """Returns which labels a pair has; nothing is rendered, rays are cast at the keypoints alone."""
        source, target = self.pairs[index]
        src, trg = self._known(source), self._known(target)
        return Query(self._name(source), self._name(target), src.points[src.visible & trg.visible])

    def source_box(self, index: int) -> NDArray[np.float64]:
        """Returns (4,) x0, y0, x1, y1 of the object in a pair's source, in fractions of the sides; nothing is rendered."""
        return self._known(self.pairs[index][0]).box

    def source_mask(self, index: int, points: NDArray[np.float64], folder: Path | None = None) -> NDArray[np.bool_]:
        """Returns (N,) which of ``points`` (N, 2), in fractions of the source's sides, show the object; nothing is rendered.

        Raises:
            ConfigError: for a ``folder`` of masks, which this world has no use for.
        """
        if folder is not None:
            raise ConfigError(f"Expected points.masks=null with data=shapes, which knows its masks, but got {folder}.")
        u, v = torch.from_numpy(points * 2 - 1).unbind(-1)
        return cast([self.scene(self.pairs[index][0])], u, v)[1][0].numpy()

    def views(self, index: int, size: int, resize: str = "squash") -> tuple[ImageView, ImageView]:
        """Returns source and target of a pair rendered at ``size`` px a side; they are squares, which ``resize`` leaves as they are."""
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

    def _known(self, number: int) -> _Source:
        return self.block(number // _BLOCK)[number % _BLOCK]

    def _block(self, block: int) -> list[_Source]:
        """Returns what is known of ``_BLOCK`` images, whose rays are cast together."""
        scenes = [self._scene(block * _BLOCK + number) for number in range(_BLOCK)]
        pixels = [_keypoint_pixels(scene, VISIBILITY_SIZE)[0] for scene in scenes]
        # At the middles of pixels, as a rendering at VISIBILITY_SIZE.
        u, v = torch.from_numpy((np.concatenate(pixels) + 0.5) * (2 / VISIBILITY_SIZE) - 1).unbind(-1)
        depths = cast(scenes, u, v)[0].split([len(some) for some in pixels], dim=1)
        return [
            _Source(
                (scene.keypoints[:, :2] + 1) / 2,
                _visible(scene, depth[row].numpy(), VISIBILITY_SIZE),
                (scene.bbox + 1) / 2,
            )
            for row, (scene, depth) in enumerate(zip(scenes, depths, strict=True))
        ]

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
    """Returns (K,) bool: which keypoints lie in the image, at most :data:`SURFACE` below what is seen at their pixel.

    What is seen may be a part of the object itself.

    Args:
        scene: with K keypoints.
        depth: (S, S) what was rendered.
    """
    (column, row), size = _keypoint_pixels(scene, depth.shape[-1])[0].T, depth.shape[-1]
    return torch.as_tensor(_visible(scene, depth.cpu().numpy()[row, column], size))


def _visible(scene: Scene, surface: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """Returns (K,) which keypoints are visible, by what is seen (K,) at their pixels in an image of ``size`` px a side."""
    return _keypoint_pixels(scene, size)[1] & (scene.keypoints[:, 2] <= surface + SURFACE)


def _keypoint_pixels(scene: Scene, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns (K, 2) column, row of the pixels of keypoints, moved into the image, and (K,) which were in it."""
    pixel = np.floor((scene.keypoints[:, :2] + 1) * size / 2).astype(int)
    inside: NDArray[np.bool_] = np.all((pixel >= 0) & (pixel < size), axis=1)
    return pixel.clip(0, size - 1), inside


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
