"""Measure speed and memory of student, teacher and data loading, side by side in one run.

Prints a table and writes bench.json. Weights are as configured: random ones serve for timing. The teacher is measured
beside the same method in plain loops, and with ladder=true one lever after the other.

Examples:
  python -m distill bench
  python -m distill bench what=[student] student.backbone=mobilenetv2_100 batches=[1,4,16]
  python -m distill bench teacher ladder=true ladder_pairs=4 paper.steps=13 paper.embeddings=1 paper.crops=4
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from distill.benchmarks.labels import label_rates
from distill.benchmarks.loader import loader_rates
from distill.config import instantiate
from distill.environment import choose_device, describe
from distill.errors import ConfigError
from distill.evaluation import Benchmark
from distill.export import example
from distill.ladder import climb
from distill.peak import process_peak_mib
from distill.run import RunFolder

N_POINTS = 10


def run(cfg: DictConfig) -> list[dict]:
    """Measures, writes ``bench.json``, prints the table, and returns its rows."""
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
    benchmark: Benchmark = instantiate(cfg.data)
    folder = RunFolder.create(cfg)
    rows = [row for what in wanted for row in measured[what](cfg, benchmark)]
    folder.write_json("bench.json", {"rows": rows, "environment": describe()})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*(column.replace("_", " ") for column in columns))
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=150).print(table)
    return rows


def _students(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    student = instantiate(cfg.student).to(choose_device(cfg.device)).eval()
    rows = []
    for batch in cfg.batches:
        query = [value.to(choose_device(cfg.device)) for value in example(batch, N_POINTS, cfg.data.size, seed=0)]
        with torch.inference_mode():
            latency = _median_ms(partial(student, *query), cfg.repeats)
        rows.append(_row("student", cfg.student.backbone, batch, latency))
    return rows


def _teacher(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    rows = []
    for row in climb(cfg, benchmark):
        rows.append({**row, "threads": torch.get_num_threads()})
        print(f"{row['variant']}: {row['seconds_per_point']:g} s/point", flush=True)
    return rows


def _loader(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    return loader_rates(partial(instantiate, cfg.data))


def _labels(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    return label_rates(cfg.labels)


def _median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _row(what: str, variant: str, batch: int, latency_ms: float) -> dict:
    """One line of ``bench.json``; the memory is the process's peak so far."""
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_peak_mib()
    return {
        "what": what,
        "variant": variant,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "per_second": round(1000 * batch / latency_ms, 2),
        "latency_ms": round(latency_ms, 2),
        "peak_memory_mib": round(peak, 1),
    }
