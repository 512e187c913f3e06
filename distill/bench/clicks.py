"""How much work carrying points saves: PCK of what was carried, and how many corrections bring it to a goal.

All but a few annotated photographs of a kind are hidden, their points are carried to the others, and a person is simulated who
looks at the points from the least sure one on and sets each wrong one right by a click, until PCK has reached the goal. How many
clicks that takes hardly depends on the order; how many points have to be looked at does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError
from distill.core.protocols import Matcher, PairMatcher
from distill.data.keypoints import ImageKeypoints
from distill.labels.propagate import Carried, PropagateConfig, Propagator, persons_points, plan


@dataclass(frozen=True)
class Clicks:
    """What was measured on one kind of photographs.

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


def measure_clicks(
    matcher: Matcher | PairMatcher,
    root: Path,
    truth: Mapping[str, ImageKeypoints],
    counts: Sequence[int],
    config: PropagateConfig,
    goal: float = 95.0,
    alpha: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
) -> list[Clicks]:
    """Returns what was measured on one kind of photographs for each number of annotated ones.

    Args:
        matcher: that carries.
        root: folder of the photographs.
        truth: what is known of the photographs of the kind. A person set points in at least one more than the largest count;
            what a matcher set is left out.
        counts: how many of them are annotated, drawn by the seed; smaller draws are parts of larger ones.
        config: how points are carried.
        goal: PCK in percent.
        alpha: of PCK, a fraction of the longer side of the object's box.
        seed: of the draw.
        device: where images are sent.

    Raises:
        DataError: when there are too few photographs, or one cannot be read.
    """
    truth = by_person(truth)
    names = sorted(truth)
    kind = names[0].rpartition("/")[0] if names else ""
    if len(names) <= max(counts):
        raise DataError(
            f"Expected more than {max(counts)} annotated photographs of a kind but a person set points in {len(names)} of "
            f"{kind or root}; lower measure.annotated, or annotate more."
        )
    order = [names[row] for row in np.random.default_rng([seed, len(names)]).permutation(len(names))]
    rest = order[max(counts) :]  # the same for all counts
    found = []
    for count in counts:
        chosen = sorted(order[:count])
        todo = plan(sorted([*chosen, *rest]), {name: truth[name] for name in chosen})
        carried = []
        for answer in Propagator(matcher, root, truth, todo, config, device):
            if isinstance(answer, DataError):
                raise answer
            carried.append(answer)
        found.append(judge(kind, count, carried, truth, goal, alpha))
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
    """Returns the mean over kinds by the number of annotated photographs; counts are summed."""
    groups: dict[int, list[Clicks]] = defaultdict(list)
    for row in rows:
        groups[row.annotated].append(row)
    found = {}
    for annotated, group in groups.items():
        figures = {key: float(np.mean([asdict(row)[key] for row in group])) for key in MEANS}
        photographs, points = sum(row.photographs for row in group), sum(row.points for row in group)
        found[annotated] = Clicks(f"{len(group)} kinds", annotated, photographs, points, **figures)
    return found


MEANS = ("carried", "pck", "clicks", "looked_at", "looked_at_random", "from_scratch")
"""Fields of :class:`Clicks` that are averaged."""
