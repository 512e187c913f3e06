"""How the web page loads its network, in headless Chromium, and what it says where it cannot."""

import json
import shutil

import numpy as np
import pytest
from page_actions import READY, pair_of_numbers, rows

from distill.export.page import _described
from distill.export.runtime import Matcher, read_image
from student import StudentMatcher

pytestmark = pytest.mark.slow


def test_a_browser_whose_answers_differ_from_pythons_is_not_used(another, served_page, tmp_path):
    about = json.loads((served_page[1] / "model.json").read_text())
    about["check"]["answers"][0][0] += 5
    body = json.dumps(about)
    another.route("**/model.json", lambda route: route.fulfill(body=body, content_type="application/json"))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.locator("#error").get_by_text(
        "Expected the answers that Python gives but wasm differs by 5.00 px"
    ).wait_for()


def test_what_is_asked_for_while_the_network_loads_waits_for_it(another, served_page, pictures):
    held = []
    another.route("**/model.json", lambda route: held.append(route))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.click("#examples")
    another.set_input_files("#source input", pictures / "turned.jpg")
    another.click("#swap")
    while not held:
        another.wait_for_timeout(50)
    assert another.inner_text("#status") == "Loading the network." and another.locator("#error").is_hidden()
    held[0].continue_()
    another.fill("#coordinates", "127, 127")
    another.click("#typed button")
    assert rows(another, 1)[0][1] == "127.0, 127.0"  # of the second example
    assert another.locator("#error").is_hidden()
    width, height = (another.locator("#target canvas").bounding_box()[side] for side in ("width", "height"))
    assert height == pytest.approx(1.5 * width, rel=0.01)  # 200 x 300 px


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.json", "Expected model.json beside the page but got 404; copy the whole folder."),
        ("worker.js", "Expected a browser of 2023 or later but the page's worker failed: no module workers."),
    ],
)
def test_a_page_whose_network_was_not_loaded_says_why_whatever_is_asked_for(
    another, served_page, pictures, missing, message
):
    another.route(f"**/{missing}", lambda route: route.fulfill(status=404, body="none"))
    another.goto(served_page[0])
    another.locator("#error").get_by_text(message).wait_for()
    actions = [
        *(lambda id=id: another.click(f"#{id}") for id in ("examples", "swap", "undo", "clear")),
        lambda: another.set_input_files("#target input", pictures / "turned.jpg"),
        lambda: another.locator("#source canvas").click(),
        lambda: another.locator("#source canvas").press("Enter"),
        lambda: another.click("#typed button"),
    ]
    for action in actions:
        action()
        assert another.inner_text("#error") == message
        assert another.inner_text("#status") == "The network was not loaded."


def test_a_student_that_cannot_be_split_matches_by_one_file(another, served_page, exported_file, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(served_page[1], folder, ignore=shutil.ignore_patterns("*.onnx", "runtime"))
    shutil.copyfile(exported_file, folder / "match.onnx")
    about = json.loads((folder / "model.json").read_text())
    about |= _described(folder, StudentMatcher("test_resnet", [16], 8), {"match": "match.onnx"}, {})
    answers = {"model.json": json.dumps(about).encode(), "match.onnx": exported_file.read_bytes()}
    for name, content in answers.items():
        another.route(f"**/{name}", lambda route, _, content=content: route.fulfill(body=content))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.wait_for_selector(READY, state="attached")
    another.fill("#coordinates", "20, 30")
    another.click("#typed button")
    pictures = [read_image(folder / f"example-{name}.png") for name in ("first", "second")]
    expected = Matcher(folder / "match.onnx").match(*pictures, [(20, 30)])
    np.testing.assert_allclose(pair_of_numbers(rows(another, 1)[0][2]), expected.points[0], atol=2)


def test_it_needs_no_special_headers_and_no_threads(another, served_page):
    index = (served_page[1] / "index.html").read_text()
    another.route("**/?backend=wasm", lambda route: route.fulfill(body=index, content_type="text/html"))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.wait_for_selector(READY, state="attached")
    assert another.evaluate("crossOriginIsolated") is False
    another.fill("#coordinates", "20, 30")
    another.click("#typed button")
    assert rows(another, 1)[0][1] == "20.0, 30.0"
