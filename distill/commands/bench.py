"""Measure speed and memory of student, teacher and data loading, side by side in one run.

Prints a table and writes bench.json. Weights are as configured: random ones serve for timing.

Examples:
  python -m distill bench
  python -m distill bench what=[student] student.backbone=mobilenetv2_100 batches=[1,4,16]
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from distill.commands.compare import teacher_cost
from distill.config import instantiate
from distill.data.pairs import collate_pairs
from distill.environment import choose_device, describe
from distill.errors import ConfigError
from distill.evaluation import Benchmark
from distill.export import example
from distill.run import RunFolder

N_POINTS = 10


def run(cfg: DictConfig) -> list[dict]:
    """Measures, writes ``bench.json``, prints the table, and returns its rows."""
    measured: dict[str, Callable[[DictConfig, Benchmark], list[dict]]] = {
        "student": _students,
        "teacher": _teacher,
        "loader": _loader,
    }
    unknown = [what for what in cfg.what if what not in measured]
    if unknown:
        raise ConfigError(f"Expected what to list {list(measured)} but got {unknown}; correct what=[...].")
    benchmark: Benchmark = instantiate(cfg.data)
    folder = RunFolder.create(cfg)
    rows = [row for what in cfg.what for row in measured[what](cfg, benchmark)]
    folder.write_json("bench.json", {"rows": rows, "environment": describe()})
    table = Table(*rows[0].keys())
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=120).print(table)
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
    cost = teacher_cost(instantiate(cfg.teacher), benchmark, cfg.teacher_pairs)
    assert cost["latency_ms"] is not None
    return [_row("teacher", cfg.teacher.get("queries", "teacher"), 1, cost["latency_ms"])]


def _loader(cfg: DictConfig, benchmark: Benchmark) -> list[dict]:
    pairs = iter(range(len(benchmark)))
    latency = _median_ms(lambda: collate_pairs([benchmark[next(pairs)]]), min(cfg.repeats, len(benchmark) - 2))
    return [_row("loader", benchmark.name, 1, latency)]


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "what": what,
        "variant": variant,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "per_second": round(1000 * batch / latency_ms, 2),
        "latency_ms": round(latency_ms, 2),
        "peak_memory_mib": round(peak, 1),
    }
