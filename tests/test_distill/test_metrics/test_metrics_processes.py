"""Metrics over two processes: uneven shares, and a process that has nothing."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from distill.metrics.geometry_aware import GeometryAwarePCK
from distill.metrics.pck import PCK
from distill.metrics.pck_dagger import PCKDagger

NAMES = ["cat", "dog", "cat", "cow", "dog", "cat"]
TWINS = {"": [(0, 1)], "cow": []}


def scenario():
    random = np.random.default_rng(5)
    truth = random.uniform(0, 100, (6, 4, 2))
    predicted = truth + random.normal(0, 12, truth.shape)
    mask = random.random((6, 4)) < 0.8
    mask[3] = False
    ids = np.tile(np.arange(4), (6, 1))
    return predicted, truth, mask, random.uniform(40, 120, 6), ids


def computed(rows) -> dict:
    """Returns what all metrics say after the pairs ``rows`` were added one by one in this process."""
    predicted, truth, mask, base, ids = map(torch.tensor, scenario())
    metrics = {
        "pck": PCK([0.05, 0.1]),
        "dagger": PCKDagger(0.1),
        "geometry_aware": GeometryAwarePCK(TWINS, [0.1]),
    }
    for row in rows:
        one = slice(row, row + 1)
        scored = predicted[one], truth[one], mask[one], base[one]
        metrics["pck"].update(*scored)
        metrics["dagger"].update(*scored)
        metrics["geometry_aware"].update(*scored, ids[one], ids[one], NAMES[one])
    return {name: metric.compute() for name, metric in metrics.items()}


def work(rank: int, shares: list, folder) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(computed(shares[rank])))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4], [5]], [[], [0, 1, 2, 3, 4, 5]]], ids=["uneven", "one is empty"])
def test_two_processes_say_what_one_says(tmp_path, shares):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, shares, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    expected = json.loads(json.dumps(computed(range(6))))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert _flat(found) == pytest.approx(_flat(expected), nan_ok=True)


def _flat(figures: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in figures.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def test_each_metric_agrees_with_loops():
    predicted, truth, mask, base, _ = scenario()
    found = computed(range(6))
    distance = np.sqrt(((predicted - truth) ** 2).sum(-1))
    rows = [r for r in range(6) if mask[r].any()]
    shares = [np.mean([distance[r, n] <= 0.1 * base[r] for n in range(4) if mask[r, n]]) for r in rows]
    hits = [distance[r, n] <= 0.1 * base[r] for r in rows for n in range(4) if mask[r, n]]
    assert found["pck"]["image"]["0.10"] == pytest.approx(100 * np.mean(shares))
    assert found["pck"]["point"]["0.10"] == pytest.approx(100 * np.mean(hits))
    twins = [
        distance[r, n] <= 0.1 * base[r]
        for r in range(6)
        for n in (0, 1)
        if mask[r, n] and NAMES[r] != "cow"  # all four parts are annotated in every target
    ]
    assert found["geometry_aware"]["point"]["0.10"] == pytest.approx(100 * np.mean(twins))
    outcomes = dict.fromkeys(("right", "jitter", "swap", "miss"), 0)
    for r in range(6):
        known = [n for n in range(4) if mask[r, n]]
        for n in known:
            to = {m: np.hypot(*(predicted[r, n] - truth[r, m])) for m in known}
            nearest, close = min(to, key=to.get) == n, min(to.values()) <= 0.1 * base[r]
            outcomes[{(1, 1): "right", (1, 0): "jitter", (0, 1): "swap", (0, 0): "miss"}[nearest, close]] += 1
    assert found["dagger"] == pytest.approx({k: 100 * v / mask.sum() for k, v in outcomes.items()})
