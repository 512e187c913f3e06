"""A step is captured once and replayed; a graph that calls the step again stands for a GPU's."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from distill.data.pairs import collate_pairs
from teacher import PromptOptimization, cuda_graph, source_image
from teacher.cuda_graph import WARM_UP, repeat
from teacher.settings import Settings

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
    repeat(as_captured(lambda: done.append(1)), 10, captured=True)
    assert len(done) == 10 and [graph.replays for graph in made] == [10 - WARM_UP]


@pytest.mark.parametrize(("times", "captured"), [(10, False), (WARM_UP + 1, True)])
def test_few_steps_and_those_without_a_gpu_are_called(graphs, times, captured):
    done = []
    repeat(lambda: done.append(1), times, captured)
    assert times == len(done) and not graphs[0]


def test_a_step_that_cannot_be_captured_is_called_and_said_so(graphs, monkeypatch, caplog):
    @contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    done = []
    repeat(lambda: done.append(1), 10, captured=True)
    assert len(done) == 10
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
    capture = torch.cuda.graph

    @contextmanager
    def counting(graph):
        with capture(graph):
            yield
        teacher.features.model.unet.passes += 1000  # as by the Python of a step that is captured and not taken

    monkeypatch.setattr(torch.cuda, "graph", counting)
    monkeypatch.setattr(
        source_image, "repeat", lambda step, times, _: cuda_graph.repeat(as_captured(step), times, True)
    )
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **settings)
    answer = teacher.match_pairs(pairs)
    assert sum(graph.replays for graph in made) > 0
    assert all(torch.equal(*both) for both in zip(answer, expected, strict=True))
    assert teacher.passes == plain.passes


class Features:
    """Attends to the prompts' mean."""

    def attend(self, prompts, draw, rows, tokens):
        return [prompts.mean((-1, -2))[:, None, None, None].expand(-1, 1, 4, 4).sigmoid()]


@pytest.mark.parametrize("capturable", [True, False])
def test_adam_lets_a_descent_be_captured_that_was_made_for_it(graphs, monkeypatch, caplog, recwarn, capturable):
    """torch's own check of a capture; only what it asks the device is answered here."""
    made, capturing = graphs[0], []

    @contextmanager
    def capture(graph):
        made.append(graph)
        graph.step = lambda: None
        capturing.append(graph)
        try:
            yield
        finally:
            capturing.clear()

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(Stream, "is_capturing", lambda _: bool(capturing), raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # older releases of torch ask these two
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    descent = source_image.Descent(torch.randn(2, 5, 8), torch.full((2, 1, 2), 0.5), Settings(), 8, capturable)
    descent.show(Features(), torch.tensor([[0.0, 0.0, 1.0]]).expand(20, 2, 3))
    repeat(descent.step, 10, captured=True)
    assert [graph.replays for graph in made] == ([10 - WARM_UP] if capturable else [0])
    assert ("cannot be captured" in caplog.text) is not capturable and not recwarn.list
