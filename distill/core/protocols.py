"""The contract that teachers, students and baselines share."""

from collections.abc import MutableMapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from distill.core.checks import check_answer
from distill.core.errors import ConfigError
from distill.core.types import Matches, PairBatch

T = TypeVar("T")


class Matcher(Protocol):
    """Maps (source image, target image, source keypoints) to target keypoints."""

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each.

        Args:
            src_img: (B, 3, H, W) float in [0, 1].
            trg_img: (B, 3, H, W) float in [0, 1].
            src_kps: (B, N, 2) x, y in pixels of ``src_img``.
        """
        ...


@runtime_checkable
class PairMatcher(Protocol):
    """A matcher that also uses what is known about a pair: its boxes, its fingerprints, its truth."""

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``; what it returns outside ``kps_mask`` has no meaning."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A matcher whose answers may be stored as labels."""

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides the images and the points, by field name.

        Settings, a hash of the weights, preprocessing. Labels are refused when one field differs.
        """
        ...


@runtime_checkable
class UsesPromptCache(Protocol):
    """A matcher that optimises something for each source point, which serves every target."""

    def use_prompt_cache(self, cache: MutableMapping[Any, Any]) -> None:
        """Reads optimised prompts from ``cache``, and adds those that it optimises.

        Args:
            cache: from (image fingerprint, x, y) to (embedding, number of the token that stands for the point).
        """
        ...


@runtime_checkable
class DescribesAhead(Protocol):
    """A matcher that keeps what it computes of each image, and can compute it for several images at once."""

    def describe_ahead(self, pairs: PairBatch) -> None:
        """Describes the images of ``pairs`` that it does not know yet; answers do not depend on it."""
        ...


class Benchmark(Protocol):
    """A data set of pairs as evaluation needs it: a map-style ``Dataset[PairBatch]`` that says its conventions."""

    name: str
    split: str
    threshold: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PairBatch: ...


def match(matcher: Matcher | PairMatcher, pairs: PairBatch) -> Matches:
    """Calls ``matcher`` on ``pairs`` by the richer of the two contracts that it satisfies.

    Raises:
        DataError: when its answer has other shapes than the contract's.
    """
    if isinstance(matcher, PairMatcher):
        answer = matcher.match_pairs(pairs)
    else:
        answer = matcher(pairs.src_img, pairs.trg_img, pairs.src_kps)
    return check_answer(answer, pairs.src_kps, type(matcher).__name__)


def match_query(matcher: Matcher | PairMatcher, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
    """Calls ``matcher`` on images (B, 3, H, W) and points (B, N, 2) alone, see :class:`Matcher`.

    Raises:
        ConfigError: when it answers pairs of a data set only.
        DataError: when its answer has other shapes than the contract's.
    """
    if not callable(matcher):
        raise ConfigError(
            f"Expected a matcher of two images and points but {type(matcher).__name__} answers pairs of a data set only; "
            "give it a __call__(src_img, trg_img, src_kps), or use evaluate or compare."
        )
    return check_answer(matcher(src_img, trg_img, src_kps), src_kps, type(matcher).__name__)


def on_device(matcher: T, device: str | torch.device) -> T:
    """Returns ``matcher``, moved to ``device`` in place if it is a torch module; others move themselves to their images."""
    return matcher.to(device) if isinstance(matcher, nn.Module) else matcher
