"""What is said of matchers where nothing is annotated."""

import numpy as np
import pytest
import torch

from distill.core.errors import DataError
from distill.core.types import Matches
from distill.evaluation.compare import compare
from distill.evaluation.page import html_page
from distill.evaluation.panels import pair_panel
from distill.evaluation.report import markdown, summary
from distill.evaluation.survey import survey, turned, way_back


class Shift:
    """Moves every point to the right by ``by`` px, also on the way back."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, src_img, trg_img, src_kps):
        assert torch.isfinite(src_kps).all()
        moved = src_kps + torch.tensor([self.by, 0.0])
        return Matches(moved, torch.full(src_kps.shape[:2], 0.25), torch.rand(*src_kps.shape[:2], 8, 8))


@pytest.fixture
def bare(few):
    """Pairs of 32 px without annotation, of photographs twice as large; their points keep clear of the borders."""
    unknown = torch.nan
    few.items = [
        pair._replace(
            src_kps=pair.src_kps / 2 + 8,
            trg_kps=pair.trg_kps * unknown,
            trg_all_kps=pair.trg_all_kps * unknown,
            src_original=[pair.src_original[0]._replace(size=(64, 64))],
        )
        for pair in few.items
    ]
    few.has_truth = False
    return few


def test_the_way_back_is_measured_in_the_sources_own_pixels(bare):
    report = survey(Shift(2.0), bare, "shift", batch_size=3, progress=False).report
    assert report["cycle"] == {"within_0.10": 0.0, "median": pytest.approx(4 / 32, abs=1e-4)}, "twice 2 of 32 px"
    assert report["confidence"] == {"mean": 0.25, "quartiles": [0.25] * 3} and "pck" not in report
    assert survey(Shift(0.0), bare, "still", progress=False).report["cycle"] == {"within_0.10": 100.0, "median": 0.0}


def test_turning_pairs_twice_gives_the_pairs_again(make_pairs):
    pair = make_pairs(3)
    again = turned(turned(pair, pair.trg_kps), pair.src_kps)
    for name in ("src_img", "trg_img", "src_kps", "trg_kps", "src_bbox", "trg_bbox", "src_content", "trg_size"):
        torch.testing.assert_close(getattr(again, name), getattr(pair, name))
    assert again.src_hash == pair.src_hash and again.trg_original == pair.trg_original
    outside = turned(pair, pair.trg_kps * 0 - 5)
    assert outside.src_kps.min() == 0, "answers outside the image are asked for at its border"
    torch.testing.assert_close(way_back(pair, pair.src_kps), torch.zeros(1, 3), rtol=0, atol=1e-6)


def test_a_comparison_without_truth_tells_agreement_confidence_and_cycle(bare):
    comparison = compare({"a": Shift(1.0), "b": Shift(2.0)}, bare, "a", progress=False)
    assert not comparison.scored and not comparison.differences and not comparison.win_loss
    base = bare.items[0].pck_threshold.item()
    assert comparison.agreement["b"]["median_relative"] == pytest.approx(1 / base, abs=1e-3)
    text, (headers, rows) = markdown(comparison), summary(comparison)
    assert "Nothing is annotated" in text and "## Confidence and cycle consistency" in text and "PCK" not in text
    assert headers[:3] == ["matcher", "confidence", "cycle @0.10"] and rows[0][:2] == ["a", "0.25"]
    assert pair_panel(comparison, bare, 0).width == 3 * 256
    assert np.isnan(comparison.first.image_pck).all()
    assert "plots" not in html_page(comparison, bare).split("</nav>")[0].split("<nav>")[1], "there is nothing to plot"


def test_pairs_without_points_are_an_error(bare):
    bare.items = [bare.items[0]._replace(kps_mask=torch.zeros(1, 3, dtype=torch.bool))]
    with pytest.raises(DataError, match="Expected pairs with points in few"):
        survey(Shift(1.0), bare, "shift", progress=False)
