"""The line that a command begins with."""

import os
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from distill.cli.reporting import announce, images_note, shortened

LONG = "/home/somebody/projects/birds/runs/2026-11-28/fit-of-a-student-on-crops/run-000017"


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_first_line_is_one_line_of_a_terminal_and_keeps_both_ends_of_the_path(columns, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    announce("fit", "a student on cub", "cpu", LONG)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= columns and line.startswith("fit: a student on cub; on cpu; in /home/") and line.endswith("17")
    assert (LONG in line) == (columns == 200)


def test_the_path_is_whole_where_the_output_is_kept(capsys):
    announce("fit", "a student on cub", "cpu", LONG)
    assert capsys.readouterr().out == f"fit: a student on cub; on cpu; in {LONG}\n"


def test_a_text_is_shortened_by_columns_and_not_by_letters():
    assert shortened("abcdefghij", 10) == "abcdefghij" and shortened("abcdefghij", 5) == "ab…ij"
    for width in range(4, 20):
        assert cell_len(shortened("写真/鳥/学生/実行十七", width)) <= width


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"size": 320, "resize": "letterbox"}, None),
        ({"size": 320, "resize": "squash"}, "data.resize=letterbox gives"),
        ({"size": 128, "resize": "squash"}, "data.size=320 data.resize=letterbox gives"),
        ({"size": 128}, "; data.size=320 gives"),  # shapes are drawn square
        ({}, None),
    ],
)
def test_data_that_gives_a_student_other_images_than_it_was_trained_on_is_noted(data, wanted):
    note = images_note("student", SimpleNamespace(size=320, resize="letterbox"), data)
    assert note is None if wanted is None else wanted in str(note)
    assert images_note("teacher", SimpleNamespace(size=512), data) is None
