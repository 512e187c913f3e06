"""Measure speed and memory of student, teacher and data loading, side by side in one run.

Prints a table and writes bench.json. Weights are as configured: random ones serve for timing. The student is measured as a
torch module, as torch.compile makes it, and as each exported file; with ckpt= also its PCK, beside which student.svg draws
the time. The teacher is measured beside the same method in plain loops, and with ablation=true one increment after the other.

Examples:
  python -m distill bench
  python -m distill bench what=[student] student.backbone=mobilenetv4_conv_small student.strides=[16,32] data.size=256
  python -m distill bench student ckpt=runs/fit/student.safetensors data.split=test pck_pairs=200
  python -m distill bench teacher ablation=true ablation_pairs=4 paper.steps=13 paper.embeddings=1 paper.crops=4
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from distill.bench.chart import accuracy_chart
from distill.bench.labels import label_rates
from distill.bench.loader import loader_rates
from distill.bench.student import StudentBench, student_rates
from distill.bench.teacher import measure_variants
from distill.cli.config import instantiate
from distill.cli.datasets import as_trained, pairs_of
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError
from distill.core.protocols import Benchmark
from distill.export.onnx import network_name
from distill.export.precision import PRECISIONS
from distill.export.student_file import load_student, read_student_file
from distill.system.environment import choose_device, describe
from distill.system.tables import print_table

TOLD_BY = ("what", "variant", "batch", "threads")
"""What a row of ``bench.json`` is recognised by."""


def run(cfg: DictConfig) -> list[dict]:
    """Measures, writes ``bench.json``, prints the table, and returns its rows.

    Raises:
        ConfigError: when ``what`` is empty or names something that cannot be measured.
    """
    measured: dict[str, Callable[[DictConfig, Benchmark], list[dict]]] = {
        "student": _students,
        "teacher": _teacher,
        "loader": _loader,
        "labels": _labels,
    }
    wanted = [cfg.what] if isinstance(cfg.what, str) else list(cfg.what)
    unknown = [what for what in wanted if what not in measured]
    if unknown or not wanted:
        raise ConfigError(f"Expected what to list {list(measured)} but got {unknown or wanted}; correct what=[...].")
    if "student" in wanted:
        _check_batches(cfg.batches)
    device = choose_device(cfg.device)
    benchmark: Benchmark = instantiate(cfg.data)
    with RunFolder.numbered(cfg) as folder:
        announce("bench", ", ".join(wanted), device, folder.path)
        rows = [row for what in wanted for row in measured[what](cfg, benchmark)]
        folder.write_json("bench.json", {"rows": rows, "environment": describe()})
        if accuracy_chart(rows, folder / "student.svg"):
            print(folder / "student.svg")
        print_rows(rows)
        return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows of ``bench.json``; what all of them share of :data:`TOLD_BY` stands in the title."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shared = [key for key in TOLD_BY if key != "variant" and len({str(row.get(key)) for row in rows}) == 1]
    keys = [key for key in TOLD_BY if key in columns and key not in shared]
    columns = keys + [column for column in columns if column not in (*keys, *shared)]
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    told = ", ".join(f"{key} {rows[0][key]}" for key in shared if key in rows[0])
    print_table(
        [column.replace("_", " ") for column in columns],
        cells,
        f"measured side by side: {told}".rstrip(": "),
        keys=len(keys),
    )


def _check_batches(batches: Sequence[object]) -> None:
    whole = [batch for batch in batches if isinstance(batch, int) and not isinstance(batch, bool) and batch >= 1]
    if not whole or len(whole) < len(batches):
        raise ConfigError(
            f"Expected batches to list numbers of pairs of at least 1 but got {list(batches)}; write batches=[1,8]."
        )


def _students(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    data, student = cfg.data, None
    if cfg.ckpt is not None:
        description, _ = read_student_file(cfg.ckpt)
        student, data = load_student(cfg.ckpt, cfg.trust), as_trained(cfg.data, description)
    wanted = [str(precision) for precision in cfg.precisions]
    unknown = [precision for precision in wanted if precision not in PRECISIONS]
    if unknown:
        raise ConfigError(f"Expected precisions among {list(PRECISIONS)} but got {unknown}; correct precisions=[...].")
    pairs = (
        pairs_of(data, cfg.data.split, DictConfig({"n_pairs": cfg.pck_pairs})) if student and cfg.pck_pairs else None
    )
    calibration = pairs_of(data, "train", DictConfig({"n_pairs": cfg.calibration_pairs})) if "int8" in wanted else None
    student = student or instantiate(cfg.student)
    threads = [int(number) for number in cfg.threads]
    bench = StudentBench(
        data.size,
        list(cfg.batches),
        cfg.repeats,
        threads,
        wanted,
        cfg.compiled,
        pairs,
        calibration,
        choose_device(cfg.device),
    )
    return student_rates(student, network_name(student), bench)


def _teacher(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    rows = []
    for row in measure_variants(cfg, benchmark, instantiate):
        rows.append({**row, "threads": torch.get_num_threads()})
        print(f"{row['variant']}: {row['seconds_per_point']:g} s/point", flush=True)
    return rows


def _loader(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    return loader_rates(partial(instantiate, cfg.data))


def _labels(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    return label_rates(cfg.labels)
