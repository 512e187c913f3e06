"""The contract of losses: what they are given, and what they return."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from distill.core.geometry import image_size
from distill.core.types import Matches, PairBatch


@dataclass(frozen=True)
class Example:
    """A batch of pairs with the teacher's answers and the student's.

    Attributes:
        pairs: with images, points and ``kps_mask`` as the student was given them. After augmentation the other fields, such as
            boxes, hashes and the points of ``trg_all_kps``, are still those of the images before it.
        label: of the teacher; its heatmap is non-negative, its confidence weighs the points.
        prediction: of the student; its heatmap holds logits.
        student: which made the prediction; None where there is none to ask further.
        src_map: (B, C, h, w) the student's descriptors of the sources; None for a student that has none.
        trg_map: the same of the targets.
    """

    pairs: PairBatch
    label: Matches
    prediction: Matches
    student: nn.Module | None = None
    src_map: Tensor | None = None
    trg_map: Tensor | None = None

    @property
    def src_size(self) -> tuple[int, int]:
        """(H, W) of the source images, px."""
        return image_size(self.pairs.src_img)

    @property
    def trg_size(self) -> tuple[int, int]:
        """(H, W) of the target images, px."""
        return image_size(self.pairs.trg_img)


class Loss(Protocol):
    """A term of the training objective: a scalar for a batch of pairs, labels and predictions.

    A loss that needs descriptors has an attribute ``dense = True``. It then gets a student that satisfies
    :class:`DenseStudent`, and its descriptor maps.
    """

    def __call__(self, example: Example) -> Tensor:
        """Returns a scalar."""
        ...


@runtime_checkable
class DenseStudent(Protocol):
    """A student that gives descriptor maps of whole images."""

    def forward_with_descriptors(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor
    ) -> tuple[Matches, Tensor, Tensor]:
        """Returns the answer of a matcher, and the descriptors (B, C, h, w) of sources and targets."""
        ...

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of images (B, 3, H, W)."""
        ...

    def correlate(
        self, src_map: Tensor, trg_map: Tensor, src_kps: Tensor, src_size: tuple[int, int], trg_size: tuple[int, int]
    ) -> Matches:
        """Returns the answer at points (B, N, 2) from descriptors that were computed before."""
        ...


def dense_parts(example: Example) -> tuple[Any, Tensor, Tensor]:
    """Returns the student and its maps (B, C, h, w) of sources and targets, for losses with ``dense = True``."""
    assert example.student is not None and example.src_map is not None and example.trg_map is not None
    return example.student, example.src_map, example.trg_map


def weighted_mean(values: Tensor, confidence: Tensor, kps_mask: Tensor) -> Tensor:
    """Returns the mean of ``values`` (B, N) over the points that count, weighted by their confidence (B, N)."""
    weight = confidence.where(kps_mask, 0)  # what stands outside the mask may be NaN
    return (values.where(kps_mask, 0) * weight).sum() / weight.sum().clamp_min(1e-6)
