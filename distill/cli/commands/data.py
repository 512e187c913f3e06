"""Describe, check, pair, convert or download a data set.

describe counts, draws a contact sheet with the keypoints and writes the list of pairs; check reads every file and names
what is missing, broken or ignored; pair writes a list in which each photograph meets those of its category that look most like it,
for train.pairs of fit, or data.pairs; convert writes the annotated points in the format of an annotation tool, of YOLO or of
SPair-71k; download fetches a benchmark from its official address into data.root.

Examples:
  python -m distill data
  python -m distill data data=shapes data.difficulty=hard run.dir=runs/hard
  python -m distill data check data=cub data.root=CUB_200_2011
  python -m distill data pair data=folder data.root=photos describer.weights=pretrained
  python -m distill data convert data=folder data.root=photos data.points=keypoints.json format=yolo_pose to=yolo
  python -m distill data download data=pf_willow data.root=PF-WILLOW
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from rich.progress import TaskID
from torch import Tensor

from distill.cli.config import instantiate
from distill.cli.datasets import check_common_points, n_without_common_points, scored_pairs
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError, DataError, nearest
from distill.core.files import new_folder
from distill.core.protocols import Benchmark
from distill.data.annotated_keypoints import annotated_keypoints, annotated_pairs, check_photographs, root_of
from distill.data.annotations import ImageAnnotation
from distill.data.broken_files import record
from distill.data.datasets.folder import FolderPairs, of_split
from distill.data.download import RECIPES, download
from distill.data.keypoint_files import check_format, write_keypoints
from distill.data.pair_list import pair_list
from distill.data.pair_mining import nearest_pairs
from distill.data.photograph_pairs import EmptySplit, NoPairs, PhotographPairs
from distill.data.spair_tree import write_spair_tree
from distill.evaluation.pictures import contact_sheet
from distill.system.progress import Shown, bar, track

T = TypeVar("T")

CHECK_CACHE_MIB = 64  # each photograph is read once or twice, so that keeping more of them serves nothing


def run(cfg: DictConfig) -> dict:
    """Runs the function of this module that ``action`` names; it prints its result, which is returned.

    Raises:
        ConfigError: when ``action`` names none.
    """
    actions = {"describe": describe, "check": check, "pair": pair, "convert": convert, "download": fetch}
    if cfg.action not in actions:
        raise ConfigError(f"Expected an action of data but got {cfg.action!r}; {nearest(cfg.action, actions)}.")
    return actions[cfg.action](cfg)


def describe(cfg: DictConfig) -> dict:
    """Prints and writes counts, draws the sheet, writes the list of pairs, and returns the counts."""
    benchmark = scored_pairs(cfg.data)
    with RunFolder.numbered(cfg) as folder:
        categories: Counter[str] = Counter()
        points: list[int] = []
        sheet = _Sheet(cfg.images)
        for number in track(range(len(benchmark)), "read"):
            pairs = benchmark[number]
            categories.update(pairs.category)
            points.append(int(pairs.kps_mask.sum()))
            sheet.add(pairs.src_hash[0], pairs.src_img[0], pairs.src_kps[0, pairs.kps_mask[0]])
            sheet.add(pairs.trg_hash[0], pairs.trg_img[0], pairs.trg_all_kps[0, pairs.trg_all_id[0] >= 0])
        description = {
            "data": benchmark.name,
            "split": benchmark.split,
            "threshold": benchmark.threshold,
            "pairs": len(benchmark),
            "images": len(sheet.seen),
            "points": sum(points),
            "points_per_pair": round(float(np.mean(points)), 2),
            "pairs_without_points": points.count(0),
            "pairs_per_category": dict(sorted(categories.items())),
        }
        if isinstance(benchmark, PhotographPairs):
            description |= {
                "sizes": _sizes(benchmark),  # which adds to what is skipped
                "pairs_fingerprint": benchmark.fingerprint(),
                "skipped": benchmark.skipped,
                "ignored": benchmark.ignored,
            }
            folder.write_text("pairs.csv", pair_list(benchmark.image_pairs()))
        folder.write_json("description.json", description)
        sheet.draw().save(folder / "contact_sheet.png")
        for key, value in description.items():
            print(f"{key}: {value}")
        if not getattr(benchmark, "has_truth", True):
            print("note: nothing is annotated; points are those of the source that a teacher is asked for")
        print(f"{folder / 'contact_sheet.png'} shows {sheet}")
        return description


class _Sheet:
    """Collects each photograph once, whether it is met as source or as target, up to ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: set[str] = set()
        self.shown: dict[str, tuple[Tensor, NDArray]] = {}

    def add(self, key: str, image: Tensor, points: Tensor) -> None:
        """Takes an image (3, H, W) with its known points (N, 2), and the most points that are seen of it."""
        self.seen.add(key)
        known = points[points.isfinite().all(-1)].numpy()
        if key in self.shown:
            if len(known) > len(self.shown[key][1]):
                self.shown[key] = image, known
        elif len(self.shown) < self.limit:
            self.shown[key] = image, known

    def draw(self) -> Image.Image:
        """Returns the sheet of the photographs that were added."""
        images, points = zip(*self.shown.values(), strict=True)
        return contact_sheet(images, points)

    def __str__(self) -> str:
        rest = f"; images={len(self.seen)} shows all" if len(self.shown) < len(self.seen) else ""
        return f"{len(self.shown)} of {len(self.seen)} photographs{rest}"


def _sizes(benchmark: PhotographPairs, most: int = 5) -> dict[str, int]:
    """Returns how many photographs have which size, the most frequent first; rarer ones are counted together."""
    photographs = _each_photograph(benchmark, lambda annotation: benchmark.read(annotation.path))
    sizes = Counter(photograph.original_size for _, photograph in photographs)
    common = {f"{width} x {height} px": count for (height, width), count in sizes.most_common(most)}
    others = sizes.total() - sum(common.values())
    return common | ({f"{len(sizes) - most} other sizes": others} if others else {})


def _each_photograph(
    benchmark: PhotographPairs, read: Callable[[ImageAnnotation], T]
) -> Iterator[tuple[ImageAnnotation, T]]:
    """Yields what is annotated in each photograph, and what ``read`` returns of it.

    A photograph or an annotation that is broken is left out and added to the data set's ``skipped`` where ``data.on_error`` is skip.

    Raises:
        DataError: where one is broken and ``data.on_error`` is raise.
    """
    broken: dict[str, str] = {}
    annotations = list(benchmark.image_annotations(broken))
    benchmark.leave_out(broken)
    for annotation in track(annotations, "read photographs"):
        found = record(broken, annotation.name, read, annotation)
        if found is not None:
            yield annotation, found
        else:
            benchmark.leave_out(broken)


def check(cfg: DictConfig) -> dict:
    """Reads every pair and photograph of a split, and prints what is wrong or ignored, file by file.

    Raises:
        DataError: when something is wrong.
    """
    settings = dict(cfg.data)
    if "root" in settings:  # all pairs of the files, and all that is wrong with them rather than the first
        settings |= {
            "n_pairs": None,
            "on_error": "skip",
            "cache_mib": min(settings.get("cache_mib", 0), CHECK_CACHE_MIB),
        }
    benchmark = scored_pairs(settings)
    problems: dict[str, str] = {}
    photographs = 0
    if isinstance(benchmark, PhotographPairs):
        problems = benchmark.skipped | benchmark.problems()
        photographs = _count_photographs(benchmark, problems)
        if not problems:
            apart = n_without_common_points(benchmark)
            if apart == len(benchmark):
                problems = _common_points_problem(benchmark)
            elif apart:
                print(
                    f"note: {apart} of the {len(benchmark)} pairs have no annotated part in common, and weigh nothing"
                )
    messages = list(dict.fromkeys(problems.values()))
    print(
        f"{benchmark.name} {benchmark.split}: {len(benchmark)} pairs and {photographs} photographs are in order, "
        f"{len(messages)} problems"
    )
    _print_ignored(getattr(benchmark, "ignored", {}))
    if isinstance(benchmark, FolderPairs) and benchmark.split == "all":
        print(_split_sizes(benchmark))
    for message in messages:
        print(f"problem: {message}")
    if messages:
        raise DataError(
            f"Expected nothing wrong with {benchmark.name} but found {len(messages)} problems; mend them, or leave their "
            "pairs out with data.on_error=skip."
        )
    return {"pairs": len(benchmark), "photographs": photographs, "problems": messages}


def _common_points_problem(benchmark: Benchmark) -> dict[str, str]:
    try:
        check_common_points(benchmark)
    except DataError as error:
        return {benchmark.name: str(error)}
    return {}


def _split_sizes(benchmark: FolderPairs) -> str:
    """Prints how many photographs ``fit`` uses for training, validation and testing."""
    train, val, test = (str(size) if size else "none" for size in benchmark.split_sizes().values())
    if val == "none":
        val = "the same"  # see FolderPairs
    if benchmark.has_truth:
        return f"fit uses {train} photographs for training, {val} for validation and {test} for testing"
    aside = "" if test == "none" else f"; {test} are set aside for a test, which needs annotated points"
    return f"fit uses {train} photographs for training and {val} for validation{aside}"


def _count_photographs(benchmark: PhotographPairs, problems: Mapping[str, str]) -> int:
    """Returns how many photographs have none of the ``problems``."""
    if benchmark.names is not None:
        return sum(name not in problems for name in benchmark.names)
    return sum(annotation.name not in problems for annotation in benchmark.image_annotations())


def _print_ignored(ignored: Mapping[str, str], most: int = 20) -> None:
    """Prints how many files and rows are no part of the data set, and the first of them with the reason."""
    if ignored:
        print(f"ignored: {len(ignored)} files or rows")
    for name, reason in list(ignored.items())[:most]:
        print(f"  {name}: {reason}")
    if len(ignored) > most:
        print(f"  and {len(ignored) - most} more")


def _print_left_out(broken: Mapping[str, str], most: int = 20) -> None:
    """Prints how many pairs and photographs data.on_error=skip left out, and the first of the reasons, each once."""
    messages = list(dict.fromkeys(broken.values()))
    if messages:
        print(f"left out: {len(broken)} pairs or photographs")
    for message in messages[:most]:
        print(f"  {message}")
    if len(messages) > most:
        print(f"  and {len(messages) - most} more reasons; data check names all")


def pair(cfg: DictConfig) -> dict:
    """Writes ``pairs.csv`` with each photograph of a split and its most similar ones; returns how many there are.

    Raises:
        ConfigError: for a data set that takes no list of pairs.
        DataError: when a photograph or an annotation is broken; data.on_error=skip leaves it out, and it is named.
    """
    if "pairs" not in cfg.data:
        raise ConfigError("Expected a data set that takes a list of pairs; choose data=folder or data=cub.")
    benchmark: PhotographPairs = instantiate(dict(cfg.data) | {"n_pairs": None, "pairs": None})
    describer = instantiate(cfg.describer)
    with RunFolder.numbered(cfg) as folder:
        names: list[str] = []
        categories: list[str] = []
        features: list[NDArray] = []
        if cfg.describer.get("weights", "") is None:
            print(
                f"note: the backbone {cfg.describer.backbone} is untrained, so it compares colour and texture more than content; "
                "describer.weights=pretrained loads trained weights"
            )
        for annotation, image in _each_photograph(benchmark, benchmark.image):
            with torch.no_grad():
                features.append(describer.describe(image.image[None])[0].mean((-2, -1)).numpy())
            names.append(annotation.name)
            categories.append(annotation.category)
        _print_left_out(benchmark.skipped)
        chosen = nearest_pairs(np.stack(features), categories, cfg.pairs_per_image)
        folder.write_text("pairs.csv", pair_list([(names[image], names[other]) for image, other in chosen]))
        print(f"{len(chosen)} pairs of {len(names)} photographs; train on them with train.pairs={folder / 'pairs.csv'}")
        return {"pairs": len(chosen), "photographs": len(names)}


def convert(cfg: DictConfig) -> dict:
    """Writes what is annotated in the format of another program; returns how many images or pairs that are.

    Raises:
        ConfigError: without a place to write to, or for data that are no photographs in a folder.
        DataError: when an annotation is broken or does not suit its photograph; data.on_error=skip leaves it out, and it is named.
    """
    if cfg.to is None:
        raise ConfigError("Expected a file or folder to write but got none; add to=<name>.")
    path = Path(cfg.to)
    check_format(cfg.format, path, "to")
    if cfg.format == "spair71k":
        benchmarks = _splits(cfg)
        images, pairs = annotated_pairs(benchmarks)
        with new_folder(path) as folder:
            found = {"pairs": write_spair_tree(images, pairs, folder, benchmarks[0].exif_orientation)}
    else:
        benchmark = _photographs(cfg.data)
        keypoints = annotated_keypoints(benchmark)
        splits = _yolo_splits(benchmark, keypoints)
        write_keypoints(keypoints, root_of(benchmark), path, cfg.format, splits, benchmark.exif_orientation)
        found = {"images": len(keypoints)}
        benchmarks = [benchmark]
    _print_left_out({name: why for benchmark in benchmarks for name, why in benchmark.skipped.items()})
    for what, number in found.items():
        print(f"{number} {what} in {path}")
    return found


def _photographs(data: Mapping[str, Any]) -> PhotographPairs:
    """Returns the data set, also where no two of its photographs can be paired: annotations are written one by one."""
    try:
        return check_photographs(scored_pairs(data))
    except NoPairs as error:
        return error.photographs


def _splits(cfg: DictConfig) -> list[PhotographPairs]:
    """Returns the pairs of the split that is asked for, or of each split that there is for "all"."""
    if cfg.data.get("split") != "all":
        return [check_photographs(scored_pairs(cfg.data))]
    found = []
    for split in ("train", "val", "test"):
        with contextlib.suppress(EmptySplit):
            found.append(check_photographs(scored_pairs(dict(cfg.data) | {"split": split})))
    return found


def _yolo_splits(benchmark: PhotographPairs, names: Iterable[str]) -> dict[str, str]:
    """Returns "train" or "val" by image: of a folder the photographs that fit validates or tests on are for "val".

    Photographs that a matcher was unsure of are for training: fit takes them for nothing.
    """
    if benchmark.split != "all":
        return dict.fromkeys(names, "train" if benchmark.split == "train" else "val")
    used = list(benchmark.names or ())
    held_out = set(used) - set(of_split(used, "train"))
    return {name: "val" if name in held_out else "train" for name in names}


def fetch(cfg: DictConfig) -> dict:
    """Downloads what has an address, and prints the licence, and what has to be done by hand.

    Raises:
        ConfigError: for a data set whose address is not known.
        DataError: see :func:`distill.data.download.download`.
    """
    target = cfg.data["_target_"]
    name = target.removeprefix("distill.data.datasets.").partition(".")[0]
    recipe = RECIPES.get(name) if target.startswith("distill.data.datasets.") else None
    if recipe is None:
        raise ConfigError(
            f"Expected a benchmark with a known address but there is no address of {target}; put its files where its "
            f"settings say, or choose data= among {', '.join(sorted(RECIPES))}."
        )
    print(f"licence: {recipe.licence}")
    files = []
    for source in recipe.sources:
        with bar(" bytes") as shown:
            task = shown.add_task(source.filename, total=None, note="")

            def show(done: int, total: int | None, to: Shown = shown, what: TaskID = task) -> None:
                to.update(what, completed=done, total=total)

            try:
                place = download(source, Path(cfg.data.root), show)
            except DataError as error:
                raise DataError(f"{error} By hand: {recipe.manual}") from error
        files.append(str(place))
        print(f"{source.url} -> {place}")
    print(f"by hand: {recipe.manual}")
    return {"files": files, "manual": recipe.manual}
