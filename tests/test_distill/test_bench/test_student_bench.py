"""Speed, memory and PCK of a student and its files, and the chart of them."""

import pytest
import torch

from distill.bench import student as student_bench
from distill.bench.chart import accuracy_chart
from distill.bench.student import StudentBench, student_rates
from distill.cli.commands.bench import print_rows
from distill.data.datasets.shapes import ShapesPairs
from distill.evaluation.evaluate import evaluate
from distill.export import onnx as export_module
from distill.export.onnx import Deviation, export_student
from distill.export.onnx_matcher import OnnxMatcher
from student import StudentMatcher


@pytest.mark.slow
def test_each_way_to_run_has_its_time_memory_and_pck():
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [16], 8).eval()
    pairs, before = ShapesPairs(size=32, split="val", n_pairs=4), torch.get_num_threads()
    rows = student_rates(student, "tiny", StudentBench(32, [1, 2], 2, [1, 2], ["fp32"], pairs=pairs))
    keys = [(row["variant"], row["threads"], row["batch"]) for row in rows]
    ways = ("tiny, torch", "tiny, ONNX Runtime fp32")
    assert keys == [(way, threads, batch) for threads in (1, 2) for way in ways for batch in (1, 2)]
    assert all(0 < row["fastest_ms"] <= row["latency_ms"] and row["peak_memory_mib"] > 0 for row in rows)
    expected = evaluate(student, pairs, "student", progress=False).report["pck"]["image"]["0.10"]
    assert all(row["pck@0.10"] == pytest.approx(expected, abs=0.01) for row in rows)
    assert all(("file_mib" in row) == ("ONNX" in row["variant"]) for row in rows)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_files_of_reduced_precision_are_chosen_by_the_pairs_whose_pck_is_told(monkeypatch):
    asked, reached = [], []

    def noting(student, file, size, config, precision, calibration, pairs, insist):
        asked.append((precision, pairs, insist))
        deviation = export_student(student, file, size, config, precision, calibration, pairs, insist)
        reached.append(evaluate(OnnxMatcher(file), bench.pairs, "file", progress=False).report["pck"]["image"]["0.10"])
        return deviation

    monkeypatch.setattr(student_bench, "export_student", noting)
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8], 8).eval()
    train, val = (ShapesPairs(size=32, split=split, n_pairs=4) for split in ("train", "val"))
    bench = StudentBench(32, [1], 1, [1], ["fp16", "int8"], pairs=val, calibration=train)
    rows = student_rates(student, "tiny", bench)
    assert asked == [("fp16", val, True), ("int8", val, True)]
    assert [row["pck@0.10"] for row in rows[1:]] == pytest.approx(reached, abs=0.01)


@pytest.mark.slow
def test_a_file_far_from_its_random_student_is_measured_all_the_same(monkeypatch):
    monkeypatch.setitem(export_module.BOUNDS, "fp16", Deviation(0.0, 0.0, 0.0, 0.0))
    rows = student_rates(StudentMatcher("test_resnet", [8], 8).eval(), "tiny", StudentBench(32, [1], 1, [1], ["fp16"]))
    assert [row["variant"] for row in rows] == ["tiny, torch", "tiny, ONNX Runtime fp16"]


def test_the_chart_has_a_mark_for_each_way_and_number_of_threads_of_one_pair(tmp_path):
    row = {"variant": "a, torch", "threads": 1, "batch": 1, "latency_ms": 20.0, "pck@0.10": 80.0}
    rows = [row, {**row, "threads": 2, "latency_ms": 12.0}, {**row, "batch": 8}, {**row, "variant": "b"}]
    assert accuracy_chart(rows, tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text()
    assert text.count('id="PathCollection_') == 2 * 3  # in the chart and in its legend
    assert "a, torch, 2 threads" in text and "b, 1 thread" in text


def test_without_pck_there_is_no_chart(tmp_path):
    assert not accuracy_chart([{"variant": "a", "threads": 1, "batch": 1, "latency_ms": 1.0}], tmp_path / "chart.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", ["60", "80", "100"])
def test_the_table_says_in_each_part_what_its_rows_are(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    common = {"what": "student", "threads": 1}
    variants = ("resnet10t", "resnet10t, ONNX fp16", "resnet10t, compiled")
    rows = [
        {**common, "variant": name, "batch": batch, "per_second": 1.5, "latency_ms": 100.25, "peak_memory_mib": 1993.6}
        for name in variants
        for batch in (1, 8)
    ]
    print_rows(rows)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= int(width) and "what student, threads 1" in shown
    for value in ("1.5 ", "100.25", "1993.6"):
        found = [line for line in lines if value in line]
        assert len(found) == 6 and all("resnet10t" in line and (" 1 " in line or " 8 " in line) for line in found)
