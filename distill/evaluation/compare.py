"""Comparison of several matchers on the same pairs, with intervals of their differences."""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torchmetrics import Metric

from distill.core.errors import ConfigError, nearest
from distill.core.protocols import Benchmark, Matcher, PairMatcher, match
from distill.evaluation.evaluate import Evaluation, evaluate
from distill.evaluation.scores import rounded
from distill.evaluation.survey import survey
from distill.labels.cached import Cached
from distill.matchers.stored_predictions import StoredPredictions
from distill.metrics.agreement import agreement
from distill.metrics.interval import over_images, over_pairs
from distill.metrics.pck import ALPHAS, alpha_key
from distill.metrics.win_loss import agreement_by_rightness, win_loss
from distill.system.memory import PeakMemory, device_of
from distill.system.progress import PartsProgress, track

HEADLINE = 0.10
"""The tolerance of figures that are given at one tolerance only."""


@dataclass(frozen=True)
class Comparison:
    """What several matchers scored on the same pairs.

    Attributes:
        evaluations: by the matcher's name.
        reference: the name of the matcher that the others are held against.
        agreement: of each other matcher with the reference, by name, see :func:`agreement_with`.
        differences: of each other matcher's PCK per image from the reference's, by name and by alpha ("0.01" to "0.15"), see
            :func:`paired_difference`; empty where nothing is annotated.
        win_loss: where each other matcher is right and the reference is not, by name, see
            :func:`distill.metrics.win_loss.win_loss`; empty where nothing is annotated.
        notes: what a reader of the figures has to know.
    """

    evaluations: dict[str, Evaluation]
    reference: str
    agreement: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, dict[str, float]]]
    win_loss: dict[str, dict[str, dict[str, int]]]
    notes: list[str]

    @property
    def first(self) -> Evaluation:
        """One of the evaluations, for what all of them share."""
        return next(iter(self.evaluations.values()))

    @property
    def scored(self) -> bool:
        """Whether the truth is known."""
        return self.first.scored

    def report(self) -> dict[str, Any]:
        """Returns the figures in the form of ``metrics.json``."""
        return {
            "matchers": [evaluation.report for evaluation in self.evaluations.values()],
            "reference": self.reference,
            "agreement": self.agreement,
            "differences": self.differences,
            "win_loss": self.win_loss,
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
    then: str = "",
    keep: Callable[[str, Evaluation], None] | None = None,
) -> Comparison:
    """Evaluates each matcher on the same pairs and compares the others with ``reference``.

    Where nothing is annotated (``benchmark.has_truth`` is false) nothing is scored, see
    :func:`distill.evaluation.survey.survey`. A teacher that answers from stored labels is not timed: reading labels is not
    matching. The memory is the process's, or the accelerator's, while the matcher ran; it includes what else is loaded.

    Args:
        matchers: by name.
        benchmark: the pairs.
        reference: one of the names.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw a bar, over all matchers.
        seed: of the bootstrap.
        metrics: further metrics by name, see :func:`distill.evaluation.evaluate.evaluate`.
        then: what the caller does next and takes time, such as " + report"; shown behind the time that is left.
        keep: is called with the name and the evaluation of each matcher before the next one is asked.

    Raises:
        ConfigError: when ``reference`` is none of the matchers.
    """
    check_reference(reference, matchers)
    with PartsProgress(dict.fromkeys(matchers, len(cast(Sized, benchmark))), "pairs", then, progress) as parts:
        evaluations: dict[str, Evaluation] = {}
        for name, matcher in matchers.items():
            evaluations[name] = _measured(matcher, benchmark, name, batch_size, device, parts, metrics)
            if keep is not None:
                keep(name, evaluations[name])
    base = evaluations[reference]
    others = {name: e for name, e in evaluations.items() if name != reference}
    scored = others if base.scored else {}
    return Comparison(
        evaluations=evaluations,
        reference=reference,
        agreement={name: agreement_with(base, e) for name, e in others.items()},
        differences={
            name: {alpha_key(alpha): rounded(paired_difference(e, base, alpha, seed)) for alpha in ALPHAS}
            for name, e in scored.items()
        },
        win_loss={name: win_loss(e.right(HEADLINE), base.right(HEADLINE)) for name, e in scored.items()},
        notes=[],
    )


def _measured(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    batch_size: int,
    device: str,
    progress: PartsProgress,
    metrics: Mapping[str, Metric] | None,
) -> Evaluation:
    """Returns a matcher's evaluation, or its survey where nothing is annotated, with its memory and parameters."""
    with PeakMemory(device_of(matcher, device)) as memory:
        if getattr(benchmark, "has_truth", True):
            evaluation = evaluate(matcher, benchmark, name, batch_size, device, progress, metrics)
        else:
            evaluation = survey(matcher, benchmark, name, batch_size, device, progress)
    stored = isinstance(matcher, Cached | StoredPredictions)
    evaluation.report["peak_memory_mib"] = None if stored else memory.mib
    evaluation.report["parameters"] = count_parameters(matcher)
    if isinstance(matcher, Cached):
        evaluation.report["latency_ms"] = None
    return evaluation


def agreement_with(base: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Returns how far ``other`` agrees with ``base``, see :func:`distill.metrics.agreement.agreement`.

    Where the truth is known also at 0.10 "where_right" and "where_wrong", by whether ``base`` was right, see
    :func:`distill.metrics.win_loss.agreement_by_rightness`.
    """
    found: dict[str, Any] = rounded(agreement(other.predictions, base.predictions, base.thresholds, ALPHAS))
    if base.scored:
        split = agreement_by_rightness(other.near(base.predictions, HEADLINE), base.right(HEADLINE))
        found |= {f"where_{name}": figures for name, figures in split.items()}
    return found


def check_reference(reference: str, names: Iterable[str]) -> None:
    """Raises a :class:`ConfigError` when ``reference`` is none of the matchers' names."""
    if reference not in set(names):
        raise ConfigError(
            f"Expected reference to be one of the matchers but got {reference!r}; {nearest(reference, names)}."
        )


def check_stored(matchers: Mapping[str, Matcher | PairMatcher], benchmark: Benchmark, progress: bool = True) -> None:
    """Reads the answers of matchers that only read stored ones to all pairs, where other matchers are to be asked too.

    That takes as long as reading the pairs. What is missing is found before another matcher has worked for hours.

    Raises:
        DistillError: when an answer is missing.
    """
    stored = [matcher for matcher in matchers.values() if _only_reads(matcher)]
    if not stored or len(stored) == len(matchers):
        return
    for number in track(range(len(benchmark)), "check stored answers", progress, "pairs"):
        pairs = benchmark[number]
        for matcher in stored:
            match(matcher, pairs)


def _only_reads(matcher: Matcher | PairMatcher) -> bool:
    return isinstance(matcher, StoredPredictions) or (isinstance(matcher, Cached) and matcher.teacher is None)


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
    _, low_images, high_images = over_images(difference, first.images, (-100.0, 100.0))
    return {"mean": mean, "low": low, "high": high, "low_images": low_images, "high_images": high_images}


def count_parameters(matcher: object) -> int | None:
    """Returns how many parameters a matcher has; None when it does not say."""
    if isinstance(matcher, nn.Module):
        return sum(parameter.numel() for parameter in matcher.parameters())
    if isinstance(matcher, Cached):
        return None
    return getattr(matcher, "n_parameters", None)
