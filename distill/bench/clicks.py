"""How much work carrying points saves: PCK of what was carried, and how many corrections bring it to a goal.

All but a few annotated photographs of a kind are hidden, their points are carried to the others, and a person is simulated who
looks at the points from the least sure one on and sets each wrong one right by a click, until PCK has reached the goal. How many
clicks that takes hardly depends on the order; how many points have to be looked at does.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ConfigError, DataError
from distill.core.numbers import is_whole
from distill.core.protocols import Matcher, PairMatcher
from distill.data.keypoints import ImageKeypoints
from distill.labels.propagate import Carried, Plan, PropagateConfig, Propagator, persons_points, plan


@dataclass(frozen=True)
class ClicksConfig:
    """What is measured.

    Attributes:
        annotated: how many photographs of a kind are annotated, in one measurement each.
        kinds: how many kinds are measured, the first ones; None for all.
        goal: PCK in percent that corrections are to reach.
        alpha: of PCK, a fraction of the longer side of the object's box.
        seed: of which photographs are annotated.

    Raises:
        ConfigError: naming each that cannot be measured.
    """

    annotated: Sequence[int] = (1, 3, 10)
    kinds: int | None = None
    goal: float = 95.0
    alpha: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = list(self.annotated)
        rules = {
            "annotated": (
                bool(counts) and all(is_whole(count, 1) for count in counts),
                "a list of whole numbers of at least 1",
            ),
            "kinds": (self.kinds is None or is_whole(self.kinds, 1), "a whole number of at least 1 (null: all)"),
            "goal": (0 < self.goal <= 100, "a percentage above 0 and up to 100"),
            "alpha": (self.alpha > 0, "a number above 0"),
        }
        wrong = [
            f"measure.{name} as {wanted} but got {getattr(self, name)}"
            for name, (is_right, wanted) in rules.items()
            if not is_right
        ]
        if wrong:
            raise ConfigError(f"Expected {', and '.join(wrong)}; correct {'it' if len(wrong) == 1 else 'them'}.")


@dataclass(frozen=True)
class Clicks:
    """What was measured on one kind of photographs.

    Where none of the points that were carried is annotated, ``carried`` is 0 and the figures that follow it are NaN.

    Attributes:
        kind: its name.
        annotated: how many photographs were annotated.
        photographs: to how many others their points were carried.
        points: how many annotated points these have.
        carried: percent of them that an annotated photograph shows, so that they were carried.
        pck: of these, in percent, the mean over photographs.
        clicks: corrections a photograph until the goal.
        looked_at: percent of the carried points that were looked at, the least sure first.
        looked_at_random: the same in random order, as is expected.
        from_scratch: clicks a photograph to annotate the same share of points without any help.
    """

    kind: str
    annotated: int
    photographs: int
    points: int
    carried: float
    pck: float
    clicks: float
    looked_at: float
    looked_at_random: float
    from_scratch: float

    @property
    def scored(self) -> bool:
        """Whether any point that was carried is annotated."""
        return self.carried > 0


def draws(truth: Mapping[str, ImageKeypoints], config: ClicksConfig) -> dict[int, Plan]:
    """Returns what is carried where on one kind of photographs, by how many of them are annotated.

    Smaller draws of annotated ones are parts of larger ones, and points are carried to the same others for all counts.

    Args:
        truth: the photographs of the kind in which a person set points, see :func:`by_person`.
        config: what is measured.

    Raises:
        DataError: when there are too few photographs, or they are of several categories.
    """
    names = sorted(truth)
    most = max(config.annotated)
    if len(names) <= most:
        kind = names[0].rpartition("/")[0] if names else ""
        raise DataError(
            f"Expected more than {most} annotated photographs of a kind but a person set points in {len(names)} of "
            f"{kind or 'the folder'}; lower measure.annotated, or annotate more."
        )
    order = [names[row] for row in np.random.default_rng([config.seed, len(names)]).permutation(len(names))]
    chosen = {count: sorted(order[:count]) for count in config.annotated}
    return {
        count: plan(sorted([*own, *order[most:]]), {name: truth[name] for name in own}) for count, own in chosen.items()
    }


def measure_clicks(
    matcher: Matcher | PairMatcher,
    root: Path,
    truth: Mapping[str, ImageKeypoints],
    plans: Mapping[int, Plan],
    carrying: PropagateConfig,
    config: ClicksConfig,
    device: str = "cpu",
) -> list[Clicks]:
    """Returns what was measured on one kind of photographs for each number of annotated ones.

    Args:
        matcher: that carries.
        root: folder of the photographs.
        truth: the photographs of the kind in which a person set points, see :func:`by_person`.
        plans: of the kind, see :func:`draws`.
        carrying: how points are carried.
        config: what is measured.
        device: where images are sent.

    Raises:
        DataError: when a photograph cannot be read.
    """
    found = []
    for count, todo in plans.items():
        carried = []
        for answer in Propagator(matcher, root, truth, todo, carrying, device):
            if isinstance(answer, DataError):
                raise answer
            carried.append(answer)
        (kind,) = todo.category
        found.append(judge(kind, count, carried, truth, config.goal, config.alpha))
    return found


def by_person(known: Mapping[str, ImageKeypoints]) -> dict[str, ImageKeypoints]:
    """Returns the photographs in which a person set points, with these alone: a matcher's own answers are no truth."""
    own = {name: persons_points(image) for name, image in known.items()}
    return {name: replace(known[name], points=points, confidence={}) for name, points in own.items() if points}


def judge(
    kind: str,
    annotated: int,
    carried: Sequence[Carried],
    truth: Mapping[str, ImageKeypoints],
    goal: float,
    alpha: float,
) -> Clicks:
    """Returns the figures of points that were carried to photographs whose truth is known."""
    wrong: list[bool] = []
    weight: list[float] = []  # of a point in PCK per image; 0 for a point that the photograph does not show
    confidence: list[float] = []
    n_points = sum(len(truth[answer.name].points) for answer in carried)
    shown = [sum(part in truth[answer.name].points for part in answer.parts) for answer in carried]
    n_scored = sum(count > 0 for count in shown)
    if not n_scored:
        return Clicks(kind, annotated, len(carried), n_points, 0.0, *(math.nan,) * 5)
    for answer, count in zip(carried, shown, strict=True):
        image = truth[answer.name]
        x0, y0, x1, y1 = image.bbox or (0, 0, answer.size[1], answer.size[0])
        tolerance = alpha * max(x1 - x0, y1 - y0)
        for part, point, sure in zip(answer.parts, answer.points.tolist(), answer.confidence.tolist(), strict=True):
            known = part in image.points
            wrong.append(known and float(np.hypot(*np.subtract(point, image.points[part]))) > tolerance)
            weight.append(1 / (count * n_scored) if known else 0.0)
            confidence.append(sure)
    clicks, looked = _corrected(np.array(wrong), np.array(weight), np.array(confidence), goal)
    return Clicks(
        kind=kind,
        annotated=annotated,
        photographs=len(carried),
        points=n_points,
        carried=100 * sum(shown) / n_points,
        pck=100 * float(np.sum(np.array(weight) * ~np.array(wrong))),
        clicks=clicks / len(carried),
        looked_at=100 * looked / len(wrong),
        looked_at_random=100 * clicks * (len(wrong) + 1) / (sum(wrong) + 1) / len(wrong),
        from_scratch=goal / 100 * sum(shown) / len(carried),
    )


def _corrected(
    wrong: NDArray[np.bool_], weight: NDArray[np.float64], confidence: NDArray[np.float64], goal: float
) -> tuple[int, int]:
    """Returns how many clicks, and looks at points from the least sure one on, bring PCK to ``goal`` percent."""
    order = np.argsort(confidence, kind="stable")
    reached = float(np.sum(weight * ~wrong)) + np.concatenate([[0.0], np.cumsum((weight * wrong)[order])])
    looked = int(np.argmax(100 * reached >= goal - 1e-9))
    return int(wrong[order[:looked]].sum()), looked


def mean_of(rows: Sequence[Clicks]) -> dict[int, Clicks]:
    """Returns the mean over kinds that are scored, by the number of annotated photographs; counts are summed."""
    groups: dict[int, list[Clicks]] = defaultdict(list)
    for row in rows:
        if row.scored:
            groups[row.annotated].append(row)
    found = {}
    for annotated, group in groups.items():
        figures = {key: float(np.mean([asdict(row)[key] for row in group])) for key in MEANS}
        photographs, points = sum(row.photographs for row in group), sum(row.points for row in group)
        found[annotated] = Clicks(f"{len(group)} kinds", annotated, photographs, points, **figures)
    return found


MEANS = ("carried", "pck", "clicks", "looked_at", "looked_at_random", "from_scratch")
"""Fields of :class:`Clicks` that are averaged."""
