"""Measure the PCK of one matcher on a benchmark.

Prints the figures and writes them to metrics.json, and all answers to predictions.npz; matcher=predictions scores these again
without the matcher. Any matcher will do: a student (ckpt=), an ONNX file (file=), the
teacher itself, stored labels, a baseline.

Examples:
  python -m distill evaluate ckpt=runs/fit/student.safetensors
  python -m distill evaluate matcher=onnx file=runs/fit/student.onnx data.n_pairs=100 run.dir=runs/onnx
  python -m distill evaluate matcher=predictions file=runs/onnx/predictions.npz data.n_pairs=100 run.dir=runs/again
  python -m distill evaluate matcher=box_relative data=cub data.root=CUB_200_2011 run.dir=runs/boxes
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from omegaconf import DictConfig

from distill.cli.config import instantiate
from distill.cli.datasets import scored_pairs
from distill.cli.further_metrics import metrics_of
from distill.cli.reporting import announce, images_note
from distill.cli.run_folder import RunFolder
from distill.core.protocols import UsesPromptCache, on_device
from distill.evaluation.evaluate import Evaluation, check_annotated, evaluate
from distill.system.environment import choose_device, describe


def run(cfg: DictConfig, prompts: MutableMapping[Any, Any] | None = None) -> Evaluation:
    """Evaluates, writes ``metrics.json`` and prints the figures.

    Args:
        cfg: the configuration.
        prompts: where a matcher that optimises prompts keeps them, so that several evaluations share them.
    """
    device, name = choose_device(cfg.device), matcher_name(cfg.matcher)
    matcher = on_device(instantiate(cfg.matcher), device)
    if prompts is not None and isinstance(matcher, UsesPromptCache):
        matcher.use_prompt_cache(prompts)
    benchmark, metrics = scored_pairs(cfg.data), metrics_of(cfg)
    check_annotated(benchmark)
    with RunFolder.numbered(cfg) as folder:
        announce(
            "evaluate", f"{name} on {len(benchmark)} {benchmark.split} pairs of {benchmark.name}", device, folder.path
        )
        result = evaluate(matcher, benchmark, name, cfg.batch_size, device, metrics=metrics)
        folder.write_json("metrics.json", result.report | {"environment": describe()})
        result.answers.write(folder / "predictions.npz", cfg.heatmaps)
    tell(result.report)
    note = images_note(name, matcher, cfg.data)
    if note is not None:
        print(f"note: {note}")
    print(folder / "metrics.json")
    return result


def tell(report: Mapping[str, Any]) -> None:
    """Prints the most important figures of a report."""
    counts = f"{report['n_pairs']} pairs, {report['n_points']} points"
    print(f"{report['data']} {report['split']}, {counts}, threshold {report['threshold']}")
    for average in ("image", "point"):
        figures = "  ".join(f"@{alpha} {value:5.1f}" for alpha, value in report["pck"][average].items())
        print(f"PCK per {average:<5}  {figures}")
    for metric, value in report.get("metrics", {}).items():
        print(f"{metric}  {value}")
    print(f"{report['latency_ms']:.1f} ms per pair")


def matcher_name(matcher: DictConfig) -> str:
    """Returns what figures call a matcher: the class that builds it, and "student" where a function ``load_student`` does."""
    return str(matcher["_target_"]).rpartition(".")[2].removeprefix("load_")
