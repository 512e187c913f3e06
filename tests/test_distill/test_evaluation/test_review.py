"""The page in which carried points are reviewed, in a browser."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.data.coco import read_coco_images, write_coco
from distill.data.keypoints import ImageKeypoints
from distill.evaluation.review import json_in_html, review_page

EVIL = "</script><img src=x onerror=alert(1)>"
SIZE = (60, 90)


def image(points: dict[str, tuple[float, float]], confidence: dict[str, float] | None = None) -> ImageKeypoints:
    confidence = confidence or {}
    unsure = frozenset(part for part, value in confidence.items() if value < 0.2)
    return ImageKeypoints(points, None, SIZE, unsure, EVIL, confidence)


def known() -> dict[str, ImageKeypoints]:
    """An annotated photograph and two others, of which c has the least sure point."""
    return {
        "cup/a.png": image({"rim": (10.5, 20.5), EVIL: (70.5, 40.5)}),
        "cup/b.png": image({"rim": (30.5, 20.5), EVIL: (60.5, 30.5)}, {"rim": 0.5, EVIL: 0.9}),
        "cup/c.png": image({"rim": (40.5, 20.5), EVIL: (50.5, 30.5)}, {"rim": 0.125, EVIL: 0.7}),
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for number, name in enumerate(known()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    content = write_coco(known())
    (tmp_path / "keypoints.json").write_text(json.dumps(content))
    (tmp_path / "review.html").write_text(review_page(tmp_path, known(), content, 10, 90)[0])
    return tmp_path


def click_at(browser_page, x: float, y: float) -> None:
    """Clicks at x, y px of the photograph, in its own pixels, the corner of the top-left one being (0, 0)."""
    box = browser_page.locator("#target").bounding_box()
    scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
    left, top = box["x"] + (box["width"] - scale * SIZE[1]) / 2, box["y"] + (box["height"] - scale * SIZE[0]) / 2
    browser_page.mouse.click(left + x * scale, top + y * scale)


def test_the_least_sure_point_comes_first_and_corrections_reach_the_annotations(page, browser_page, capsys):
    browser_page.goto((page / "review.html").as_uri())
    assert browser_page.inner_text("#asked") == "rim: confidence 0.13"
    assert browser_page.inner_text("#name") == "cup/c.png"
    click_at(browser_page, 20.5, 10.5)
    assert browser_page.inner_text("#asked") == "rim: set by you"
    browser_page.keyboard.press("Enter")
    assert (browser_page.inner_text("#name"), browser_page.inner_text("#asked")) == (
        "cup/b.png",
        "rim: confidence 0.50",
    )
    browser_page.keyboard.press("Enter")  # right as it is
    assert browser_page.inner_text("#asked") == f"{EVIL}: confidence 0.70"
    browser_page.keyboard.press("x")
    browser_page.keyboard.press("x")
    browser_page.keyboard.press("u")
    assert browser_page.inner_text("#asked") == f"{EVIL}: confidence 0.90"
    browser_page.keyboard.press("Shift+ArrowDown")
    assert browser_page.inner_text("#count") == "4 of 4 points looked at"
    with browser_page.expect_download() as waiting:
        browser_page.keyboard.press("Control+s")
    waiting.value.save_as(page / "corrections.json")
    assert not browser_page.refused and not browser_page.faults
    files = [f"corrections={page}/corrections.json", f"annotations={page}/keypoints.json"]
    assert main(["propagate", "apply", *files]) == 0, capsys.readouterr().err
    found = read_coco_images(json.loads((page / "keypoints.json").read_text()), list(known()))
    assert found["cup/c.png"].points == {"rim": pytest.approx((20.5, 10.5), abs=0.15)}
    assert found["cup/b.png"].points == {"rim": (30.5, 20.5), EVIL: (60.5, 31.5)}
    assert not found["cup/b.png"].confidence and not found["cup/c.png"].confidence
    assert all(found[name].bbox is None for name in known())  # no one drew a box
    assert found["cup/a.png"].points == known()["cup/a.png"].points


def save_by(browser_page, press) -> dict:
    """Returns the corrections that the page downloads when ``press`` is called."""
    with browser_page.expect_download() as waiting:
        press()
    return json.loads(Path(waiting.value.path()).read_text())


def warns_before_closing(browser_page) -> bool:
    script = "() => !dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    return browser_page.evaluate(script)


def test_enter_and_space_press_the_button_that_has_the_focus(page, browser_page):
    browser_page.goto((page / "review.html").as_uri())
    browser_page.locator("#parts button").nth(1).focus()
    browser_page.keyboard.press("Enter")
    assert browser_page.inner_text("#asked") == f"{EVIL}: confidence 0.70"
    assert browser_page.inner_text("#count") == "0 of 4 points looked at"
    browser_page.locator("#hide").focus()
    browser_page.keyboard.press("Space")
    assert browser_page.inner_text("#count") == "1 of 4 points looked at"
    browser_page.locator("#save").focus()
    (annotation,) = save_by(browser_page, lambda: browser_page.keyboard.press("Enter"))["annotations"]
    assert annotation["keypoints"] == [40, 20, 1, 0, 0, 0] and annotation["keypoint_confidence"] == [0.125, None]
    assert browser_page.inner_text("#count") == "1 of 4 points looked at"
    browser_page.keyboard.press("Enter")  # no button has the focus any more
    assert browser_page.inner_text("#count") == "2 of 4 points looked at"
    assert not browser_page.refused and not browser_page.faults


def test_points_that_were_skipped_are_asked_for_again_before_all_have_been_looked_at(page, browser_page):
    browser_page.goto((page / "review.html").as_uri())
    for _ in range(6):
        browser_page.keyboard.press("ArrowRight")
    assert browser_page.inner_text("#asked") == f"{EVIL}: confidence 0.90"  # the last of four
    browser_page.keyboard.press("ArrowLeft")
    assert browser_page.inner_text("#asked") == f"{EVIL}: confidence 0.70"
    asked = []
    for _ in range(4):
        browser_page.keyboard.press("Enter")
        asked.append(browser_page.inner_text("#asked"))
    over = "All points have been looked at; save the corrections."
    assert asked == [f"{EVIL}: confidence 0.90", "rim: confidence 0.13", "rim: confidence 0.50", over]
    assert browser_page.inner_text("#count") == "4 of 4 points looked at"
    browser_page.keyboard.press("ArrowRight")
    browser_page.keyboard.press("ArrowLeft")
    assert browser_page.inner_text("#asked") == f"{EVIL}: set by you"
    browser_page.keyboard.press("ArrowRight")
    assert browser_page.inner_text("#asked") == over
    assert not browser_page.refused and not browser_page.faults


def test_the_page_warns_before_closing_of_what_was_undone_after_a_save(page, browser_page):
    browser_page.goto((page / "review.html").as_uri())
    browser_page.keyboard.press("u")  # nothing to undo
    assert not warns_before_closing(browser_page)
    browser_page.keyboard.press("Enter")
    assert warns_before_closing(browser_page)
    assert len(save_by(browser_page, lambda: browser_page.click("#save"))["images"]) == 1
    assert not warns_before_closing(browser_page)
    browser_page.keyboard.press("u")
    assert warns_before_closing(browser_page)
    assert save_by(browser_page, lambda: browser_page.click("#save"))["images"] == []
    assert not browser_page.refused and not browser_page.faults


def test_text_from_files_is_shown_as_text_and_runs_nothing(page, browser_page):
    browser_page.goto((page / "review.html").as_uri())
    assert browser_page.locator("#parts button").all_inner_texts() == ["rim", EVIL]
    assert browser_page.locator("img").count() == 0 and not browser_page.faults
    assert (page / "review.html").read_text().count("</script>") == 2


def test_the_page_has_no_sideways_scroll_on_a_small_screen_and_shows_the_example(page, browser_page):
    browser_page.set_viewport_size({"width": 400, "height": 700})
    browser_page.goto((page / "review.html").as_uri())
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser_page.inner_text("#source-name") == "rim in cup/a.png"
    assert browser_page.locator("#source circle").get_attribute("cx") == "10.5"


def test_a_photograph_that_cannot_be_read_is_told_and_another_one_takes_its_place(page):
    (page / "cup/c.png").write_text("no image")
    found, (error,) = review_page(page, known(), write_coco(known()), 1, 90)
    assert "cup/c.png cannot be read" in str(error)
    assert '"name": "cup/b.png"' in found and '"name": "cup/c.png"' not in found


def test_json_in_a_script_element_is_the_same_json():
    data = {"a": [EVIL, "<!--", "&amp;", "\u2028"]}
    text = json_in_html(data)
    assert json.loads(text) == data and not set("<>&") & set(text)
