"""The folder that a web page is written to."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from distill.core.errors import ConfigError, DataError
from distill.export.page import RATIO, UNFINISHED, WEB, examples_of, write_page
from student import StudentMatcher


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


def test_examples_that_the_page_would_refuse_are_refused_when_it_is_written(tmp_path):
    script = (WEB / "image_header.js").read_text(encoding="utf-8")
    assert f"ratio: {RATIO} " in script
    for name, size in (("square.png", (20, 20)), ("allowed.png", (20, 200)), ("tall.png", (20, 201))):
        Image.new("RGB", size).save(tmp_path / name)
    assert len(examples_of([str(tmp_path / "square.png"), str(tmp_path / "allowed.png")], None)) == 2
    with pytest.raises(DataError, match=r"at most 10 times the shorter one but .*tall.png has 20 x 201 px; cut a part"):
        examples_of([str(tmp_path / "square.png"), str(tmp_path / "tall.png")], None)
