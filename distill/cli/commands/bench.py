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

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from distill.bench.chart import accuracy_chart
from distill.bench.labels import label_rates
from distill.bench.loader import loader_rates
from distill.bench.student import StudentBench, student_rates
from distill.bench.teacher import FirstPairs, measure_variants, planned
from distill.cli.config import instantiate
from distill.cli.datasets import as_trained, pairs_of
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError
from distill.core.numbers import is_whole
from distill.core.protocols import Benchmark
from distill.export.onnx import check_settings, network_name
from distill.export.precision import PRECISIONS
from distill.export.student_file import load_student, read_student_file
from distill.system.environment import choose_device, describe
from distill.system.tables import print_table

TOLD_BY = ("what", "variant", "batch", "threads")
"""What a row of ``bench.json`` is recognised by."""


def run(cfg: DictConfig) -> list[dict]:
    """Measures, writes ``bench.json`` after each part, prints the table, and returns its rows.

    Raises:
        ConfigError: when ``what`` is empty or names something that cannot be measured, or for settings of a part that cannot work.
    """
    parts: dict[str, Callable[[DictConfig, Benchmark], Callable[[], list[dict]]]] = {
        "student": _students,
        "teacher": _teacher,
        "loader": _loader,
        "labels": _labels,
    }
    wanted = [cfg.what] if isinstance(cfg.what, str) else list(cfg.what)
    unknown = [what for what in wanted if what not in parts]
    if unknown or not wanted:
        raise ConfigError(f"Expected what to list {list(parts)} but got {unknown or wanted}; correct what=[...].")
    device = choose_device(cfg.device)
    benchmark: Benchmark = instantiate(cfg.data)
    # All settings are checked before the first part is measured, but for those that a teacher checks when it is built: the
    # libraries that it loads would count in the memory of what is measured before it.
    waiting = [parts[what](cfg, benchmark) for what in wanted]
    environment, rows = describe(), []
    with RunFolder.numbered(cfg) as folder:
        announce("bench", ", ".join(wanted), device, folder.path)
        while waiting:  # a part that is measured is let go: its network would count in the memory of the next
            rows += waiting.pop(0)()
            folder.write_json("bench.json", {"rows": rows, "environment": environment})  # what is measured stays
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


def _check_whole(name: str, numbers: Sequence[object], what: str, example: str) -> None:
    whole = [number for number in numbers if is_whole(number, 1)]
    if not whole or len(whole) < len(numbers):
        raise ConfigError(f"Expected {name} to list {what} of at least 1 but got {list(numbers)}; write {example}.")


def _students(cfg: DictConfig, benchmark: Benchmark) -> Callable[[], list[dict]]:
    _check_whole("batches", cfg.batches, "numbers of pairs", "batches=[1,8]")
    _check_whole("threads", cfg.threads, "numbers of threads", "threads=[1,2]")
    data, student = cfg.data, None
    if cfg.ckpt is not None:
        description, _ = read_student_file(cfg.ckpt)
        student, data = load_student(cfg.ckpt, cfg.trust), as_trained(cfg.data, description)
    wanted = [str(precision) for precision in cfg.precisions]
    unknown = [precision for precision in wanted if precision not in PRECISIONS]
    if unknown:
        raise ConfigError(f"Expected precisions among {list(PRECISIONS)} but got {unknown}; correct precisions=[...].")

    def some(split: str, key: str) -> Benchmark | None:
        """Returns as many pairs as ``key`` says; None for 0."""
        return pairs_of(data, split, {"n_pairs": cfg[key]}, key) if cfg[key] != 0 else None

    pairs = some(cfg.data.split, "pck_pairs") if student else None
    calibration = some("train", "calibration_pairs") if "int8" in wanted else None
    for precision in wanted:
        check_settings(precision, data.size, calibration)
    student = student or instantiate(cfg.student)
    bench = StudentBench(
        data.size,
        list(cfg.batches),
        cfg.repeats,
        list(cfg.threads),
        wanted,
        cfg.compiled,
        pairs,
        calibration,
        choose_device(cfg.device),
    )
    return partial(student_rates, student, network_name(student), bench)


def _teacher(cfg: DictConfig, benchmark: Benchmark) -> Callable[[], list[dict]]:
    return partial(_measured_teacher, planned(cfg, benchmark), choose_device(cfg.device))


def _measured_teacher(found: Iterable[tuple[str, dict[str, Any], FirstPairs]], device: str) -> list[dict]:
    rows = []
    for row in measure_variants(found, instantiate, device):
        rows.append({**row, "threads": torch.get_num_threads()})
        print(f"{row['variant']}: {row['seconds_per_point']:g} s/point", flush=True)
    return rows


def _loader(cfg: DictConfig, benchmark: Benchmark) -> Callable[[], list[dict]]:
    return partial(loader_rates, partial(instantiate, cfg.data))


def _labels(cfg: DictConfig, benchmark: Benchmark) -> Callable[[], list[dict]]:
    return partial(label_rates, cfg.labels)
