"""The pictures of the web page, in headless Chromium: which it takes, and how it reads, resizes and draws them."""

import json

import numpy as np
import pytest
from onnx_metadata import with_metadata
from page_actions import READY, pair_of_numbers, photograph, png_header, rows
from PIL import Image

from distill.core.squares import letterbox
from distill.export.page import _described
from distill.export.runtime import CORRELATE, ENCODE, SplitMatcher, read_image
from distill.export.runtime_images import Square

pytestmark = pytest.mark.slow


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


def test_a_picture_ten_times_as_tall_as_wide_is_taken(page):
    page.set_input_files("#source input", {"name": "tall.png", "mimeType": "image/png", "buffer": png_header(40, 400)})
    page.get_by_text("tall.png: 40 x 400 px").wait_for()
    box = page.locator("#source canvas").bounding_box()
    assert box["height"] == pytest.approx(10 * box["width"], rel=0.01)


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
