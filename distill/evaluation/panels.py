"""Panels of matches: pairs from the best to the worst, with each matcher's answers."""

import numpy as np
import torch
from PIL import Image

from distill.core.protocols import Benchmark
from distill.data.pairs import from_original
from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.evaluate import with_truth
from distill.evaluation.pictures import match_panel
from distill.metrics.pck import ALPHAS


def example_panels(comparison: Comparison, benchmark: Benchmark, count: int = 6) -> list[Image.Image]:
    """Returns panels of pairs from the best to the worst of the second matcher, evenly spaced; the truth comes last.

    Where nothing is annotated they go from the surest to the least sure.
    """
    names = list(comparison.evaluations)
    judged = comparison.evaluations[names[min(1, len(names) - 1)]]
    surest = np.array([confidence.mean() for confidence in judged.confidence])
    order = np.argsort(-(judged.image_pck[:, ALPHAS.index(HEADLINE)] if judged.scored else surest), kind="stable")
    places = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    return [pair_panel(comparison, benchmark, int(place)) for place in places]


def pair_panel(comparison: Comparison, benchmark: Benchmark, place: int) -> Image.Image:
    """Draws the evaluated pair number ``place``: source, each matcher's answer, truth (or the labels that stand for it)."""
    first = comparison.first
    pairs = benchmark[first.pairs[place]]

    def resized(points: np.ndarray) -> np.ndarray:
        return from_original(torch.as_tensor(points)[None], pairs)[0].numpy()

    answers = {name: resized(e.predictions[place]) for name, e in comparison.evaluations.items() if name not in HIDDEN}
    if not comparison.scored:
        points = pairs.src_kps[0, pairs.kps_mask[0]].numpy()
        return match_panel(pairs.src_img[0], pairs.trg_img[0], points, answers)
    truth = resized(first.truth[place])
    answers[getattr(benchmark, "truth_name", "ground truth")] = truth
    points = pairs.src_kps[0, with_truth(pairs)[0]].numpy()
    return match_panel(pairs.src_img[0], pairs.trg_img[0], points, answers, truth)


HIDDEN = ("nearest_neighbour", "box_relative")
"""Matchers that pictures leave out, so that teacher and student are large enough to be seen."""
