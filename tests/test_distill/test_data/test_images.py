"""One reader of image files for data sets, ``match`` and Python."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from distill.core.errors import DataError
from distill.data.images import SUFFIXES, read_alpha, read_image, read_size, readable_suffixes

GREY = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
ORIENTED = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 6: lambda a: np.rot90(a, -1), 8: np.rot90}


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def pixels(path: Path, **settings) -> np.ndarray:
    image = read_image(path, **settings)
    assert image.dtype == torch.float32 and image.shape[:2] == (1, 3)
    return image[0].permute(1, 2, 0).numpy() * 255


def test_an_image_is_a_batch_of_one_in_zero_to_one(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a b [1].png")
    image = read_image(str(tmp_path / "a b [1].png"))
    assert image.shape == (1, 3, 24, 32) and torch.equal(
        image[0], torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    )


@pytest.mark.parametrize("orientation", sorted(ORIENTED))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_orientation_of_the_metadata_is_applied_unless_it_is_switched_off(tmp_path, picture, orientation, suffix):
    image = Image.fromarray(np.kron(picture[:6, :8], np.ones((8, 8, 1), np.uint8)))
    exif = image.getexif()
    exif[0x0112] = orientation
    settings = {"quality": 95, "exif": exif} if suffix == "jpg" else {"exif": exif}
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} | settings if suffix == "webp" else settings))
    stored = pixels(tmp_path / f"a.{suffix}", exif_orientation=False)
    assert stored.shape == (48, 64, 3)
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{suffix}"), ORIENTED[orientation](stored))


@pytest.mark.parametrize("exif_orientation", [None, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_in_xmp_is_not_applied_as_in_viewers(tmp_path, picture, suffix, exif_orientation):
    turned = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{turned}</x:xmpmeta>'
    image, exif, path = Image.fromarray(picture), Image.Exif(), tmp_path / f"a.{suffix}"
    if exif_orientation is not None:
        exif[0x0112] = exif_orientation
    if suffix == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        image.save(path, pnginfo=info, exif=exif)
    else:
        image.save(path, xmp=xmp.encode(), exif=exif, lossless=True)
    with Image.open(path) as opened:
        assert opened.getexif()[0x0112] == (exif_orientation or 6), "what Pillow makes of it"
    assert pixels(path).shape[:2] == read_size(path) == ((24, 32) if exif_orientation is None else (32, 24))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_tiff_is_oriented_as_its_own_tag_says(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), ORIENTED[6](picture))


def deep_png(path: Path, array: np.ndarray) -> None:
    """Writes (H, W) or (H, W, 3) uint16 as a PNG with 16 bits a channel."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if array.ndim == 3 else 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["grey.png", "colour.png", "grey.tif", "grey.pgm"])
def test_the_16_bit_copy_of_a_picture_gives_the_floats_of_the_8_bit_one(tmp_path, picture, kind):
    shallow = picture if kind.startswith("colour") else GREY
    deep = shallow.astype(np.uint16) * 257
    if kind.endswith("png"):
        deep_png(tmp_path / kind, deep)
    else:
        Image.fromarray(deep).save(tmp_path / kind)
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    assert torch.equal(read_image(tmp_path / kind), read_image(tmp_path / "shallow.png"))


def test_float_pictures_in_zero_to_one_are_converted_and_others_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "unit.tif")[..., 0], GREY)
    for name, values in (("bytes", GREY.astype(np.float32)), ("nan", np.full((20, 20), np.nan, np.float32))):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match=rf"{name}\.tif cannot be read .*convert it to 8 bits"):
            read_image(tmp_path / f"{name}.tif")


def test_32_bit_integers_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.int32) * 1000).save(tmp_path / "wide.tif")
    with pytest.raises(DataError, match=r"wide\.tif cannot be read .*convert it to 8 bits"):
        read_image(tmp_path / "wide.tif")


def test_transparent_pixels_are_composed_on_white(tmp_path, picture):
    """The colour stored under full transparency has no influence; half of it is mixed with white."""
    alpha = np.full((24, 32), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 51
    expected = picture.astype(float)
    expected[:8] = 255
    expected[8:16] = 0.2 * picture[8:16] + 0.8 * 255
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "rgba.png")
    np.testing.assert_allclose(pixels(tmp_path / "rgba.png"), expected, atol=1)
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    grey = GREY.astype(float)
    grey[:8] = 255
    grey[8:16] = 0.2 * GREY[8:16] + 0.8 * 255
    np.testing.assert_allclose(pixels(tmp_path / "la.png")[..., 1], grey, atol=1)


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1"])
def test_a_transparent_colour_becomes_white(tmp_path, mode):
    black = Image.new(mode, (20, 20), 0)
    black.paste(1 if mode in "P1" else (9, 9, 9) if mode == "RGB" else 9, (10, 0, 20, 20))
    if mode == "P":
        black.putpalette([0, 0, 0, 9, 9, 9])
    black.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    found = pixels(tmp_path / "a.png")
    assert (found[:, :10] == 255).all() and (found[:, 10:] == (255 if mode == "1" else 9)).all()


@pytest.mark.parametrize("marker", [True, False])
def test_cmyk_is_converted_whether_adobe_wrote_it_or_not(tmp_path, marker):
    """Files with Adobe's marker hold inverted ink; both kinds give the colour that was meant."""
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    data = (tmp_path / "red.jpg").read_bytes()
    assert b"Adobe" in data
    if not marker:
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
        (tmp_path / "red.jpg").write_bytes(data)
    red, green, blue = pixels(tmp_path / "red.jpg").mean((0, 1))
    assert red > 250 and green < 5 and blue < 5


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, green, blue = pixels(tmp_path / name).mean((0, 1))
        assert red > 250 and green < 5 and blue < 5, name


def test_a_picture_of_200_megapixels_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(DataError, match=r"huge\.png cannot be read .*more than 179\.0 megapixels"):
        read_image(tmp_path / "huge.png")


def test_a_transparent_grey_of_16_bits_becomes_white(tmp_path):
    values = np.full((24, 32), 30_000, np.uint16)
    values[:, 16:] = 257 * 40
    Image.fromarray(values).save(tmp_path / "a.png", transparency=30_000)
    np.testing.assert_allclose(
        pixels(tmp_path / "a.png")[:, [0, 31]], np.broadcast_to([[255], [40]], (24, 2, 3)), atol=1e-3
    )


def test_a_transparent_colour_of_16_bits_becomes_white(tmp_path):
    values = np.full((10, 12, 3), 40_000, ">u2")
    values[2:5, 3:9] = (0x1234, 0x5678, 0x9ABC)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 12, 10, 16, 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    expected = np.full((10, 12, 3), 40_000 // 256)
    expected[2:5, 3:9] = 255
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(read_alpha(tmp_path / "a.png") == 0, (expected == 255).all(-1))


def test_malformed_metadata_are_read_over_without_a_warning(tmp_path, picture, recwarn):
    Image.fromarray(picture).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05"
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    assert read_size(tmp_path / "a.jpg") == (24, 32) == tuple(read_image(tmp_path / "a.jpg").shape[2:])
    assert not recwarn.list


def test_a_picture_between_pillows_two_limits_is_read_without_a_warning(tmp_path, picture, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    Image.fromarray(picture).save(tmp_path / "large.png")
    np.testing.assert_array_equal(pixels(tmp_path / "large.png"), picture)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (7, 9)])
def test_a_picture_of_a_few_pixels_a_side_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=rf"at least 8 px .* {size[0]} x {size[1]} px"):
        read_image(tmp_path / "thin.png")


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 2**21, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def broken_exif() -> bytes:
    """A PNG whose EXIF block has an impossible byte order."""
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG", exif=b"Exif\0\0XX*\0\x08\0\0\0\x01\0\x12\x01")
    return file.getvalue()


def truncated() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()[:2000]


@pytest.mark.parametrize(
    "content", [b"", b"no image", text_bomb(), broken_exif(), truncated(), b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "x (1).png").write_bytes(content)
    with pytest.raises(DataError, match=r"x \(1\)\.png cannot be read") as caught:
        read_image(tmp_path / "x (1).png")
    assert "\n" not in str(caught.value)


def test_pictures_with_damage_anywhere_are_read_or_refused_in_words(tmp_path, picture):
    random = np.random.default_rng(0)
    for kind in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        Image.fromarray(picture).save(tmp_path / f"a.{kind}")
        whole = (tmp_path / f"a.{kind}").read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 6):
                data[place] = random.integers(0, 256)
            (tmp_path / f"a.{kind}").write_bytes(data[: random.integers(1, len(data) + 1)])
            try:
                read_image(tmp_path / f"a.{kind}")
            except DataError as error:
                assert "cannot be read" in str(error) or "at least 8 px" in str(error)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("nowhere.png", ".", "pipe.png"):
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / name)


def test_formats_that_pillow_reads_are_among_the_suffixes(tmp_path, picture):
    for name in ("a.jfif", "a.JPE", "a.tiff", "a.avif"):
        if Path(name).suffix.lower() in readable_suffixes():
            Image.fromarray(picture).save(tmp_path / name, "JPEG" if name[2].lower() == "j" else None)
            assert read_image(tmp_path / name).shape == (1, 3, 24, 32)
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"} <= readable_suffixes() <= set(SUFFIXES)
    assert {".heic", ".heif", ".avif"} <= set(SUFFIXES)


def test_the_reader_is_part_of_the_public_interface():
    import distill

    assert distill.read_image is read_image


def test_heic_is_read_where_its_package_is_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    assert {".heic", ".heif"} <= readable_suffixes()
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.heic")
    red, green, _ = pixels(tmp_path / "a.heic").mean((0, 1))
    assert red > 240 and green < 10


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("applied", [True, False])
def test_the_size_in_the_header_is_that_of_the_image_read(tmp_path, suffix, orientation, applied):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (30, 20)).save(path, **({} if suffix == "bmp" else {"exif": exif}))
    assert read_size(path, applied) == tuple(read_image(path, applied).shape[-2:])


def test_a_file_that_is_no_image_has_no_size(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        read_size(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"b\.jpg cannot be read"):
        read_size(tmp_path / "b.jpg")
