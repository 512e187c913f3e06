"""The report as a page, opened in a headless browser."""

import json
import re

import numpy as np
import pytest
import torch

from distill.core.errors import DataError
from distill.core.types import Matches
from distill.evaluation import browser as browsing
from distill.evaluation.compare import compare
from distill.evaluation.figures import figures, read_curve, training_curve
from distill.evaluation.page import html_page
from distill.evaluation.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from distill.evaluation.tables import tables

KEYS = ("per_category", "per_category_point")
HOSTILE = "</script><img src=x onerror=document.title='hit'>"


class Off:
    """Misses the first ``wrong`` points of each pair by a wide margin, and hits the others."""

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong

    def match_pairs(self, pairs):
        missed = torch.arange(pairs.src_kps.shape[1]) < self.wrong
        points = pairs.trg_kps + torch.where(missed, 12.0, 0.0)[:, None]
        confidence = torch.where(missed, 0.25, 0.75).expand(points.shape[:2])
        return Matches(points, confidence, torch.rand(*points.shape[:2], 20, 20))


@pytest.fixture
def pairs(few):
    """Four pairs of two categories, whose names and files try to get out of the page."""
    for number, pair in enumerate(few.items):
        few.items[number] = pair._replace(
            category=[HOSTILE if number % 2 else "cow"], src_id=[f"{HOSTILE}{number}"], trg_id=["a&b<!--"]
        )
    return few


@pytest.fixture
def compared(pairs):
    names = {"good": Off(0), "<b>fair</b>": Off(1), "poor": Off(9)}
    comparison = compare(names, pairs, "good", batch_size=1, progress=False)
    comparison.notes.append(f"note {HOSTILE}")
    return comparison


@pytest.fixture
def curve(tmp_path):
    lines = [{"step": s, "val/pck@0.10": 10.0 * s, f"val/pck{HOSTILE}": 1.0, "train/loss": 2.0} for s in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([*map(json.dumps, lines), "no json", "[1]", '{"step": 9, "a": NaN}'])
    )
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def opened(compared, pairs, curve, tmp_path, browser_page):
    """The page in the browser, its first pair drawn."""
    (tmp_path / "report.html").write_text(html_page(compared, pairs, 300, curve, f"key: {HOSTILE}"), encoding="utf-8")
    browser_page.goto((tmp_path / "report.html").as_uri())
    browser_page.wait_for_selector("#viewer[data-drawn]")
    yield browser_page
    assert not browser_page.refused and not browser_page.faults


def test_a_page_names_no_outside_address(compared, pairs, curve):
    page = html_page(compared, pairs, 300, curve, "key: value")
    assert not re.findall(r"https?:|@import|url\(|<link|<iframe|<object|<img", page) and page.count("<script") == 2
    assert re.findall(r'(?:src|href)="([^"#][^"]*)', page) == [] and "default-src 'none'" in page


def test_names_from_data_are_text_and_nothing_of_them_runs(opened):
    assert opened.title().startswith("good, <b>fair</b>, poor on few") and not opened.query_selector_all("img, b")
    assert HOSTILE in opened.inner_text("#category") and f"note {HOSTILE}" in opened.inner_text("header")
    assert f"key: {HOSTILE}" in opened.inner_text("pre") and f"val/pck{HOSTILE}" in opened.inner_text("#plots")
    assert f"{HOSTILE}0 → a&b<!--"[-12:] in opened.inner_text("#names")


@pytest.mark.parametrize("width", [1200, 800, 400])
def test_a_page_is_no_wider_than_the_window(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if width >= 800:
        assert opened.evaluate("[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth)")


def test_a_click_on_a_header_sorts_a_table_and_another_turns_the_order(opened):
    def first_column() -> list[str]:
        return opened.eval_on_selector_all("#table-1 tbody tr", "rows => rows.map(row => row.cells[0].textContent)")

    header = opened.locator("#table-1 th button").nth(3)
    header.click()
    assert first_column() == ["good", "<b>fair</b>", "poor"]
    header.click()
    assert first_column() == ["poor", "<b>fair</b>", "good"]
    opened.locator("#table-1 th button").first.click()
    assert first_column() == ["<b>fair</b>", "good", "poor"]


def test_a_click_on_a_source_point_shows_each_answer_to_it(opened, compared, pairs):
    captions = opened.locator("#viewer figcaption")
    assert captions.count() == 4 and "point 1 of 3" in captions.first.inner_text()
    said = [captions.nth(n).inner_text() for n in (1, 2, 3)]
    assert ["right" in text for text in said] == [True, False, False] and "confidence 0.25" in said[2]
    canvas = opened.locator("#viewer .source canvas")
    canvas.scroll_into_view_if_needed()
    box, (x, y) = canvas.bounding_box(), (pairs.items[0].src_kps[0, 2] / 32).tolist()
    opened.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    opened.wait_for_selector("#viewer[data-drawn='0/2']")
    said = [captions.nth(n).inner_text() for n in range(4)]
    assert "point 3 of 3" in said[0] and ["right" in text for text in said[1:]] == [True, True, False]


def test_pairs_are_filtered_by_category_and_by_who_is_wrong(opened):
    place = opened.locator("#place")
    assert place.inner_text() == "1 of 4"
    opened.select_option("#category", label=HOSTILE)
    assert place.inner_text() == "1 of 2"
    opened.select_option("#category", label="all")
    opened.select_option("#wrong", label="good wrong")
    assert place.inner_text() == "none" and not opened.query_selector_all("#viewer figure")
    opened.select_option("#wrong", label="only poor wrong")
    assert place.inner_text() == "1 of 3", "the pair of one point has both wrong"
    assert "point 2 of" in opened.inner_text("#viewer .source")
    opened.select_option("#order", label="most disagreement first")
    opened.click("#next")
    assert place.inner_text() == "2 of 3"


def test_a_heatmap_is_laid_over_the_target_and_can_be_taken_away(opened):
    def pixels() -> list[int]:
        return opened.evaluate("[...document.querySelectorAll('#viewer canvas')].map(c => c.toDataURL().length)")

    before = pixels()
    opened.uncheck("#heat")
    opened.wait_for_function("document.querySelector('#viewer').childElementCount === 4")
    opened.wait_for_timeout(100)
    assert pixels() != before


def test_pages_of_pairs_without_annotation_work_too(pairs, tmp_path, browser_page):
    pairs.has_truth = False
    comparison = compare({"a": Off(0), "b": Off(1)}, pairs, "a", progress=False)
    (tmp_path / "report.html").write_text(html_page(comparison, pairs), encoding="utf-8")
    browser_page.goto((tmp_path / "report.html").as_uri())
    browser_page.wait_for_selector("#viewer[data-drawn]")
    assert "confidence 0.25" in browser_page.locator("#viewer figcaption").nth(2).inner_text()
    browser_page.select_option("#wrong", label="answers more than 0.1 apart")
    assert browser_page.locator("#place").inner_text() == "1 of 4" and "PCK" not in browser_page.inner_text("main")
    assert not browser_page.refused and not browser_page.faults


def test_what_is_shown_keeps_to_a_limit_of_bytes_and_pictures_are_shared(compared, pairs, monkeypatch):
    every = browsing.browsed_pairs(compared, pairs, 300)
    assert len(every["pairs"]) == 4 and len(browsing.browsed_pairs(compared, pairs, 2)["pairs"]) == 2
    monkeypatch.setattr(browsing, "LIMIT", sum(map(len, every["images"])) // 2)
    assert 1 <= len(browsing.browsed_pairs(compared, pairs, 300)["pairs"]) < 4
    pairs.items = [pair._replace(src_original=pairs.items[0].src_original) for pair in pairs.items]
    monkeypatch.undo()
    assert len(browsing.browsed_pairs(compared, pairs, 300)["images"]) == 5


def test_browsed_points_are_fractions_of_the_photograph_and_heatmaps_are_levels(compared, pairs):
    pair = browsing.browsed_pairs(compared, pairs, 1)["pairs"][0]
    np.testing.assert_allclose(pair["points"], pairs.items[0].src_kps[0] / 32, atol=1e-4)
    assert all(answer["frame"] == [0.0, 0.0, 1.0, 1.0] and answer["cells"] == [16, 16] for answer in pair["answers"])
    assert {len(text) for answer in pair["answers"] for text in answer["heat"]} == {256}
    assert {"0", "_"} <= set(pair["answers"][0]["heat"][0]) <= set(browsing.LETTERS)
    assert [answer["right"] for answer in pair["answers"]] == [[1, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_tables_say_the_figures_of_the_report(compared):
    by_title = {table.title: table for table in tables(compared)}
    assert [row[0].text for row in by_title["Accuracy"].rows] == ["good", "<b>fair</b>", "poor"]
    report = compared.evaluations["<b>fair</b>"].report
    accuracy = [cell.value for cell in by_title["Accuracy"].rows[1][1:9]]
    assert accuracy == [
        report["pck"][average][a] for average in ("image", "point") for a in ("0.01", "0.05", "0.10", "0.15")
    ]
    wins = by_title["Wins and losses against good"].rows[1]
    assert [cell.value for cell in wins[1:]] == [0, 4, 0, 0, 0, 10, 0], "poor: every pair and all ten points lost"
    split = by_title["Agreement with good"].rows[0]
    assert split[-1].text == "–", "the reference is never wrong"


def test_categories_are_told_at_all_tolerances_matcher_by_matcher(compared):
    by_title = {table.title: table for table in tables(compared)}
    table = by_title["By category, all tolerances"]
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        (category, name) for category in (HOSTILE, "cow") for name in ("good", "<b>fair</b>", "poor")
    ]
    report = compared.evaluations["<b>fair</b>"].report
    values = [report[key]["cow"][alpha] for key in KEYS for alpha in ("0.01", "0.05", "0.10", "0.15")]
    assert [cell.value for cell in table.rows[4][2:]] == [2, *values]
    short = by_title["By category"].rows
    assert [row[3].value for row in short] == [table.rows[row][5].value for row in (1, 4)]


def test_text_is_sorted_by_the_alphabet_and_figures_from_the_highest(opened):
    table = opened.locator("section", has=opened.locator("h2", has_text="By category, all tolerances"))
    cells = table.locator("tbody tr")
    table.locator("th button").nth(1).click()
    assert [cells.nth(row).locator("td").nth(1).inner_text() for row in (0, 5)] == ["<b>fair</b>", "poor"]
    table.locator("th button").nth(5).click()
    assert cells.first.locator("td").nth(1).inner_text() == "good"


def test_pck_curves_pass_through_the_figures_of_the_report(compared):
    curves = {series.name: dict(series.points) for series in figures(compared)[0].series}
    for name, evaluation in compared.evaluations.items():
        near = {round(x, 3): value for x, value in curves[name].items()}
        for alpha, value in evaluation.report["pck"]["image"].items():
            assert near[float(alpha)] == pytest.approx(value, abs=1e-3)


def test_losses_below_zero_are_drawn(tmp_path):
    lines = [{"step": step, "val/loss": value} for step, value in ((0, 1.0), (4, -3.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    drawn = training_curve(tmp_path / "metrics.jsonl")
    assert drawn.series[0].points == [(0.0, 1.0), (4.0, -3.0)]
    x, y = zip(
        *(map(float, pair.split(",")) for pair in re.search(r'points="([^"]+)" class="series"', drawn.svg)[1].split()),
        strict=True,
    )
    assert (x[0], x[1]) == (LEFT, WIDTH - RIGHT) and (y[0], y[1]) == (TOP, HEIGHT - BOTTOM)


def test_a_training_curve_takes_finite_figures_of_whole_lines_only(curve, tmp_path):
    logged = read_curve(curve)
    assert logged["val/pck@0.10"] == [(s, 10.0 * s) for s in (1, 2, 3, 4)] and "a" not in logged
    with pytest.raises(DataError, match="Expected the metrics.jsonl of a fit at"):
        read_curve(tmp_path / "gone.jsonl")
