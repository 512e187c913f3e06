"""How fast and how well a student matches: as a torch module, compiled, and as each of the files that it is exported to."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.core.errors import ExportError
from distill.core.protocols import Benchmark, Matcher
from distill.evaluation.evaluate import evaluate
from distill.export.gate import ALPHA, Gate
from distill.export.onnx import example, export_student
from distill.export.runtime import OnnxFile
from distill.system.memory import PeakMemory

N_POINTS = 10


@dataclass(frozen=True)
class StudentBench:
    """What is measured of a student.

    Attributes:
        size: side of the square images, px.
        batches: numbers of pairs at a time, with ten points each.
        repeats: how often each is measured.
        threads: numbers of threads of torch and of ONNX Runtime.
        precisions: of the exported files, see :mod:`distill.export.precision`.
        compiled: whether the module is also measured as torch.compile makes it, which needs a C++ compiler.
        pairs: that PCK is measured on, by which the best of several int8 files is chosen too; None leaves it out.
        calibration: training pairs that int8 takes the range of activations from.
        device: of the torch module; ONNX Runtime runs on the CPU.
    """

    size: int
    batches: Sequence[int]
    repeats: int
    threads: Sequence[int]
    precisions: Sequence[str] = ("fp32",)
    compiled: bool = False
    pairs: Benchmark | None = None
    calibration: Benchmark | None = None
    device: str = "cpu"


def student_rates(student: nn.Module, name: str, bench: StudentBench) -> list[dict[str, Any]]:
    """Measures a student.

    Args:
        student: a module with the contract's ``forward(src_img, trg_img, src_kps) -> Matches``.
        name: of its backbone, for the table.
        bench: what is measured.

    Returns:
        A row for each way to run, number of threads and number of pairs: "what", "variant", "batch", "threads",
        "per_second" (pairs), "latency_ms" (of a batch, the median), "fastest_ms", "cpu_ms" (the median of what all threads took
        of the processor, which other programs hardly change), "peak_memory_mib" (of the process while it was measured, or of
        the GPU), "file_mib" (of an exported file) and, with pairs, "pck@0.10" (per image, percent).
    """
    student, before = student.to(bench.device).eval(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        files, gates = _files(student, Path(folder), bench)
        figures = _figures(student, gates, bench)
        try:
            for threads in bench.threads:
                torch.set_num_threads(threads)
                for way, matcher, place in _ways(student, files, threads, bench):
                    shared = {"what": "student", "variant": f"{name}, {way}", "threads": threads}
                    measured = [{**shared, **row} for row in _rows(matcher, place, bench)]
                    size = {"file_mib": round(files[way].stat().st_size / 2**20, 2)} if way in files else {}
                    rows += [{**row, **size, **figures.get(way, {})} for row in measured]
        finally:
            torch.set_num_threads(before)
    return rows


def _files(student: nn.Module, folder: Path, bench: StudentBench) -> tuple[dict[str, Path], dict[str, Gate | None]]:
    """Exports the student in each precision; returns the files and their PCK by way to run.

    A file is also measured where its answers are far from the student's, as they may be with random weights. Prints which precision
    torch or ONNX Runtime cannot make.
    """
    files: dict[str, Path] = {}
    gates: dict[str, Gate | None] = {}
    for precision in bench.precisions:
        way, file = f"ONNX Runtime {precision}", folder / f"{precision}.onnx"
        try:
            deviation = export_student(
                student, file, bench.size, None, precision, bench.calibration, bench.pairs, insist=True
            )
        except ExportError as error:
            print(f"note: no {precision} file: {error}")
            continue
        files[way], gates[way] = file, deviation.gate
    return files, gates


def _figures(student: nn.Module, gates: Mapping[str, Gate | None], bench: StudentBench) -> dict[str, dict[str, float]]:
    """Returns PCK by way to run; torch.compile changes how the module is computed, not what."""
    if bench.pairs is None:
        return {}
    report = evaluate(student, bench.pairs, "student", device=bench.device, progress=False).report
    found = {"torch": report["pck"]["image"][ALPHA], **{way: gate.file for way, gate in gates.items() if gate}}
    return {way: {f"pck@{ALPHA}": round(value, 2)} for way, value in found.items()}


def _ways(
    student: nn.Module, files: Mapping[str, Path], threads: int, bench: StudentBench
) -> Iterator[tuple[str, Matcher | OnnxFile, str]]:
    """Yields name, matcher and device of each way to run, one after the other, so that only one has threads.

    A file is asked with arrays, as where torch is not installed: after each operation of torch its threads wait actively
    for a while, on the cores that ONNX Runtime needs then.
    """
    yield "torch", student, bench.device
    if bench.compiled:
        torch.compiler.reset()  # what was compiled for another number of threads
        yield "torch.compile", torch.compile(student), bench.device
    for way, file in files.items():
        yield way, OnnxFile(file, threads), "cpu"


def _rows(matcher: Matcher | OnnxFile, place: str, bench: StudentBench) -> Iterator[dict[str, Any]]:
    for batch in bench.batches:
        query = example(batch, N_POINTS, bench.size, seed=0)
        call: Callable[[], object]
        if isinstance(matcher, OnnxFile):
            call = partial(matcher.run, *(value.numpy() for value in query))
        else:
            call = partial(matcher, *(value.to(place) for value in query))
        with PeakMemory(place) as memory, torch.inference_mode():
            milliseconds, processor = _timed(call, bench.repeats)
        latency = statistics.median(milliseconds)
        yield {
            "batch": batch,
            "per_second": round(1000 * batch / latency, 2),
            "latency_ms": round(latency, 2),
            "fastest_ms": round(min(milliseconds), 2),
            "cpu_ms": round(statistics.median(processor), 2),
            "peak_memory_mib": memory.mib,
        }


def _timed(call: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Returns the milliseconds by the wall clock, and those that all threads of the process took of the processor."""
    call()
    times, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - used))
    return times, processor
