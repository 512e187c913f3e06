"""Ablation of a teacher's speed: the method in plain loops first, then the fast implementation, one increment at a time.

All variants run in one process, on the same weights, pairs and points.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Subset

from distill.core.errors import ConfigError
from distill.core.protocols import Benchmark, Matcher, PairMatcher, on_device
from distill.evaluation.evaluate import evaluate
from distill.metrics.pck import alpha_key
from distill.system.memory import PeakMemory, device_of

ALPHA = 0.10


class FirstPairs(Subset):
    """The first pairs of a benchmark, as a benchmark.

    Args:
        benchmark: the pairs.
        n_pairs: how many of them.

    Raises:
        ConfigError: unless there are at least ``n_pairs`` pairs, and ``n_pairs`` is at least 1.
    """

    def __init__(self, benchmark: Benchmark, n_pairs: int) -> None:
        if not 1 <= n_pairs <= len(benchmark):
            raise ConfigError(
                f"Expected a number of pairs between 1 and {len(benchmark)} to measure on but got {n_pairs}; "
                "change it or data.n_pairs."
            )
        super().__init__(benchmark, range(n_pairs))  # type: ignore[arg-type]
        self.name, self.split, self.threshold = benchmark.name, benchmark.split, benchmark.threshold


def variants(cfg: DictConfig) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yields name, configuration and number of pairs of every variant that ``cfg``, bench's, asks for.

    Increments add up: each variant has its own settings and those of all before it, on top of the paper's. There are reference and
    increments of the paper's method alone: other teachers have another kind of model, or none.
    """
    paper = _plain(cfg.paper)
    optimises = cfg.teacher._target_ == cfg.paper._target_
    if cfg.reference_pairs and optimises:
        yield "reference", paper | _plain(cfg.reference), cfg.reference_pairs
    if cfg.ablation and optimises:
        added: dict[str, Any] = {}
        for name, settings in _plain(cfg.increments).items():
            added |= settings
            yield name, paper | added, cfg.ablation_pairs
    yield "as configured", _plain(cfg.teacher), cfg.teacher_pairs


def planned(cfg: DictConfig, benchmark: Benchmark) -> list[tuple[str, dict[str, Any], FirstPairs]]:
    """Returns name, configuration and pairs of every variant.

    Raises:
        ConfigError: where ``benchmark`` has fewer pairs than a variant is measured on.
    """
    return [(name, config, FirstPairs(benchmark, n_pairs)) for name, config, n_pairs in variants(cfg)]


def _plain(node: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]


def measure(matcher: Matcher | PairMatcher, name: str, pairs: Benchmark, device: str = "cpu") -> dict[str, Any]:
    """Returns points per second, time and UNet passes per point, peak memory and PCK per image and per point of ``matcher`` on ``pairs``.

    The time is that of the answers alone, by the wall clock, read when they have reached the CPU.

    Args:
        matcher: newly built, so that its caches are empty. A torch module is moved to ``device``.
        name: of the variant.
        pairs: that are matched.
        device: where the pairs are sent.
    """
    before = getattr(matcher, "passes", None)  # loads the weights, which is not to be timed
    matcher = on_device(matcher, device)
    with PeakMemory(device_of(matcher, device)) as memory:
        evaluation = evaluate(matcher, pairs, name, batch_size=1, device=device, progress=False)
    report, seconds = evaluation.report, evaluation.answers.seconds
    points = report["n_points"]
    passes = None if before is None else round((getattr(matcher, "passes", 0) - before) / points, 1)
    return {
        "what": "teacher",
        "variant": name,
        "batch": 1,
        "per_second": round(points / seconds, 4),
        "latency_ms": round(1000 * seconds / report["n_pairs"], 1),
        "peak_memory_mib": memory.mib,
        f"pck@{alpha_key(ALPHA)}": report["pck"]["image"][alpha_key(ALPHA)],
        f"pck_point@{alpha_key(ALPHA)}": report["pck"]["point"][alpha_key(ALPHA)],
        "seconds_per_point": round(seconds / points, 3),
        "passes_per_point": passes,
        "points": points,
    }


def measure_variants(
    found: Iterable[tuple[str, dict[str, Any], FirstPairs]], build: Callable[[Any], Any], device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yields a row for each variant, as it is measured.

    Args:
        found: what :func:`planned` returns.
        build: makes a matcher from its configuration.
        device: see :func:`measure`.
    """
    for name, config, pairs in found:
        yield measure(build(config), name, pairs, device)
