"""Comparison of several matchers on the same pairs, with intervals of their differences."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchmetrics import Metric

from distill.core.errors import ConfigError, nearest
from distill.core.protocols import Benchmark, Matcher, PairMatcher
from distill.evaluation.evaluate import Evaluation, evaluate
from distill.labels.cached import Cached
from distill.metrics.agreement import agreement
from distill.metrics.interval import over_images, over_pairs
from distill.metrics.pck import ALPHAS, alpha_key

HEADLINE = 0.10
DIFFERENCES = (0.05, HEADLINE)
"""Tolerances at which matchers are compared."""


@dataclass(frozen=True)
class Comparison:
    """What several matchers scored on the same pairs.

    Attributes:
        evaluations: by the matcher's name.
        reference: the name of the matcher that the others are held against.
        agreement: of each other matcher with the reference, by name.
        differences: of each other matcher's PCK per image from the reference's, by name and by alpha ("0.05", "0.10"), see
            :func:`paired_difference`.
        notes: what a reader of the figures has to know.
    """

    evaluations: dict[str, Evaluation]
    reference: str
    agreement: dict[str, dict[str, float]]
    differences: dict[str, dict[str, dict[str, float]]]
    notes: list[str]

    def report(self) -> dict[str, Any]:
        """Returns the figures in the form of ``metrics.json``."""
        return {
            "matchers": [evaluation.report for evaluation in self.evaluations.values()],
            "reference": self.reference,
            "agreement": self.agreement,
            "differences": self.differences,
            "notes": self.notes,
        }


def compare(
    matchers: Mapping[str, Matcher | PairMatcher],
    benchmark: Benchmark,
    reference: str = "teacher",
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool = True,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
) -> Comparison:
    """Evaluates each matcher on the same pairs and compares the others with ``reference``.

    A teacher that answers from stored labels is not timed: reading labels is not matching.

    Args:
        matchers: by name.
        benchmark: the pairs.
        reference: one of the names.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw bars.
        seed: of the bootstrap.
        metrics: further metrics by name, see :func:`distill.evaluation.evaluate.evaluate`.

    Raises:
        ConfigError: when ``reference`` is none of the matchers.
    """
    check_reference(reference, matchers)
    evaluations = {}
    for name, matcher in matchers.items():
        evaluation = evaluate(matcher, benchmark, name, batch_size, device, progress, metrics)
        evaluation.report["parameters"] = count_parameters(matcher)
        if isinstance(matcher, Cached):
            evaluation.report["latency_ms"] = None
        evaluations[name] = evaluation
    base = evaluations[reference]
    others = {name: e for name, e in evaluations.items() if name != reference}
    return Comparison(
        evaluations=evaluations,
        reference=reference,
        agreement={
            name: _rounded(agreement(e.predictions, base.predictions, base.thresholds, ALPHAS))
            for name, e in others.items()
        },
        differences={
            name: {alpha_key(alpha): _rounded(paired_difference(e, base, alpha, seed)) for alpha in DIFFERENCES}
            for name, e in others.items()
        },
        notes=[],
    )


def check_reference(reference: str, names: Iterable[str]) -> None:
    """Raises a :class:`ConfigError` when ``reference`` is none of the matchers' names."""
    if reference not in set(names):
        raise ConfigError(
            f"Expected reference to be one of the matchers but got {reference!r}; {nearest(reference, names)}."
        )


def paired_difference(first: Evaluation, second: Evaluation, alpha: float, seed: int = 0) -> dict[str, float]:
    """Returns by how many points PCK per image of ``first`` exceeds that of ``second`` on the same pairs.

    Args:
        first: one matcher's.
        second: the other's.
        alpha: one of :data:`distill.metrics.pck.ALPHAS`.
        seed: of the bootstrap.

    Returns:
        "mean"; "low", "high": the 95 % interval of a bootstrap over pairs; "low_images", "high_images": the wider one that
        allows for images that serve in several pairs, see :mod:`distill.metrics.interval`.
    """
    column = ALPHAS.index(alpha)
    difference = 100 * (first.image_pck[:, column] - second.image_pck[:, column])
    mean, low, high = over_pairs(difference, seed)
    _, low_images, high_images = over_images(difference, first.images)
    return {"mean": mean, "low": low, "high": high, "low_images": low_images, "high_images": high_images}


def count_parameters(matcher: object) -> int | None:
    """Returns how many parameters a matcher has; None when it does not say."""
    if isinstance(matcher, nn.Module):
        return sum(parameter.numel() for parameter in matcher.parameters())
    if isinstance(matcher, Cached):
        return None
    return getattr(matcher, "n_parameters", None)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}
