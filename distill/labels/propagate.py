"""Carrying points of annotated photographs to all others of their kind, by a matcher and a vote of the sources.

Each annotated photograph is a source. For a target and a part, each source that shows the part gives one answer. Its weight is
the matcher's confidence times the cycle consistency exp(-d^2 / (2 tolerance^2)), d being the distance between the point and what
the answer is matched back to, as a fraction of the source's side. The geometric mean of it and its mean over all parts of the
source is taken, so that a source that suits the target as a whole, such as one with the same view, weighs more than one that does
not. The answers are combined by a robust weighted vote (:mod:`distill.core.vote`), whose confidence falls with every source that disagrees.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.geometry import gaussian_weight, image_size
from distill.core.protocols import Matcher, PairMatcher, match, on_device
from distill.core.types import PairBatch
from distill.core.vote import vote
from distill.data.keypoints import ImageKeypoints
from distill.data.pairs import AnnotatedImage, collate_pairs, exchanged, make_pair, to_device, to_original
from distill.data.photographs import PhotographReader, check_resize
from distill.matchers.match_images import square_for


@dataclass(frozen=True)
class PropagateConfig:
    """How points are carried.

    Attributes:
        size: side that photographs are resized to, px; None for what the matcher was trained at, or 128.
        resize: "squash" or "letterbox"; None for what the matcher was trained on, or "squash".
        sources: the most annotated photographs that vote on a target, the first ones that show what it lacks; None for all.
        vote_sigma: how far answers may lie apart that mean the same place, as a fraction of the target's longer side.
        cycle_tolerance: of the cycle consistency, as a fraction of the side; None leaves it out, which halves the work.
        batch_size: pairs at a time.

    Raises:
        ConfigError: for an amount that is not positive, or an unknown way to resize.
    """

    size: int | None = None
    resize: str | None = None
    sources: int | None = None
    vote_sigma: float = 0.05
    cycle_tolerance: float | None = 0.1
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_resize(self.resize)
        amounts = {name: value for name, value in vars(self).items() if name != "resize"}
        wrong = {name: value for name, value in amounts.items() if value is not None and value <= 0}
        if wrong:
            raise ConfigError(f"Expected positive amounts for propagate but got {wrong}; correct them.")


class Plan(NamedTuple):
    """What is carried where.

    Attributes:
        sources: names of annotated photographs, by the name of the group that they serve.
        wanted: parts that each other photograph lacks, by its name.
        group: of each photograph, its sub-folder, or "" for photographs that lie directly in the folder.
        category: of each group.
    """

    sources: dict[str, list[str]]
    wanted: dict[str, list[str]]
    group: dict[str, str]
    category: dict[str, str]


def plan(names: Sequence[str], known: Mapping[str, ImageKeypoints], new_parts: Sequence[str] = ()) -> Plan:
    """Returns what is carried where: to each photograph the parts that no person has set, of those its group has.

    A photograph that the file names lacks what a matcher set in it; parts that a person left out of it are not visible there.

    Args:
        names: of the photographs, relative to their folder.
        known: what is annotated, or was set by a matcher.
        new_parts: that photographs of the file lack because they are annotated only now; no person left them out.

    Raises:
        ConfigError: when no person's points are of one of the new parts.
        DataError: when no photograph has a person's points, all do, or those of one group, with those that points are
            carried to, are of several categories.
    """
    group = {name: name.rpartition("/")[0] for name in names}
    sources: dict[str, list[str]] = defaultdict(list)
    parts: dict[str, list[str]] = defaultdict(list)
    category: dict[str, str] = {}
    for name in names:
        own = persons_points(known[name]) if name in known else {}
        if not own:
            continue
        folder = group[name]
        sources[folder].append(name)
        parts[folder] += [part for part in own if part not in parts[folder]]
        category.setdefault(folder, known[name].category)
        _check_category(name, known[name], category[folder])
    check_new_parts(new_parts, parts)
    wanted = {}
    for name in names:
        lacking = parts[group[name]]
        if name in known:
            new = set(new_parts) - known[name].points.keys()
            lacking = [part for part in lacking if part in known[name].confidence or part in new]
        if lacking and sources[group[name]] != [name]:
            wanted[name] = lacking
            if name in known:  # of another category it would get a second object for the new points
                _check_category(name, known[name], category[group[name]])
    if not sources:
        raise DataError("Expected photographs with points that a person set but there are none; annotate one.")
    if not wanted:
        raise DataError(
            "Expected photographs that lack points but all have them, or are of kinds without an annotated one."
        )
    return Plan(dict(sources), wanted, group, category)


def check_new_parts(new_parts: Sequence[str], parts: Mapping[str, Sequence[str]]) -> None:
    """Raises a :class:`ConfigError` unless each of ``new_parts`` is one of the ``parts`` of a group."""
    known = {part: None for own in parts.values() for part in own}
    for part in new_parts:
        if part not in known:
            raise ConfigError(
                f"Expected new_parts that a person annotated but got {part!r}; {nearest(part, list(known))}."
            )


def lacking_parts(names: Sequence[str], known: Mapping[str, ImageKeypoints], todo: Plan) -> dict[str, list[str]]:
    """Returns the photographs that a matcher filled without it, by part of their group, where nothing is carried either."""
    shown: dict[str, set[str]] = defaultdict(set)
    for group, sources in todo.sources.items():
        shown[group] = {part for source in sources for part in persons_points(known[source])}
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name in known and known[name].confidence:
            for part in sorted(shown[todo.group[name]] - known[name].points.keys() - set(todo.wanted.get(name, ()))):
                found[part].append(name)
    return dict(found)


def _check_category(name: str, image: ImageKeypoints, category: str) -> None:
    """Refuses a photograph that is of another category than an annotated one of its group."""
    if image.category != category:
        raise DataError(
            f"Expected one category in {name.rpartition('/')[0] or 'the folder'} but {name} is a {image.category} and another "
            f"is a {category}; make a sub-folder for each category, or correct its name in the file of points."
        )


def persons_points(image: ImageKeypoints) -> dict[str, tuple[float, float]]:
    """Returns the points of an image that no matcher set."""
    return {part: point for part, point in image.points.items() if part not in image.confidence}


class Carried(NamedTuple):
    """The points that were carried to one photograph.

    Attributes:
        name: of the photograph.
        size: height, width, px.
        parts: P names.
        points: (P, 2) x, y px of the photograph.
        confidence: (P,) in [0, 1], of the vote.
        agreement: (P,) in [0, 1], share of the sources' weights near the point.
    """

    name: str
    size: tuple[int, int]
    parts: list[str]
    points: Tensor
    confidence: Tensor
    agreement: Tensor


class Propagator:
    """Carries points from sources to targets.

    Args:
        matcher: any.
        root: folder of the photographs.
        known: what is annotated.
        todo: what is carried where.
        config: how.
        device: where images are sent.
    """

    def __init__(
        self,
        matcher: Matcher | PairMatcher,
        root: Path,
        known: Mapping[str, ImageKeypoints],
        todo: Plan,
        config: PropagateConfig,
        device: str = "cpu",
    ) -> None:
        self.matcher = on_device(matcher, device)
        self.root, self.known, self.todo, self.config, self.device = root, known, todo, config, device
        self.shown = {name: persons_points(known[name]).keys() for names in todo.sources.values() for name in names}
        used = dict.fromkeys(root / source for name in todo.wanted for source in self._sources(name))
        size, resize = square_for(matcher, config.size, config.resize)
        self.read = PhotographReader(used, size, resize, exif_orientation=True)

    def __len__(self) -> int:
        """How many targets there are."""
        return len(self.todo.wanted)

    def __iter__(self) -> Iterator[Carried | DataError]:
        """Yields the points of each target in its order, or the error of one that cannot be read.

        Raises:
            DataError: when a source cannot be read, or its points lie outside of it.
        """
        for name in self.todo.wanted:
            try:
                target = self._image(name, self.todo.wanted[name], annotated=False)
            except DataError as error:
                yield error
                continue
            yield self._carry(name, target)

    def _carry(self, name: str, target: AnnotatedImage) -> Carried:
        parts, size = self.todo.wanted[name], target.original_size
        sources = self._sources(name)
        answers, weights = [], []
        for start in range(0, len(sources), self.config.batch_size):
            chosen = sources[start : start + self.config.batch_size]
            batch = collate_pairs([make_pair(self._image(source, parts), target, "img") for source in chosen])
            points, weight = self._answers(to_device(batch, self.device))
            answers.append(_by_part(points, batch, len(parts)))
            weights.append(_by_part(weight[..., None], batch, len(parts))[..., 0].nan_to_num(0))
        voted = vote(torch.cat(answers, 1), torch.cat(weights, 1), self.config.vote_sigma * max(size))
        height, width = size
        points = torch.minimum(voted.points.clamp_min(0), voted.points.new_tensor([width, height]))
        asked = [row for row in range(len(parts)) if bool(points[row].isfinite().all())]
        names = [parts[row] for row in asked]
        return Carried(name, size, names, points[asked], voted.confidence[asked], voted.agreement[asked])

    def _sources(self, name: str) -> list[str]:
        """Returns the photographs that vote on a target: the first ones that show a part that it lacks."""
        wanted, others = set(self.todo.wanted[name]), self.todo.sources[self.todo.group[name]]
        showing = [s for s in others if s != name and wanted & self.shown[s]]
        return showing[: self.config.sources]

    def _image(self, name: str, parts: Sequence[str], annotated: bool = True) -> AnnotatedImage:
        """Returns a photograph with the points of ``parts`` that a person set in it, or with all of them unknown."""
        photograph = self.read(self.root / name)
        height, width = photograph.original_size
        own = persons_points(self.known[name]) if annotated else dict.fromkeys(parts, (np.nan, np.nan))
        points = np.array([own.get(part, (0.0, 0.0)) for part in parts], np.float64).reshape(-1, 2)
        outside = ((points < 0) | (points > (width, height))).any(1)
        if outside.any():
            part = parts[int(outside.argmax())]
            raise DataError(
                f"Expected all points of {name} inside its {width} x {height} px but {part} is at "
                f"({own[part][0]:g}, {own[part][1]:g}); correct it."
            )
        visible = np.array([part in own for part in parts], bool)
        box = np.array([0.0, 0.0, width, height])
        return photograph.annotated(points, visible, box, self.todo.category[self.todo.group[name]], name)

    def _answers(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Returns (B, N, 2) x, y in px of the original targets, and (B, N) weights of the answers, on the CPU."""
        with torch.inference_mode():
            found = match(self.matcher, batch)
            weight = found.confidence.clamp(0, 1)
            if not bool(found.trg_kps[batch.kps_mask].isfinite().all()):
                raise ConfigError(
                    f"Expected a matcher that answers photographs without annotation but {type(self.matcher).__name__} does "
                    "not; choose another."
                )
            if self.config.cycle_tolerance is not None:
                back = match(self.matcher, exchanged(batch, found.trg_kps)).trg_kps
                size = image_size(batch.src_img)
                weight = weight * gaussian_weight(back, batch.src_kps, size, self.config.cycle_tolerance)
        count = batch.kps_mask.sum(1, keepdim=True).clamp_min(1)
        weight = weight * (weight * batch.kps_mask).sum(1, keepdim=True) / count
        return to_original(found.trg_kps, batch).cpu(), weight.sqrt().cpu()


def _by_part(values: Tensor, batch: PairBatch, n_parts: int) -> Tensor:
    """Returns (P, B, C) of values (B, N, C) in the order of the parts, NaN where a source lacks one."""
    found = values.new_full((n_parts, len(values), values.shape[-1]), torch.nan)
    for row, (ids, mask) in enumerate(zip(batch.kps_id.cpu(), batch.kps_mask.cpu(), strict=True)):
        found[ids[mask], row] = values[row, mask]
    return found
