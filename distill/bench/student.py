"""Benchmark of a student's speed, as a torch module and as an exported ONNX file."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from distill.core.protocols import Matcher
from distill.export.onnx import example, export_student
from distill.export.onnx_matcher import OnnxMatcher
from distill.system.memory import process_peak_mib

N_POINTS = 10


def student_rates(
    student: nn.Module, name: str, size: int, batches: Sequence[int], repeats: int, device: str = "cpu"
) -> list[dict]:
    """Times a student; ONNX Runtime runs on the CPU, whatever the device.

    Args:
        student: a module with the contract's ``forward(src_img, trg_img, src_kps) -> Matches``.
        name: of its backbone, for the table.
        size: side of the square images, px.
        batches: numbers of pairs at a time, with ten points each.
        repeats: how often each is measured.
        device: of the torch module.

    Returns:
        A row for each way to run and each number of pairs: "what", "variant", "batch", "threads", "per_second" (pairs),
        "latency_ms" (of a batch, the median), "fastest_ms", "peak_memory_mib" (of the process or the GPU so far).
    """
    student = student.to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "student.onnx")
        export_student(student, file, size)
        ways: dict[str, tuple[Matcher, str]]
        ways = {"torch": (student, device), "ONNX Runtime": (OnnxMatcher(file), "cpu")}
        rows = []
        for batch in batches:
            for way, (matcher, place) in ways.items():
                query = [value.to(place) for value in example(batch, N_POINTS, size, seed=0)]
                with torch.inference_mode():
                    milliseconds = _timed(partial(matcher, *query), repeats)
                rows.append(_row(f"{name}, {way}", batch, milliseconds))
    return rows


def _timed(call: Callable[[], object], repeats: int) -> list[float]:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return times


def _row(variant: str, batch: int, milliseconds: list[float]) -> dict:
    latency = statistics.median(milliseconds)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_peak_mib()
    return {
        "what": "student",
        "variant": variant,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "per_second": round(1000 * batch / latency, 2),
        "latency_ms": round(latency, 2),
        "fastest_ms": round(min(milliseconds), 2),
        "peak_memory_mib": round(peak, 1),
    }
