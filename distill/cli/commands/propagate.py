"""Carry the points of one or a few annotated photographs to all others of a folder.

Each annotated photograph is matched with each other of its kind, and their answers vote. keypoints.json in the run's folder, in
COCO's format, has all points: those of a person as they were given, and the others with their confidence, the unsure ones
marked as not visible. review.html, which needs no server, shows the least sure points first: a click sets a point right, and
Save downloads corrections.json.

A word after the verb does something else: apply (write corrections into a COCO file, which is replaced at once), measure (hide
all but a few annotations of a folder, and count how many clicks bring PCK to the goal). After apply, propagate takes corrected
photographs as further sources, and fit learns from them with truth.points=.

Examples:
  python -m distill propagate root=photos points=keypoints.json ckpt=runs/fit/student.safetensors
  python -m distill propagate root=photos points=keypoints.json matcher=onnx file=student.onnx
  python -m distill propagate apply corrections=corrections.json annotations=runs/propagate/keypoints.json
  python -m distill propagate measure root=photos points=all_points.csv ckpt=runs/fit/student.safetensors
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.bench.clicks import Clicks, ClicksConfig, by_person, draws, mean_of, measure_clicks
from distill.cli.config import instantiate
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError, DataError, nearest
from distill.core.files import replacing
from distill.core.numbers import is_whole
from distill.data.coco import is_coco, read_coco_images, write_coco
from distill.data.datasets.folder import find_photographs
from distill.data.images import SUFFIXES, read_size
from distill.data.json_values import objects_in
from distill.data.keypoint_files import write_json
from distill.data.keypoints import ImageKeypoints, check_threshold
from distill.data.points_file import find_points_file, read_keypoints
from distill.data.readers import read_json
from distill.evaluation.review import check_review, review_page
from distill.labels.propagate import (
    Carried,
    Plan,
    PropagateConfig,
    Propagator,
    lacking_parts,
    persons_points,
    plan,
)
from distill.matchers.match_images import LARGEST_SIZE
from distill.system.environment import choose_device, describe
from distill.system.progress import track
from distill.system.tables import print_table


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs the function of this module that ``action`` names; returns what it wrote or measured.

    Raises:
        ConfigError: when ``action`` names none.
    """
    actions = {"make": make, "apply": apply, "measure": measure}
    if cfg.action not in actions:
        raise ConfigError(
            f"Expected a word after propagate but got {cfg.action!r}; {nearest(str(cfg.action), actions)}."
        )
    return actions[cfg.action](cfg)


def make(cfg: DictConfig) -> dict[str, Any]:
    """Carries the points, and writes keypoints.json and the review page; returns the former's content.

    Raises:
        ConfigError: for settings that cannot work, and what :func:`inputs` raises.
        DataError: when none of the photographs can be read, or the COCO file of the points cannot be added to.
    """
    check_threshold(cfg.unsure)
    check_review(cfg.review.count, cfg.review.side)
    config = propagate_config(cfg)
    root, file, names, known = inputs(cfg)
    base = _base(file)
    todo, device = plan(names, known, list(map(str, cfg.new_parts))), choose_device(cfg.device)
    for part, without in lacking_parts(names, known, todo).items():
        print(
            f"note: {len(without)} photographs such as {without[0]} have no {part}; new_parts=[{part}] carries it to them, too"
        )
    matcher = instantiate(cfg.matcher)
    with RunFolder.numbered(cfg) as folder:
        announce("propagate", _counted(todo), device, folder.path)
        carried: list[Carried] = []
        for found in track(Propagator(matcher, root, known, todo, config, device), "propagate", unit="photos"):
            if isinstance(found, DataError):
                print(f"left out: {found}")
            else:
                carried.append(found)
        if not carried:
            raise DataError(
                f"Expected photographs that can be read in {root} but none of {len(todo.wanted)} can; see above."
            )
        images = known | {found.name: with_carried(known.get(found.name), found, todo, cfg.unsure) for found in carried}
        content = write_coco(images, base)
        folder.write_json("keypoints.json", content)
        if cfg.review.count:
            page, unread = review_page(root, images, content, cfg.review.count, cfg.review.side)
            for error in unread:
                print(f"left out of the review: {error}")
            print(f"review: {folder.write_text('review.html', page)}")
    tell(folder, carried, cfg.unsure)
    return content


def propagate_config(cfg: DictConfig) -> PropagateConfig:
    """Returns how points are carried.

    Raises:
        ConfigError: for settings that cannot work.
    """
    if cfg.size is not None and cfg.size > LARGEST_SIZE:
        raise ConfigError(
            f"Expected size, the side in px, of at most {LARGEST_SIZE} but got {cfg.size}; give that of the student."
        )
    if cfg.sources is not None and not is_whole(cfg.sources):
        raise ConfigError(f"Expected sources as a whole number, or null for all, but got {cfg.sources}.")
    names = ("size", "resize", "sources", "vote_sigma", "cycle_tolerance", "batch_size")
    return PropagateConfig(**{name: cfg[name] for name in names})


def inputs(cfg: DictConfig) -> tuple[Path, Path, list[str], dict[str, ImageKeypoints]]:
    """Returns the folder, the file of points, the photographs' names, and what the file says of them, each with its size.

    Photographs without a person's points that cannot be read are left out, and told.

    Raises:
        ConfigError: when one is not given.
        DataError: when it cannot be read, or says that an annotated photograph has another size than it has.
    """
    if cfg.root is None:
        raise ConfigError("Expected a folder of photographs but got none; add root=<folder>.")
    root = Path(cfg.root)
    names = _photographs(root)
    file = find_points_file(root, cfg.points)
    if file is None:
        raise ConfigError(
            f"Expected points of one or a few photographs of {root} but there are none; add points=<file>."
        )
    known = read_keypoints(file, names, root).images
    unread = set()
    for name, image in known.items():
        if persons_points(image):
            image.size = _checked_size(root / name, image.size, file)
            continue
        try:
            image.size = image.size or read_size(root / name)
        except DataError as error:
            print(f"left out: {error}")
            unread.add(name)
    names = [name for name in names if name not in unread]
    return root, file, names, {name: image for name, image in known.items() if name not in unread}


def _photographs(root: Path) -> list[str]:
    """Returns the names of photographs in a folder, and tells of those that are left out."""
    names, ignored = find_photographs(root, "root")
    left_out = {name: why for name, why in ignored.items() if Path(name).suffix.lower() in SUFFIXES}
    if left_out:
        name, why = next(iter(left_out.items()))
        print(f"left out: {len(left_out)} photographs of the folder, such as {name} ({why})")
    return names


def _checked_size(path: Path, said: tuple[int, int] | None, file: Path) -> tuple[int, int]:
    """Returns height, width of an annotated photograph; points of one of another size would be elsewhere in it."""
    height, width = read_size(path)
    if said not in (None, (height, width)):
        raise DataError(
            f"Expected {path} of {said[1]} x {said[0]} px, as {file} says, but it has {width} x {height} px as viewers show "
            "it; annotate the photograph as it is."
        )
    return height, width


def with_carried(old: ImageKeypoints | None, found: Carried, todo: Plan, unsure: float) -> ImageKeypoints:
    """Returns what is known of a photograph, with the points that were carried to it in place of a matcher's earlier ones of them."""
    image = ImageKeypoints({}, size=found.size, category=todo.category[todo.group[found.name]])
    if old is not None:
        image.bbox, image.hidden = old.bbox, old.hidden
        image.points, image.confidence = dict(old.points), dict(old.confidence)
    for part, (x, y), confidence in zip(found.parts, found.points.tolist(), found.confidence.tolist(), strict=True):
        image.points[part] = round(x, 2), round(y, 2)
        image.confidence[part] = round(confidence, 4)
    image.unsure = frozenset(part for part, value in image.confidence.items() if value < unsure)
    return image


def apply(cfg: DictConfig) -> dict[str, Any]:
    """Writes corrections into a COCO file, which is replaced at once; returns its new content.

    Raises:
        ConfigError: when one of the files is not given.
        DataError: when one is no COCO file, they are not of the same photographs, or a point lies outside of its own.
    """
    for key in ("corrections", "annotations"):
        if cfg[key] is None:
            raise ConfigError(f"Expected a file of {key} but got none; add {key}=<file>.")
    target = Path(cfg.annotations)
    sizes = read_json(target, _coco_sizes, "COCO keypoints", "give the file that propagate wrote")
    images = read_json(
        Path(cfg.corrections), lambda c: read_coco_images(_coco(c), sizes), "corrections", "save them again"
    )
    for name, image in images.items():
        if image.size is None or image.size != sizes[name]:
            raise DataError(
                f"Expected corrections of {name} as it is in {target} but its size is another; propagate again."
            )
        _check_inside(name, image, image.size)
    content = read_json(target, lambda c: write_coco(images, c), "COCO keypoints", "give the file that propagate wrote")
    with replacing(target) as unfinished:
        write_json(unfinished, content)
    corrected = sum(len(image.points) - len(image.confidence) for image in images.values())
    print(f"{len(images)} photographs with {corrected} points that a person set or confirmed, in {target}")
    return content


def _check_inside(name: str, image: ImageKeypoints, size: tuple[int, int]) -> None:
    """Refuses points outside a photograph of ``size``, height and width in px, which could not be carried from there."""
    height, width = size
    for part, (x, y) in image.points.items():
        if not (0 <= x <= width and 0 <= y <= height):
            raise DataError(
                f"Expected all points of {name} inside its {width} x {height} px but {part} is at ({x:g}, {y:g}); correct it."
            )


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Hides all but a few annotations of each kind, carries their points, and prints what corrections are left.

    Raises:
        ConfigError: for settings that cannot work.
        DataError: when a person annotated no photograph, too few of a kind, or no two of a kind with a part in common.
    """
    carrying, chosen = propagate_config(cfg), cfg.measure
    names = ("annotated", "kinds", "goal", "alpha", "seed")
    config = ClicksConfig(**{name: chosen[name] for name in names})
    root, file, _, known = inputs(cfg)
    by_kind: dict[str, dict[str, ImageKeypoints]] = defaultdict(dict)
    for name, image in sorted(by_person(known).items()):
        by_kind[name.rpartition("/")[0]][name] = image
    if not by_kind:
        raise DataError(
            f"Expected photographs with points that a person set in {file} but there are none; annotate some."
        )
    kinds = sorted(by_kind)[: config.kinds]
    plans = {kind: draws(by_kind[kind], config) for kind in kinds}
    matcher, device = instantiate(cfg.matcher), choose_device(cfg.device)
    with RunFolder.numbered(cfg) as folder:
        announce("propagate measure", f"{len(kinds)} kinds", device, folder.path)
        rows: list[Clicks] = []
        for kind in track(kinds, "measure", unit="kinds"):
            rows += measure_clicks(matcher, root, by_kind[kind], plans[kind], carrying, config, device)
        means = list(mean_of(rows).values())
        if not means:
            raise DataError(
                f"Expected photographs of a kind that show a part in common in {file} but none of {len(kinds)} kinds has any; "
                "name the same parts in several photographs."
            )
        content = {
            "goal": config.goal,
            "alpha": config.alpha,
            "mean": list(map(asdict, means)),
            "kinds": list(map(asdict, rows)),
        }
        folder.write_json("clicks.json", content | {"environment": describe()})
    tell_clicks(rows, means, config)
    print(folder / "clicks.json")
    return content


def tell_clicks(rows: Sequence[Clicks], means: Sequence[Clicks], config: ClicksConfig) -> None:
    """Prints the means, and which kinds are in none of them."""
    for row in rows:
        if not row.scored:
            print(
                f"left out: {row.kind or 'the folder'} with {row.annotated} annotated, whose parts no other photograph shows"
            )
    headers = ["annotated", "photographs", "carried %", f"PCK@{config.alpha:.2f}", "clicks a photograph", "looked at %"]
    cells = [
        [m.annotated, m.photographs, *(f"{v:.1f}" for v in (m.carried, m.pck, m.clicks, m.looked_at))] for m in means
    ]
    n_kinds = len({row.kind for row in rows if row.scored})
    print_table(headers, [list(map(str, row)) for row in cells], f"{n_kinds} kinds, corrected to {config.goal:g} %")


def tell(folder: RunFolder, carried: list[Carried], unsure: float) -> None:
    """Prints how sure the points are, and what was written."""
    values = [value for found in carried for value in found.confidence.tolist()]
    low = sum(value < unsure for value in values)
    print(f"{len(values)} points in {len(carried)} photographs, {low} of them unsure; {folder / 'keypoints.json'}")


def _counted(todo: Plan) -> str:
    annotated = sum(map(len, todo.sources.values()))
    return f"{annotated} annotated photographs of {len(todo.sources)} kinds to {len(todo.wanted)} others"


def _base(file: Path) -> Mapping[str, Any] | None:
    """Returns the content of a COCO file, whose other entries are kept; None for another format.

    Raises:
        DataError: when it cannot be added to, such as for an image without a name: what has no keypoints is not read before.
    """
    if file.suffix.lower() != ".json":
        return None

    def parse(content: Any) -> Mapping[str, Any] | None:
        """Returns ``content`` where it is COCO's."""
        if not is_coco(content):
            return None
        write_coco({}, content)
        return content

    return read_json(file, parse, "COCO keypoints", "correct it")


def _coco_sizes(content: Any) -> dict[str, tuple[Any, Any]]:
    """Returns height and width as a COCO file says them of each image, by its name."""
    entries = objects_in(_coco(content)["images"], "images")
    return {str(entry.get("file_name")): (entry.get("height"), entry.get("width")) for entry in entries}


def _coco(content: Any) -> dict[str, Any]:
    if not is_coco(content):
        raise ValueError("it has no images, annotations and categories")
    return content
