"""A step is captured once and replayed; a graph that calls the step again stands for a GPU's."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from distill.data.pairs import collate_pairs
from teacher import PromptOptimization, cuda_graph, source_image
from teacher.cuda_graph import WARM_UP, repeat

QUICK = {"steps": 9, "embeddings": 2, "crop_pool": 5, "crops": 2, "layers": ["up@1/4"], "prompt_length": 7}


class Stream:
    def wait_stream(self, other) -> None:
        pass


class Graph:
    """Replays what was captured by calling it again on the state that it was captured with."""

    def __init__(self) -> None:
        self.replays, self.step = 0, None

    def replay(self) -> None:
        self.replays += 1
        self.step()


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were captured; the step that is captured has no effect, as on a GPU."""
    made, state = [], {"capturing": None}

    @contextmanager
    def capture(graph):
        made.append(graph)
        state["capturing"] = graph
        yield
        state["capturing"] = None

    def as_captured(step):
        def call():
            if state["capturing"] is None:
                return step()
            state["capturing"].step = step
            return None

        return call

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    made_of = as_captured
    return made, made_of


def test_a_step_is_taken_as_often_as_asked_and_all_but_the_first_by_replay(graphs):
    made, as_captured = graphs
    done = []
    assert repeat(as_captured(lambda: done.append(1)), 10, captured=True) == WARM_UP
    assert len(done) == 10 and [graph.replays for graph in made] == [10 - WARM_UP]


@pytest.mark.parametrize(("times", "captured"), [(10, False), (WARM_UP + 1, True)])
def test_few_steps_and_those_without_a_gpu_are_called(graphs, times, captured):
    done = []
    assert repeat(lambda: done.append(1), times, captured) == times == len(done) and not graphs[0]


def test_a_step_that_cannot_be_captured_is_called_and_said_so(graphs, monkeypatch, caplog):
    @contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    done = []
    assert repeat(lambda: done.append(1), 10, captured=True) == 10 == len(done)
    assert "not permitted" in caplog.text


def test_memory_that_runs_out_during_the_capture_is_not_hidden(graphs, monkeypatch):
    @contextmanager
    def full(graph):
        raise torch.OutOfMemoryError("full")
        yield

    monkeypatch.setattr(torch.cuda, "graph", full)
    with pytest.raises(torch.OutOfMemoryError):
        repeat(lambda: None, 10, captured=True)


@pytest.mark.parametrize("settings", [{"queries": "frozen"}, {"queries": "conditioned", "noise_draws": None}], ids=str)
def test_answers_and_passes_are_the_same_where_steps_are_replayed(
    sd1_folder, make_pairs, graphs, monkeypatch, settings
):
    made, as_captured = graphs
    pairs = collate_pairs([make_pairs(2, size=64), make_pairs(3, size=64, seed=1)])
    settings = {**QUICK, "null_prompt": "zeros", "consensus": 0.0, **settings}
    plain = PromptOptimization(str(sd1_folder), device="cpu", **settings)
    expected = plain.match_pairs(pairs)
    monkeypatch.setattr(
        source_image, "repeat", lambda step, times, _: cuda_graph.repeat(as_captured(step), times, True)
    )
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **settings)
    answer = teacher.match_pairs(pairs)
    assert sum(graph.replays for graph in made) > 0
    assert all(torch.equal(*both) for both in zip(answer, expected, strict=True))
