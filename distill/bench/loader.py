"""Benchmark of data loading, by the number of loading processes."""

import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from distill.core.protocols import Benchmark
from distill.data.pairs import collate_pairs
from distill.system.memory import process_peak_mib


def loader_rates(make: Callable[[], Benchmark], workers: Sequence[int] = (0, 1, 2), batch: int = 8) -> list[dict]:
    """Loads all pairs twice with each number of processes, and times both passes.

    What was decoded in the first pass is kept, so that the second shows what every later epoch costs.

    Args:
        make: builds the pairs, anew for each number of processes.
        workers: numbers of processes; 0 loads in the training process.
        batch: pairs at a time.

    Returns:
        A row for each number of processes and each pass: "what", "variant", "batch", "threads", "per_second" (pairs),
        "latency_ms" (of a batch), "peak_memory_mib" (of the training process so far).
    """
    rows = []
    for number in workers:
        benchmark = make()
        loader: DataLoader = DataLoader(
            cast(Dataset, benchmark),
            batch,
            collate_fn=collate_pairs,
            num_workers=number,
            persistent_workers=number > 0,
            multiprocessing_context="fork" if number else None,  # forked processes share what is decoded
        )
        for name in ("first pass", "second pass"):
            start = time.perf_counter()
            batches = sum(1 for _ in loader)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "what": "loader",
                    "variant": f"{benchmark.name}, {number} workers, {name}",
                    "batch": batch,
                    "threads": torch.get_num_threads(),
                    "per_second": round(len(benchmark) / seconds, 2),
                    "latency_ms": round(1000 * seconds / batches, 2),
                    "peak_memory_mib": process_peak_mib(),
                }
            )
    return rows
