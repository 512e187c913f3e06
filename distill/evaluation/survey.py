"""What can be said of a matcher where nothing is annotated: its answers, its confidence, and whether it finds its way back."""

import numpy as np
import torch
from torch import Tensor

from distill.core.errors import DataError
from distill.core.protocols import Benchmark, Matcher, PairMatcher
from distill.core.types import PairBatch
from distill.data.pairs import exchanged, to_original
from distill.evaluation.asking import ask, timed_answer
from distill.evaluation.evaluate import Collected, Evaluation
from distill.labels.cached import Cached
from distill.matchers.stored_predictions import StoredPredictions
from distill.system.progress import PartsProgress

CYCLE = 0.10
"""A way back ends near its start within this fraction of the longer side of the source."""


def survey(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool | PartsProgress = True,
) -> Evaluation:
    """Runs ``matcher`` over all pairs without scoring it; annotation is not used.

    The report holds "confidence" ("mean", and "quartiles") and "cycle": the matcher is asked a second time, for the points
    of the source that its answers in the target correspond to. "within_0.10" is the percentage that come back to within
    0.10 of the longer side of the source, "median" the median distance as a fraction of it. It is None for stored labels and
    predictions, which hold no answers to other points. The way back is not part of the time.

    Args:
        matcher: on ``device`` already.
        benchmark: the pairs.
        name: of the matcher, for the report.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw a bar; or a display of several parts, the next of which this is.

    Raises:
        DataError: when no pair has a point, or the matcher answers with NaN or infinity.
    """
    collected, cycles = Collected(matcher, name), []
    for asked in ask(matcher, benchmark, name, lambda pairs: pairs.kps_mask, batch_size, device, progress):
        collected.add(asked, torch.full((*asked.known.shape, 2), -1))
        if not isinstance(matcher, Cached | StoredPredictions):
            back = turned(asked.pairs, asked.answer.trg_kps)
            found, _ = timed_answer(matcher, back, name, device)
            cycles.append(way_back(asked.pairs, found.trg_kps)[asked.known].numpy())
    if not collected.rows["pairs"]:
        raise DataError(f"Expected pairs with points in {benchmark.name} but found none; choose another split.")
    sure = np.concatenate(collected.rows["confidence"])
    quartiles = [round(float(value), 3) for value in np.quantile(sure, (0.25, 0.5, 0.75))]
    figures = {
        "n_points": len(sure),
        "confidence": {"mean": round(float(sure.mean()), 3), "quartiles": quartiles},
        "cycle": _cycle_figures(np.concatenate(cycles)) if cycles else None,
    }
    return collected.evaluation(benchmark, figures)


def turned(pairs: PairBatch, points: Tensor) -> PairBatch:
    """Returns the pairs with source and target exchanged, and ``points`` (B, N, 2), x, y px of the targets, as queries.

    Points outside the image are moved to its border.
    """
    size = torch.tensor([original.size for original in pairs.src_original]).to(pairs.trg_size)
    return exchanged(pairs, points)._replace(
        trg_kps=pairs.src_kps,
        trg_all_kps=pairs.src_kps,
        trg_all_id=pairs.kps_id,
        trg_size=size,
        pck_threshold=size.amax(1).to(pairs.pck_threshold),
    )


def way_back(pairs: PairBatch, found: Tensor) -> Tensor:
    """Returns (B, N): how far ``found`` (B, N, 2), x, y px of the sources, is from the points asked for first.

    As a fraction of the longer side of the source, in its original pixels.
    """
    back = turned(pairs, pairs.trg_kps)
    distance = (to_original(found, back) - to_original(pairs.src_kps, back)).norm(dim=-1)
    return distance / back.pck_threshold[:, None]


def _cycle_figures(distances: np.ndarray) -> dict[str, float]:
    return {
        "within_0.10": round(float(100 * np.mean(distances <= CYCLE)), 3),
        "median": round(float(np.median(distances)), 4),
    }
