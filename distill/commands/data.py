"""Describe a data set, and draw a contact sheet of it with its keypoints.

Examples:
  python -m distill data
  python -m distill data data=shapes data.difficulty=hard run.dir=runs/hard
  python -m distill data data=cub data.root=CUB_200_2011 run.dir=runs/cub
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from distill.config import instantiate
from distill.evaluation import Benchmark
from distill.pictures import contact_sheet
from distill.progress import track
from distill.run import RunFolder


def run(cfg: DictConfig) -> dict:
    """Prints and writes counts, draws the sheet, and returns the counts."""
    benchmark: Benchmark = instantiate(cfg.data)
    folder = RunFolder.create(cfg)
    categories: Counter[str] = Counter()
    points: list[int] = []
    seen: set[str] = set()
    images: list[Tensor] = []
    keypoints: list[NDArray] = []
    for number in track(range(len(benchmark)), "read"):
        pairs = benchmark[number]
        categories.update(pairs.category)
        points.append(int(pairs.kps_mask.sum()))
        if pairs.src_hash[0] not in seen and len(images) < cfg.images:
            images.append(pairs.src_img[0])
            keypoints.append(pairs.src_kps[0, pairs.kps_mask[0]].numpy())
        seen.update(pairs.src_hash + pairs.trg_hash)
    description = {
        "data": benchmark.name,
        "split": benchmark.split,
        "threshold": benchmark.threshold,
        "pairs": len(benchmark),
        "images": len(seen),
        "points": sum(points),
        "points_per_pair": round(float(np.mean(points)), 2),
        "pairs_without_points": points.count(0),
        "pairs_per_category": dict(sorted(categories.items())),
    }
    folder.write_json("description.json", description)
    contact_sheet(images, keypoints).save(folder / "contact_sheet.png")
    for key, value in description.items():
        print(f"{key}: {value}")
    print(folder / "contact_sheet.png")
    return description
