import pytest
import torch

from distill.bench.clicks import judge, mean_of
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
