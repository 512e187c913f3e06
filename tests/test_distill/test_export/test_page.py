"""The web page in headless Chromium: its points, and the answers that it gives, which are those of Python."""

import statistics

import numpy as np
import pytest
from page_actions import READY, choose, pair_of_numbers, rows

from distill.export.alternatives import second_best, softmax
from distill.export.runtime import CORRELATE, ENCODE, SplitMatcher, read_image

pytestmark = pytest.mark.slow


def test_a_click_gets_pythons_answer_in_the_pixels_of_the_files(page, pictures, served_page):
    choose(page, pictures / "turned.jpg", pictures / "transparent.png")
    box, milliseconds = page.locator("#source canvas").bounding_box(), []
    for number in range(8):
        page.locator("#source canvas").click(
            position={"x": box["width"] * (0.1 + 0.1 * number), "y": box["height"] / 3}
        )
        found = rows(page, number + 1)
        milliseconds.append(float(page.evaluate("document.documentElement.dataset.milliseconds")))
    split = SplitMatcher(served_page[1] / ENCODE, served_page[1] / CORRELATE)
    source, target = (split.describe(read_image(pictures / name)) for name in ("turned.jpg", "transparent.png"))
    points = np.array([pair_of_numbers(row[1]) for row in found])
    expected = split.match(source, target, points)
    assert (source.size == (200, 300)).all() and (points.max(0) > 90).all()
    np.testing.assert_allclose([pair_of_numbers(row[2]) for row in found], expected.points, atol=2)
    np.testing.assert_allclose([float(row[3]) for row in found], expected.confidence, atol=0.02)
    print(f"\na click takes {statistics.median(milliseconds):.0f} ms, at most {max(milliseconds):.0f} ms")
    assert min(milliseconds) > 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("500, 20", "Expected points inside the first picture of 128 x 128 px but got 500, 20"),
        ("-1 5", "but got -1, 5"),
        ("1,2\n" * 100_000, "Expected 1 to 100 points but got 100000"),
        ("a, b", "Expected two numbers, x, y, on each line but got a, b"),
        ("60,", "Expected two numbers, x, y, on each line but got 60,"),
        ("0x20 30", "Expected two numbers, x, y, on each line but got 0x20 30"),
        ("", "Expected 1 to 100 points but got 0"),
    ],
)
def test_points_that_are_none_are_refused_and_the_page_goes_on(page, typed, message):
    page.locator("#coordinates").evaluate("(field, text) => { field.value = text }", typed)
    page.click("#typed button")
    page.locator("#error").get_by_text(message).wait_for()
    page.fill("#coordinates", "20, 30\n40.5 60")
    page.click("#typed button")
    assert [row[1] for row in rows(page, 2)] == ["20.0, 30.0", "40.5, 60.0"]


def test_two_clicks_at_once_get_two_answers(page):
    click = """(canvas) => {
        const box = canvas.getBoundingClientRect();  // wherever the page was scrolled to by the tests before
        for (const share of [0.3, 0.7]) {
            const place = {clientX: box.x + share * box.width, clientY: box.y + box.height / 2};
            canvas.dispatchEvent(new MouseEvent("click", place));
        }
    }"""
    page.locator("#source canvas").evaluate(click)
    found = rows(page, 2)
    assert found[0][1] != found[1][1] and len(found) == 2


def test_two_swaps_at_once_are_done_one_after_the_other(page, pictures, served_page):
    names = ["turned.jpg", "transparent.png"]
    choose(page, *(pictures / name for name in names))
    page.fill("#coordinates", "20, 30\n150.5 260")
    page.click("#typed button")
    rows(page, 2)
    page.fill("#coordinates", "190, 290")
    page.evaluate("for (const id of ['swap', 'swap']) document.getElementById(id).click()")
    page.click("#typed button")
    found = rows(page, 3)
    split = SplitMatcher(served_page[1] / ENCODE, served_page[1] / CORRELATE)
    first, second = (split.describe(read_image(pictures / name)) for name in names)
    there = split.match(first, second, np.array([(20, 30), (150.5, 260)])).points
    back = split.match(second, first, there).points
    points = np.vstack([back, (190, 290)])
    assert (abs(there - back).max(1) > 10).all()
    np.testing.assert_allclose([pair_of_numbers(row[1]) for row in found], points, atol=2)
    expected = split.match(first, second, points).points
    np.testing.assert_allclose([pair_of_numbers(row[2]) for row in found], expected, atol=2)
    assert page.locator("#error").is_hidden()


def test_a_click_counts_for_the_picture_that_was_clicked_only(page, pictures):
    page.locator("#source canvas").click()
    rows(page, 1)
    page.evaluate("document.getElementById('swap').click(), document.querySelector('#source canvas').click()")
    page.fill("#coordinates", "20, 30")
    page.click("#typed button")
    assert [row[1] for row in rows(page, 2)][1:] == ["20.0, 30.0"]


def test_the_keyboard_sets_and_removes_points(page):
    canvas = page.locator("#source canvas")
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        canvas.press(key)
    assert rows(page, 1)[0][1] == "67.2, 67.2"  # a fortieth of 128 px from the middle
    canvas.press("Delete")
    page.locator("#answers").wait_for(state="hidden")


def test_it_fits_a_phone(another, served_page):
    another.set_viewport_size({"width": 360, "height": 740})
    another.goto(f"{served_page[0]}?backend=wasm")
    another.wait_for_selector(READY, state="attached")
    another.locator("#source canvas").click()
    rows(another, 1)
    assert another.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert another.locator("#source canvas").bounding_box()["width"] > 300


def test_the_second_best_place_is_that_of_python(page):
    random = np.random.default_rng(0)
    script = """async ([scores, rows, columns, temperature]) => {
        const { secondBest, softmax } = await import("./alternatives.js");
        return secondBest(softmax(scores, temperature), rows, columns, 3, 0.2);
    }"""
    for shape in ((12, 15), (32, 32), (5, 4)):
        scores = random.normal(size=shape)
        scores[1, 2] += 6
        scores[-2, -1] += 5.5
        found = page.evaluate(script, [scores.ravel().tolist(), *shape, 1.5])
        expected = second_best(softmax(scores, 1.5))
        assert (found is None) == (expected is None) == (shape == (5, 4))
        if found is not None:
            np.testing.assert_allclose([found["x"], found["y"], found["share"]], expected, rtol=1e-9)
