import math

import pytest
import torch

from distill.bench.clicks import ClicksConfig, draws, judge, mean_of
from distill.core.errors import ConfigError, DataError
from distill.data.keypoints import ImageKeypoints
from distill.labels.propagate import Carried


def carried(name: str, points: dict[str, tuple[float, float, float]]) -> Carried:
    values = torch.tensor([list(value) for value in points.values()])
    return Carried(name, (100, 100), list(points), values[:, :2], values[:, 2], torch.ones(len(values)))


def test_clicks_until_the_goal_are_those_of_a_hand_computed_case():
    box = (0.0, 0.0, 50.0, 100.0)  # alpha 0.1 is 10 px
    truth = {
        "a": ImageKeypoints({"nose": (10.0, 10.0), "ear": (20.0, 20.0)}, box, (100, 100)),
        "b": ImageKeypoints({"nose": (50.0, 50.0), "tail": (5.0, 5.0)}, box, (100, 100)),
    }
    answers = [
        carried("a", {"nose": (10.0, 20.0, 0.9), "ear": (20.0, 30.1, 0.2)}),  # at the tolerance; beyond it
        carried("b", {"nose": (90.0, 50.0, 0.5), "ear": (1.0, 1.0, 0.1)}),  # wrong; a part that b does not show
    ]
    found = judge("kind", 1, answers, truth, goal=95, alpha=0.1)
    assert found.pck == pytest.approx(25)  # half of a's points, none of b's one
    assert found.carried == pytest.approx(75) and found.points == 4
    assert found.clicks == 1 and found.looked_at == pytest.approx(
        75
    )  # ear of b, ear of a, nose of b; then all are right
    assert found.looked_at_random == pytest.approx(100 * 2 * 5 / 3 / 4)
    half = judge("kind", 1, answers, truth, goal=50, alpha=0.1)
    assert half.clicks == 0.5 and half.looked_at == pytest.approx(50)
    mean = mean_of([found, half])[1]
    assert mean.clicks == 0.75 and mean.photographs == 4 and mean.pck == pytest.approx(25)


def test_nothing_is_looked_at_where_the_goal_is_reached():
    truth = {"a": ImageKeypoints({"nose": (10.0, 10.0)}, None, (100, 100))}
    found = judge("kind", 1, [carried("a", {"nose": (12.0, 10.0, 0.0)})], truth, goal=95, alpha=0.1)
    assert (found.clicks, found.looked_at, found.looked_at_random, found.pck) == (0, 0, 0, 100)


def test_a_kind_whose_carried_points_are_annotated_nowhere_has_no_figures_and_is_in_no_mean():
    """It counted as a PCK of 0 that needs no clicks."""
    truth = {"a": ImageKeypoints({"nose": (10.0, 10.0)}, None, (100, 100))}
    none = judge("other", 1, [carried("a", {"tail": (12.0, 10.0, 0.5)})], truth, goal=95, alpha=0.1)
    assert not none.scored and (none.carried, none.photographs, none.points) == (0, 1, 1)
    figures = (none.pck, none.clicks, none.looked_at, none.looked_at_random, none.from_scratch)
    assert all(map(math.isnan, figures))
    some = judge("kind", 1, [carried("a", {"nose": (90.0, 10.0, 0.5)})], truth, goal=95, alpha=0.1)
    mean = mean_of([none, some])[1]
    assert (mean.kind, mean.photographs, mean.clicks, mean.pck, mean.carried) == ("1 kinds", 1, 1, 0, 100)
    assert mean_of([none]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"goal": 150}, "measure.goal as a percentage above 0 and up to 100 but got 150; correct it"),
        ({"goal": 0}, "measure.goal as a percentage"),
        ({"goal": math.nan}, "measure.goal as a percentage"),
        ({"alpha": -1}, "measure.alpha as a number above 0 but got -1"),
        ({"kinds": 0}, "measure.kinds as a whole number of at least 1 \\(null: all\\) but got 0"),
        ({"kinds": -1}, "measure.kinds as a whole number"),
        ({"kinds": 1.5}, "measure.kinds as a whole number"),
        ({"annotated": []}, r"measure.annotated as a list of whole numbers of at least 1 but got \[\]"),
        ({"annotated": [0]}, "measure.annotated as a list"),
        ({"annotated": [1, 2.5]}, "measure.annotated as a list"),
        ({"annotated": ["a"]}, "measure.annotated as a list"),
        ({"goal": 101, "alpha": 0}, "measure.goal as .* but got 101, and measure.alpha as .* but got 0; correct them"),
    ],
)
def test_what_cannot_be_measured_is_named(given, message):
    """A goal that no correction reaches had the table say that no clicks are needed."""
    with pytest.raises(ConfigError, match=message):
        ClicksConfig(**given)


def test_a_goal_of_100_needs_every_wrong_point_corrected():
    assert ClicksConfig(goal=100).goal == 100
    places = {str(n): (10.0 * n, 10.0) for n in range(7)}
    truth = {"a": ImageKeypoints(places, (0.0, 0.0, 50.0, 50.0), (100, 100))}
    answers = {part: (x + (50 if part in "25" else 0), y, 0.1 * int(part)) for part, (x, y) in places.items()}
    found = judge("kind", 1, [carried("a", answers)], truth, goal=100, alpha=0.1)
    assert found.clicks == 2 and found.looked_at == pytest.approx(100 * 6 / 7)


def test_smaller_draws_are_parts_of_larger_ones_and_the_others_are_the_same():
    truth = {f"cup/{n}.png": ImageKeypoints({"rim": (1.0, 1.0)}, None, (10, 10)) for n in range(6)}
    plans = draws(truth, ClicksConfig(annotated=[1, 3]))
    few, more = (set(plans[count].sources["cup"]) for count in (1, 3))
    assert few < more and (len(few), len(more)) == (1, 3)
    assert set(plans[1].wanted) == set(plans[3].wanted) == set(truth) - more
    with pytest.raises(
        DataError, match="more than 6 annotated photographs of a kind but a person set points in 6 of cup"
    ):
        draws(truth, ClicksConfig(annotated=[6]))
