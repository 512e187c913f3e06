"""Several matchers on the same pairs: who is right, how often, and how sure that order is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distill.errors import ConfigError, nearest
from distill.evaluation import Benchmark, Evaluation, evaluate
from distill.matchers.cached import Cached
from distill.metrics.agreement import agreement
from distill.metrics.pck import ALPHAS
from distill.protocols import Matcher, PairMatcher

HEADLINE = 0.10


@dataclass(frozen=True)
class Comparison:
    """What several matchers scored on the same pairs.

    Attributes:
        evaluations: by the matcher's name.
        reference: the name of the matcher that the others are held against.
        agreement: of each other matcher with the reference, by name.
        differences: of each other matcher's PCK@0.10 per image from the reference's, by name: "mean" and the 95 %
            interval "low", "high", in points.
        notes: what a reader of the figures has to know.
    """

    evaluations: dict[str, Evaluation]
    reference: str
    agreement: dict[str, dict[str, float]]
    differences: dict[str, dict[str, float]]
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
) -> Comparison:
    """Evaluates each matcher on the same pairs and holds them against ``reference``.

    A teacher that answers from stored labels is not timed: reading labels is not matching.

    Args:
        matchers: by name.
        benchmark: the pairs.
        reference: one of the names.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw bars.
        seed: of the bootstrap.

    Raises:
        ConfigError: when ``reference`` is none of the matchers.
    """
    check_reference(reference, matchers)
    evaluations = {}
    for name, matcher in matchers.items():
        evaluation = evaluate(matcher, benchmark, name, batch_size, device, progress)
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
            name: _rounded(paired_difference(_headline(e), _headline(base), seed)) for name, e in others.items()
        },
        notes=[],
    )


def check_reference(reference: str, names: Iterable[str]) -> None:
    """Raises a :class:`ConfigError` when ``reference`` is none of the matchers' names."""
    if reference not in set(names):
        raise ConfigError(
            f"Expected reference to be one of the matchers but got {reference!r}; {nearest(reference, names)}."
        )


def paired_difference(first: NDArray, second: NDArray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Returns the mean of ``first - second`` and its 95 % interval from a bootstrap over pairs.

    Pairs that share images are not independent, so the interval is somewhat too narrow.

    Args:
        first: (P,) one value for each pair.
        second: (P,), on the same pairs.
        seed: of the draws.
        draws: how many.
    """
    difference = np.asarray(first) - np.asarray(second)
    rows = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def count_parameters(matcher: object) -> int | None:
    """Returns how many parameters a matcher has; None when it does not say."""
    if isinstance(matcher, nn.Module):
        return sum(parameter.numel() for parameter in matcher.parameters())
    if isinstance(matcher, Cached):
        return None
    return getattr(matcher, "n_parameters", None)


def _headline(evaluation: Evaluation) -> NDArray:
    return 100 * evaluation.image_pck[:, ALPHAS.index(HEADLINE)]


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}
