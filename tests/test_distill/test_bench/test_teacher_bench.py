"""Where a teacher is measured, and what of its time counts."""

import time

from torch import nn

from distill.bench.teacher import FirstPairs, measure, measure_variants
from distill.evaluation import asking
from distill.matchers.oracle import Oracle


class Network(nn.Module):
    """Answers with the truth; notes where it is moved."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def to(self, device):
        self.moved.append(device)
        return self

    def match_pairs(self, pairs):
        return Oracle().match_pairs(pairs)


def test_a_teacher_and_its_pairs_are_moved_to_the_device(few, monkeypatch):
    """cpu:0 is the processor too, by another name."""
    sent, built = [], []
    monkeypatch.setattr(asking, "to_device", lambda pairs, device: sent.append(device) or pairs)
    found = [(name, {}, FirstPairs(few, 2)) for name in ("first", "second")]
    rows = list(measure_variants(found, lambda _: built.append(Network()) or built[-1], "cpu:0"))
    assert [network.moved for network in built] == [["cpu:0"], ["cpu:0"]] and sent == 4 * ["cpu:0"]
    assert [row["pck@0.10"] for row in rows] == [100, 100]
    measure(Network(), "as it was", few)
    assert sent[4:] == 4 * ["cpu"]


def test_a_teacher_that_is_no_network_is_left_where_it_is(few, monkeypatch):
    sent = []
    monkeypatch.setattr(asking, "to_device", lambda pairs, device: sent.append(device) or pairs)
    measure(Oracle(), "oracle", few, "cpu:0")
    assert sent == 4 * ["cpu:0"]


def test_the_time_is_that_of_the_answers_alone(few, monkeypatch):
    class Slow(Oracle):
        def match_pairs(self, pairs):
            time.sleep(0.02)
            return super().match_pairs(pairs)

    read = type(few).__getitem__
    monkeypatch.setattr(type(few), "__getitem__", lambda self, index: time.sleep(0.5) or read(self, index))
    row = measure(Slow(), "slow", few)
    assert 20 <= row["latency_ms"] < 500
