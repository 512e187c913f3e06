"""Compare teacher, student and baselines with the truth, on the same pairs.

Prints a table, and writes metrics.json, report.md and a self-contained report.html. The teacher answers from its label
store; what is missing there is computed and stored, which takes minutes per image on a CPU.

Examples:
  python -m distill compare ckpt=runs/fit/student.safetensors
  python -m distill compare ckpt=runs/fit/student.safetensors data.n_pairs=40 run.dir=runs/compare-40
  python -m distill compare ckpt=runs/fit/student.safetensors reference=nearest_neighbour
"""

import time

from omegaconf import DictConfig

from distill.cli.config import instantiate
from distill.cli.datasets import scored_pairs
from distill.cli.reporting import announce, report
from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark, PairMatcher, match
from distill.evaluation.compare import Comparison, check_reference, compare
from distill.evaluation.evaluate import check_annotated
from distill.export.student_file import load_student, read_student_file
from distill.export.trusted import plain_arguments
from distill.labels.cached import Cached
from distill.labels.generate import by_source, label
from distill.matchers.box_relative import BoxRelative
from distill.system.environment import choose_device

MATCHERS = ("teacher", "student", "nearest_neighbour", "box_relative")


def run(cfg: DictConfig) -> Comparison:
    """Compares, writes the reports and prints the table."""
    check_reference(cfg.reference, MATCHERS)
    device = choose_device(cfg.device)
    student = load_student(cfg.ckpt, cfg.trust).to(device)
    baseline = instantiate(baseline_config(cfg.ckpt)).to(device)
    benchmark: Benchmark = scored_pairs(cfg.data)
    check_annotated(benchmark)
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), fallbacks=list(cfg.labels.fallbacks))
    folder = RunFolder.numbered(cfg)
    announce("compare", f"{len(benchmark)} {benchmark.split} pairs of {benchmark.name}", device, folder.path)
    label(teacher, benchmark, device)
    matchers = dict(zip(MATCHERS, (teacher, student, baseline, BoxRelative()), strict=True))
    comparison = compare(matchers, benchmark, cfg.reference, cfg.batch_size, device, metrics=instantiate(cfg.metrics))
    if cfg.teacher_pairs:
        cost = teacher_cost(instantiate(cfg.teacher), benchmark, cfg.teacher_pairs)
        comparison.evaluations["teacher"].report.update(cost)
        comparison.notes.append(
            f"The teacher was timed on {cfg.teacher_pairs} pairs that share no source image; the prompts of a source "
            "point serve further targets, which then cost less."
        )
    report(folder, comparison, benchmark, cfg.panels)
    return comparison


def baseline_config(ckpt: str) -> dict:
    """Returns the configuration of the nearest neighbour on the untouched backbone of a student's file.

    Raises:
        WeightsError: when the file's configuration holds anything but plain values, see :func:`plain_arguments`.
    """
    config, _ = read_student_file(ckpt)
    names = ("backbone", "weights", "mean", "std", "options", "strides")
    shared = plain_arguments({key: config.get(key) for key in names}, ckpt)
    strides = list(shared.pop("strides") or [16])
    return {"_target_": "student.NearestNeighbour", "strides": [16 if 16 in strides else strides[-1]], **shared}


def teacher_cost(teacher: PairMatcher, benchmark: Benchmark, n_pairs: int) -> dict[str, float | int | None]:
    """Times a teacher whose caches are empty: "latency_ms" per pair, and its "parameters"."""
    order = by_source(benchmark)
    step = max(1, len(order) // n_pairs)
    chosen = [benchmark[number] for number in order[::step][:n_pairs]]
    parameters = getattr(teacher, "n_parameters", None)  # loads the weights, which is not to be timed
    start = time.perf_counter()
    for pairs in chosen:
        match(teacher, pairs)
    return {"latency_ms": round(1000 * (time.perf_counter() - start) / len(chosen), 1), "parameters": parameters}
