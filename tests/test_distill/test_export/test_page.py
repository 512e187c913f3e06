"""The web page in headless Chromium: it gives Python's answers, refuses what it cannot take, and goes on."""

import json
import re
import shutil
import statistics
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import open_page
from onnx_metadata import with_metadata
from PIL import Image, ImageFilter

from distill.core.errors import ConfigError, DataError
from distill.core.squares import letterbox
from distill.export.alternatives import second_best, softmax
from distill.export.page import RATIO, UNFINISHED, WEB, _described, examples_of, write_page
from distill.export.runtime import CORRELATE, ENCODE, Matcher, SplitMatcher, read_image
from distill.export.runtime_images import Square
from student import StudentMatcher

pytestmark = pytest.mark.slow
READY = "html[data-ready]"


def photograph(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Returns smooth random shapes, which survive JPEG."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), np.uint8).squeeze()
    image = Image.fromarray(pixels, mode if mode != "P" else None).resize(size, Image.Resampling.BICUBIC)
    return image if mode in ("L", "RGBA", "P") else image.filter(ImageFilter.GaussianBlur(1))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several kinds; the orientation of "turned" is what phones write."""
    folder = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(1, (300, 200)).save(folder / "turned.jpg", exif=exif, quality=95)
    photograph(2, (260, 340), "RGBA").save(folder / "transparent.png")
    photograph(3, (40, 25), "L").save(folder / "small.png")
    photograph(4, (2100, 1500)).save(folder / "large.webp", lossless=True)
    photograph(5, (128, 128)).quantize(16).save(folder / "palette.png")
    for orientation in range(2, 9):
        exif[0x0112] = orientation
        photograph(6, (150, 110)).save(folder / f"turned{orientation}.webp", exif=exif, lossless=True)
    return folder


@pytest.fixture(scope="module")
def opened(browser, served_page, pictures):
    """The page, loaded once; the pictures lie beside it."""
    shutil.copytree(pictures, served_page[1] / "pictures")
    with open_page(browser) as page:
        page.goto(f"{served_page[0]}?backend=wasm")
        page.wait_for_selector(READY, state="attached")
        yield page


@pytest.fixture
def page(opened):
    """The page with its examples and no points."""
    opened.faults.clear()
    opened.click("#examples")
    opened.get_by_text("The second example: ").wait_for()
    opened.click("#clear")
    yield opened
    assert opened.refused == [] and opened.faults == []


@pytest.fixture
def another(opened):
    """A second page of the same browser."""
    page = opened.context.new_page()
    yield page
    page.close()
    assert opened.refused == []


def choose(page, source, target) -> None:
    for place, file in (("source", source), ("target", target)):
        page.set_input_files(f"#{place} input", file)
        page.get_by_text(re.compile(f"^{re.escape(file.name)}: ")).wait_for()


def rows(page, count: int) -> list[list[str]]:
    page.wait_for_selector(f"#answers tbody tr:nth-child({count})")
    return [row.split("\t") for row in page.locator("#answers tbody").inner_text().splitlines()]


def pair_of_numbers(text: str) -> np.ndarray:
    return np.array([float(value) for value in text.split(" (")[0].split(",")])


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
    "name",
    [
        *("turned.jpg", "transparent.png", "small.png", "large.webp", "palette.png"),
        *(f"turned{orientation}.webp" for orientation in range(2, 9)),
    ],
)
def test_pictures_are_read_and_resized_as_python_does(page, pictures, name):
    script = """async (name) => {
        const { readPicture } = await import("./picture.js");
        const { pixels, width, height } = await readPicture(await (await fetch(`pictures/${name}`)).blob(), name, 128);
        return { pixels: Array.from(pixels), size: [height, width] };
    }"""
    found = page.evaluate(script, name)
    image = read_image(pictures / name)
    resized = Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR)
    pixels = np.array(found["pixels"]).reshape(3, 128, 128).transpose(1, 2, 0) * 255
    assert found["size"] == list(image.shape[:2])
    np.testing.assert_allclose(
        pixels, np.asarray(resized), atol=2.6
    )  # JPEG decoders differ by one, and bytes are rounded
    assert abs(pixels - np.asarray(resized)).mean() < 0.6


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)  # black: a thousandth of its pixels' size
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_what_is_no_picture_or_too_large_is_refused_and_the_page_goes_on(page, pictures):
    whole = (pictures / "turned.jpg").read_bytes()
    refused = {
        "text.jpg": (b"not a picture", "Expected a JPEG, PNG or WebP picture but text.jpg is none"),
        "empty.png": (b"", "empty.png is empty"),
        "cut.jpg": (whole[:100], "cut.jpg is none or is damaged"),
        "broken.png": ((pictures / "transparent.png").read_bytes()[:60], "broken.png cannot be decoded"),
        "large.png": (png_header(20_000, 10_000), "20000 x 10000 px (200.0 megapixels); make it smaller"),
        "bomb.png": (png_header(16_000, 16_000), "256.0 megapixels"),
        "thin.png": (png_header(400, 4), "at least 8 px a side but thin.png has 400 x 4 px"),
        "tall.png": (png_header(20, 10_000), "10 times the shorter one but tall.png has 20 x 10000 px; cut a part"),
        "wide.png": (png_header(10_000, 999), "10 times the shorter one but wide.png has 10000 x 999 px; cut a part"),
        "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.svg is none"),
    }
    for name, (content, message) in refused.items():
        page.set_input_files("#target input", {"name": name, "mimeType": "image/png", "buffer": content})
        page.locator("#error").get_by_text(message).wait_for()
    page.locator("#source canvas").click(position={"x": 90, "y": 90})
    assert len(rows(page, 1)) == 1 and page.locator("#error").is_hidden()


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


def test_a_picture_ten_times_as_tall_as_wide_is_taken(page):
    page.set_input_files("#source input", {"name": "tall.png", "mimeType": "image/png", "buffer": png_header(40, 400)})
    page.get_by_text("tall.png: 40 x 400 px").wait_for()
    box = page.locator("#source canvas").bounding_box()
    assert box["height"] == pytest.approx(10 * box["width"], rel=0.01)


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


def test_a_student_of_letterboxed_images_gets_them_in_the_browser_too(another, served_page, exported_page, tmp_path):
    files = {
        name: with_metadata(served_page[1] / name, tmp_path / name, resize="letterbox") for name in (ENCODE, CORRELATE)
    }
    for name, size in (("first", (300, 110)), ("second", (90, 210))):
        photograph(len(name), size).save(tmp_path / f"example-{name}.png")
        files[f"example-{name}.png"] = tmp_path / f"example-{name}.png"
    about = json.loads((served_page[1] / "model.json").read_text())
    about |= _described(tmp_path, exported_page[0], {"encode": ENCODE, "correlate": CORRELATE}, {})
    (tmp_path / "model.json").write_text(json.dumps(about))
    for name, file in (files | {"model.json": tmp_path / "model.json"}).items():
        another.route(f"**/{name}", lambda route, _, file=file: route.fulfill(body=file.read_bytes()))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.wait_for_selector(READY, state="attached")
    assert "fitted into 128 x 128 px with grey borders" in another.inner_text("#about")
    another.fill("#coordinates", "20, 30\n290 100\n150 55")
    another.click("#typed button")
    split = SplitMatcher(tmp_path / ENCODE, tmp_path / CORRELATE)
    images = [read_image(tmp_path / f"example-{name}.png") for name in ("first", "second")]
    expected = split.match(*(split.describe(image) for image in images), [(20, 30), (290, 100), (150, 55)])
    found = rows(another, 3)
    np.testing.assert_allclose([pair_of_numbers(row[2]) for row in found], expected.points, atol=0.5)
    script = """async (name) => {
        const { readPicture } = await import("./picture.js");
        const { pixels, box } = await readPicture(await (await fetch(name)).blob(), name, 128, "letterbox");
        return { pixels: Array.from(pixels), box };
    }"""
    read = another.evaluate(script, "example-first.png")
    assert read["box"] == [0, 40, 128, 87]  # 128 * 110 / 300 = 46.9
    np.testing.assert_allclose(read["pixels"], Square(128, "letterbox").pixels(images[0]).ravel(), atol=1e-5)


def test_pictures_lie_in_the_square_where_python_has_them(page):
    """Halves are rounded to the even neighbour: 64 px of 128 at a side of 5 are 2.5, of 384 at 3 are 0.5."""
    cases = [(128, 64, 5), (64, 128, 5), (384, 64, 3), (300, 200, 320), (200, 301, 320), (5000, 1, 64), (77, 77, 64)]
    script = """async (cases) => {
        const { contentBox, mapPoint } = await import("./resize.js");
        const boxes = cases.map(([width, height, side]) => contentBox(width, height, side, "letterbox"));
        return { boxes, squashed: contentBox(300, 200, 64, "squash"), point: mapPoint([50, 25], [0, 0, 200, 100], [0, 16, 64, 48]) };
    }"""
    found = page.evaluate(script, cases)
    assert found["boxes"] == [list(letterbox((height, width), side)) for width, height, side in cases]
    assert found["boxes"][0] == [0, 1, 5, 3] and found["boxes"][3] == [0, 53, 320, 266]
    assert found["squashed"] == [0, 0, 64, 64] and found["point"] == [16, 24]


def test_the_part_of_a_heatmap_on_the_padding_is_not_laid_over_the_picture(page):
    """Of 4 x 4 cells the first row, on the padding, is the likeliest, then the last column of the picture's two rows."""
    script = """async (shown) => {
        const { heat } = await import("./drawing.js"), context = new OffscreenCanvas(16, 16).getContext("2d");
        const probability = [1, 1, 1, 1, 0, 0, 0, 0.25, 0, 0, 0, 0.25, 0, 0, 0, 0];
        heat(context, { probability, rows: 4, columns: 4, shown });
        const opaque = (x, y) => context.getImageData(x, y, 1, 1).data[3];
        return [opaque(1, 1), opaque(1, 4), opaque(15, 5), opaque(15, 11)];
    }"""
    found = page.evaluate(script, [0, 0.25, 1, 0.75])  # 200 of 255 for the likeliest, by a square root
    assert (
        found[0] < 100 and found[1] == 0
    )  # between cells, as pixels of a picture that is enlarged, then in a cell's middle
    np.testing.assert_allclose(found[2:], 100, atol=8)
    assert page.evaluate(script, [0, 0, 1, 1])[0] == 200


def test_a_folder_with_other_files_and_a_precision_that_browsers_lack_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(ConfigError, match="Expected an empty folder or an older page in page="):
        write_page(None, tmp_path, 64, [])
    with pytest.raises(ConfigError, match="precision of a page to be fp32 or fp16 but got 'int8'"):
        write_page(None, tmp_path / "page", 64, [], precision="int8")


def test_a_page_that_was_not_written_to_its_end_may_be_written_again(
    exported_page, runtime_package, tmp_path, monkeypatch
):
    page = tmp_path / "page"
    shutil.copytree(exported_page[1], page)
    copied, copy = [], shutil.copyfile

    def stopping(source, target):
        if Path(target).is_relative_to(page):
            copied.append(target)
            if len(copied) == 3:
                raise KeyboardInterrupt
        return copy(source, target)

    monkeypatch.setattr("distill.export.page._write_network", lambda *_: {"match": "match.onnx"})
    monkeypatch.setattr("distill.export.page._described", lambda *_: {})
    arguments = [StudentMatcher("test_resnet", [16], 8), page, 64, [Image.new("RGB", (64, 64))] * 2]
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("distill.export.page.shutil.copyfile", stopping)
        write_page(*arguments, runtime=runtime_package)
    assert not (page / "model.json").exists()
    write_page(*arguments, runtime=runtime_package)
    assert (page / "model.json").is_file() and not (page / UNFINISHED).exists()


def test_it_needs_no_special_headers_and_no_threads(another, served_page):
    index = (served_page[1] / "index.html").read_text()
    another.route("**/?backend=wasm", lambda route: route.fulfill(body=index, content_type="text/html"))
    another.goto(f"{served_page[0]}?backend=wasm")
    another.wait_for_selector(READY, state="attached")
    assert another.evaluate("crossOriginIsolated") is False
    another.fill("#coordinates", "20, 30")
    another.click("#typed button")
    assert rows(another, 1)[0][1] == "20.0, 30.0"


def test_examples_that_the_page_would_refuse_are_refused_when_it_is_written(tmp_path):
    script = (WEB / "image_header.js").read_text(encoding="utf-8")
    assert f"ratio: {RATIO} " in script
    for name, size in (("square.png", (20, 20)), ("allowed.png", (20, 200)), ("tall.png", (20, 201))):
        Image.new("RGB", size).save(tmp_path / name)
    assert len(examples_of([str(tmp_path / "square.png"), str(tmp_path / "allowed.png")], None)) == 2
    with pytest.raises(DataError, match=r"at most 10 times the shorter one but .*tall.png has 20 x 201 px; cut a part"):
        examples_of([str(tmp_path / "square.png"), str(tmp_path / "tall.png")], None)
