"""Compare any number of matchers on the same pairs: teacher, students, exported files, baselines, kept answers.

Prints a table, and writes metrics.json, report.md, a self-contained report.html and each matcher's answers, which
matchers=[<file>.npz] scores again. The teacher answers from its label store; what is missing there is computed and stored, which
takes minutes per image on a CPU. Photographs without annotation are reported on too: agreement, confidence and cycle consistency.

Examples:
  python -m distill compare ckpt=runs/fit/student.safetensors
  python -m distill compare ckpt=runs/fit/student.safetensors reference=student data.n_pairs=40 run.dir=runs/compare-40
  python -m distill compare "matchers=[teacher,runs/a/student.safetensors,runs/a/student.onnx,{old: runs/old/predictions/student.npz}]"
  python -m distill compare ckpt=runs/fit/student.safetensors "matchers=[student,nearest_neighbour_enlarged_flip,consensus]"
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill.cli.config import instantiate
from distill.cli.datasets import scored_pairs
from distill.cli.further_metrics import metrics_of
from distill.cli.reporting import announce, answers_to, images_note, report
from distill.cli.rows import TEACHER, build_rows, read_rows, student_files
from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark, Matcher, PairMatcher, on_device
from distill.evaluation.asking import timed_answer
from distill.evaluation.compare import Comparison, check_reference, check_stored, compare
from distill.evaluation.figures import read_curve
from distill.labels.cached import Cached
from distill.labels.generate import by_source_image, label
from distill.system.environment import choose_device
from distill.system.progress import track


def run(cfg: DictConfig) -> Comparison:
    """Compares, writes the reports and prints the table."""
    rows = read_rows(cfg)
    names = [row.name for row in rows]
    reference = names[0] if cfg.reference is None else str(cfg.reference)
    check_reference(reference, names)
    curve = curve_of(cfg, student_files(cfg, rows))
    device = choose_device(cfg.device)
    metrics = metrics_of(cfg)
    matchers = build_rows(cfg, rows, device)
    benchmark: Benchmark = scored_pairs(cfg.data)
    with RunFolder.numbered(cfg) as folder:
        announce("compare", f"{len(benchmark)} {benchmark.split} pairs of {benchmark.name}", device, folder.path)
        check_stored(matchers, benchmark)
        timed = [row.name for row in rows if row.what == TEACHER]
        for name in timed:
            teacher = matchers[name]
            assert isinstance(teacher, Cached)
            label(teacher, benchmark, device, then=f" + {len(matchers)} matchers")
        then = " + teacher" if timed and cfg.teacher_pairs else ""
        keep = answers_to(folder, cfg.heatmaps)
        comparison = compare(
            matchers, benchmark, reference, cfg.batch_size, device, metrics=metrics, then=then, keep=keep
        )
        notes = (images_note(name, matcher, cfg.data) for name, matcher in matchers.items())
        comparison.notes.extend(note for note in notes if note is not None)
        for name in timed if cfg.teacher_pairs else []:
            chosen = of_several_sources(benchmark, cfg.teacher_pairs)
            cost = teacher_cost(instantiate(cfg.teacher), benchmark, chosen, device)
            comparison.evaluations[name].report.update(cost)
            comparison.notes.append(
                f"The teacher was timed on {len(chosen)} of the pairs, no two of one source image; the prompts of a source "
                "point serve further targets, which then cost less."
            )
        report(folder, comparison, benchmark, cfg.panels, cfg.browsed, curve)
        return comparison


def curve_of(cfg: DictConfig, students: list[str]) -> Path | None:
    """Returns the training curve to show: the one asked for, or that beside the first student that has one.

    Raises:
        DataError: when it cannot be read.
    """
    beside = (Path(path).parent / "metrics.jsonl" for path in students)
    curve = Path(cfg.curve) if cfg.curve is not None else next((file for file in beside if file.is_file()), None)
    if curve is not None:
        read_curve(curve)
    return curve


def of_several_sources(benchmark: Benchmark, n_pairs: int) -> list[int]:
    """Returns the numbers of up to ``n_pairs`` pairs, each of another source image; fewer where there are fewer of these."""
    groups = by_source_image(benchmark)
    return [group[0] for group in groups[:: max(1, len(groups) // n_pairs)][:n_pairs]]


def teacher_cost(
    teacher: Matcher | PairMatcher, benchmark: Benchmark, numbers: Sequence[int], device: str = "cpu"
) -> dict[str, float | int | None]:
    """Times a teacher whose caches are empty on some pairs, as the other matchers are: "latency_ms" per pair, and its "parameters"."""
    chosen = [benchmark[number] for number in numbers]
    parameters = getattr(teacher, "n_parameters", None)  # loads the weights, which is not to be timed
    teacher = on_device(teacher, device)
    seconds = [
        timed_answer(teacher, pairs, TEACHER, device)[1] for pairs in track(chosen, "time the teacher", unit="pairs")
    ]
    return {"latency_ms": round(1000 * sum(seconds) / len(chosen), 1), "parameters": parameters}
