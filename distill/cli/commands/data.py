"""Describe, check, pair or download a data set.

describe counts, draws a contact sheet with the keypoints and writes the list of pairs; check reads every file and names
what is missing or broken; pair writes a list in which each photograph meets those of its category that look most like it,
for train.pairs of fit, or data.pairs; download fetches a benchmark from its official address into data.root.

Examples:
  python -m distill data
  python -m distill data data=shapes data.difficulty=hard run.dir=runs/hard
  python -m distill data check data=cub data.root=CUB_200_2011
  python -m distill data pair data=folder data.root=photos describer.weights=pretrained
  python -m distill data download data=pf_willow data.root=PF-WILLOW
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.progress import Progress, TaskID
from torch import Tensor

from distill.cli.config import instantiate
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError, DataError, nearest
from distill.core.protocols import Benchmark
from distill.data.download import RECIPES, download
from distill.data.pair_list import pair_list
from distill.data.pair_mining import nearest_pairs
from distill.data.photograph_pairs import PhotographPairs
from distill.evaluation.pictures import contact_sheet
from distill.system.progress import bar, track


def run(cfg: DictConfig) -> dict:
    """Does what ``action`` says, prints what it found, and returns it."""
    actions = {"describe": describe, "check": check, "pair": pair, "download": fetch}
    if cfg.action not in actions:
        raise ConfigError(f"Expected an action of data but got {cfg.action!r}; {nearest(cfg.action, actions)}.")
    return actions[cfg.action](cfg)


def describe(cfg: DictConfig) -> dict:
    """Prints and writes counts, draws the sheet, writes the list of pairs, and returns the counts."""
    benchmark: Benchmark = instantiate(cfg.data)
    folder = RunFolder.numbered(cfg)
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
    if isinstance(benchmark, PhotographPairs):
        description |= {"pairs_fingerprint": benchmark.fingerprint(), "skipped": benchmark.skipped}
        folder.write_text("pairs.csv", pair_list(benchmark.pairs))
    folder.write_json("description.json", description)
    contact_sheet(images, keypoints).save(folder / "contact_sheet.png")
    for key, value in description.items():
        print(f"{key}: {value}")
    print(folder / "contact_sheet.png")
    return description


def check(cfg: DictConfig) -> dict:
    """Reads every pair and photograph of a split, and prints what is wrong, file by file.

    Raises:
        DataError: when something is.
    """
    settings = dict(cfg.data)
    if "root" in settings:  # all pairs of the files, and all that is wrong with them rather than the first
        settings |= {"n_pairs": None, "on_error": "skip"}
    benchmark: Benchmark = instantiate(settings)
    problems: dict[str, str] = {}
    photographs = 0
    if isinstance(benchmark, PhotographPairs):
        problems = benchmark.skipped | benchmark.problems()
        photographs = sum(1 for _ in benchmark.image_annotations())
    messages = list(dict.fromkeys(problems.values()))
    print(
        f"{benchmark.name} {benchmark.split}: {len(benchmark)} pairs and {photographs} photographs are in order, "
        f"{len(messages)} problems"
    )
    for message in messages:
        print(f"problem: {message}")
    if messages:
        raise DataError(
            f"Expected nothing wrong with {benchmark.name} but found {len(messages)} problems; mend them, or leave their "
            "pairs out with data.on_error=skip."
        )
    return {"pairs": len(benchmark), "photographs": photographs, "problems": messages}


def pair(cfg: DictConfig) -> dict:
    """Writes ``pairs.csv`` with each photograph of a split and its most similar ones; returns how many there are.

    Raises:
        ConfigError: for a data set that takes no list of pairs.
    """
    if "pairs" not in cfg.data:
        raise ConfigError("Expected a data set that takes a list of pairs; choose data=folder or data=cub.")
    benchmark: PhotographPairs = instantiate(dict(cfg.data) | {"n_pairs": None, "pairs": None})
    describer = instantiate(cfg.describer)
    folder = RunFolder.numbered(cfg)
    names: list[str] = []
    categories: list[str] = []
    features: list[NDArray] = []
    for annotation in track(list(benchmark.image_annotations()), "look"):
        image = benchmark.image(annotation)
        with torch.no_grad():
            features.append(describer.describe(image.image[None])[0].mean((-2, -1)).numpy())
        names.append(annotation.name)
        categories.append(annotation.category)
    chosen = nearest_pairs(np.stack(features), categories, cfg.pairs_per_image)
    folder.write_text("pairs.csv", pair_list([(names[image], names[other]) for image, other in chosen]))
    print(f"{len(chosen)} pairs of {len(names)} photographs; train on them with train.pairs={folder / 'pairs.csv'}")
    return {"pairs": len(chosen), "photographs": len(names)}


def fetch(cfg: DictConfig) -> dict:
    """Downloads what has an address, and prints what has to be done by hand."""
    name = cfg.data["_target_"].split(".")[-2]
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"Expected a benchmark with a known address but got {name}; {nearest(name, RECIPES)}.")
    files = []
    for source in recipe.sources:
        with bar(" bytes") as shown:
            task = shown.add_task(source.filename, total=None, note="")

            def show(done: int, total: int | None, to: Progress = shown, what: TaskID = task) -> None:
                to.update(what, completed=done, total=total)

            place = download(source, Path(cfg.data.root), show)
        files.append(str(place))
        print(f"{source.url} -> {place}")
    print(f"by hand: {recipe.manual}")
    return {"files": files, "manual": recipe.manual}
