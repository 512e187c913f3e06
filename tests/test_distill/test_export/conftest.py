"""One export in two files, as a web page, that several tests share: tracing takes ten seconds."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from browser import find_chromium, open_page
from page_actions import READY, photograph
from PIL import Image

from distill.__main__ import main
from distill.core.errors import DataError
from distill.export.onnx import export_student
from distill.export.onnxruntime_web import FILES, cache_file, copy_runtime
from distill.export.serve import page_server
from distill.export.student_file import save_student
from student import StudentMatcher

STUDENT = {"backbone": "test_resnet", "strides": [4, 8, 16], "width": 96, "consensus": 3.0}
"""A tiny backbone with the head, the map and the consensus of the default student, so that a click costs the same."""
SIZE = 128


def page_student() -> StudentMatcher:
    torch.manual_seed(0)
    return StudentMatcher(**STUDENT).eval()


@pytest.fixture(scope="session")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One ONNX file of a tiny student without consensus, for images of 64 px."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("file") / "student.onnx"
    export_student(StudentMatcher("test_resnet", [8, 16], 16).eval(), file, 64)
    return file


@pytest.fixture(scope="session")
def runtime_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the npm package."""
    folder = tmp_path_factory.mktemp("npm")
    (folder / "dist").mkdir()
    (folder / "package.json").write_text('{"version": "0", "license": "MIT", "homepage": "nowhere"}')
    for name in {name for files in FILES.values() for name in files.values()}:
        (folder / "dist" / name).write_text("// stands for a file of the package")
    return folder


@pytest.fixture(scope="session")
def exported_page(tmp_path_factory: pytest.TempPathFactory, runtime_package: Path) -> tuple[StudentMatcher, Path]:
    """A student, and the folder that ``export page=`` wrote of it, without ONNX Runtime for browsers."""
    folder = tmp_path_factory.mktemp("page")
    ckpt, page = folder / "student.safetensors", folder / "page"
    save_student(page_student(), {"_target_": "student.StudentMatcher", **STUDENT, "size": SIZE}, ckpt)
    assert main(["export", f"ckpt={ckpt}", f"page={page}", f"onnxruntime_web={runtime_package}", "gate_pairs=8"]) == 0
    return page_student(), page


@pytest.fixture(scope="session")
def served_page(exported_page: tuple[StudentMatcher, Path], tmp_path_factory: pytest.TempPathFactory):
    """The address and the folder of the page, with ONNX Runtime for browsers."""
    if find_chromium() is None and not os.environ.get("REQUIRE_CHROMIUM"):
        pytest.skip("no Chromium")  # and no download for it
    folder = tmp_path_factory.mktemp("served") / "page"
    shutil.copytree(exported_page[1], folder)
    try:
        copy_runtime(folder / "runtime")
    except DataError as error:
        if os.environ.get("REQUIRE_CHROMIUM"):
            raise
        pytest.skip(f"no ONNX Runtime for browsers in {cache_file()}: {error}")
    with page_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()


@pytest.fixture(scope="session")
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
    """The page, loaded once for the tests of a file; the pictures lie beside it."""
    shutil.copytree(pictures, served_page[1] / "pictures", dirs_exist_ok=True)
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
