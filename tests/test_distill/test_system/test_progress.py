"""A line a minute for a log, one line of 60 columns for a terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from distill.system import progress
from distill.system.progress import LineProgress, duration, terminal_bar, track
from distill.training.callbacks.step_progress import StepProgress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left(clock, capsys):
    with LineProgress("pairs") as shown:
        task = shown.add_task("label shapes train", total=400, note="")
        for _ in range(200):
            clock.now += 0.5
            shown.update(task, advance=1, note=", 3.0 points/s")
        assert capsys.readouterr().err == "label shapes train: 120/400 pairs, 3.0 points/s, 2/s, 2 min left\n"
        clock.now += 100
        shown.update(task, advance=200)
    assert capsys.readouterr().err == "label shapes train: 400/400 pairs, 3.0 points/s, 2/s, done in 3 min\n"


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys):
    shown = LineProgress("steps")
    task = shown.add_task("train", total=None)
    shown.reset(task, total=100, completed=50)
    clock.now += 60
    shown.update(task, completed=56, description="train, epoch 2/3")
    assert capsys.readouterr().err == "train, epoch 2/3: 56/100 steps, 0.1/s, 7 min left\n"


def test_a_hidden_task_says_nothing(clock, capsys):
    shown = LineProgress()
    task = shown.add_task("x", total=1, visible=False)
    clock.now += 600
    shown.advance(task)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_gets_one_line_that_fits_it(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False, color_system=None)
    shown = terminal_bar(console, "pairs")
    shown.add_task("label my_long_data_set train", total=12345, completed=2345, note=", 123.4 points/s")
    lines = "".join(segment.text for segment in console.render(shown.get_renderable())).rstrip("\n").split("\n")
    assert len(lines) == 1 and len(lines[0]) <= width
    assert "2345/12345" in lines[0] and "left" in lines[0] and "label" in lines[0]


def test_durations_are_told_as_people_do():
    assert [duration(s) for s in (42, 180, 7500, 36000)] == ["42 s", "3 min", "2 h 05 min", "10 h 00 min"]


def test_track_yields_everything(capsys):
    assert list(track([1, 2, 3], "read")) == [1, 2, 3]
    assert "read: 3/3, " in capsys.readouterr().err
    assert list(track([1, 2], "read", enabled=False)) == [1, 2] and capsys.readouterr().err == ""


def test_batches_are_counted_by_what_they_hold(clock, capsys):
    for _ in track([[1, 2], [3]], "evaluate student", unit="pairs", total=3, amount=len):
        clock.now += 60
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "evaluate student: 2/3 pairs, 0.0333/s, 30 s left"
    assert told[1] == "evaluate student: 3/3 pairs, 0.025/s, done in 2 min"


def test_high_rates_are_whole_numbers(clock, capsys):
    shown = LineProgress("pairs")
    task = shown.add_task("label", total=4626)
    clock.now += 2
    shown.update(task, completed=4626, note=", read")
    assert capsys.readouterr().err == "label: 4626/4626 pairs, read, 2313/s, done in 2 s\n"


def test_a_training_in_steps_says_what_was_logged_behind_its_steps(clock, capsys):
    shown = StepProgress("autoencoder", every=2)
    trainer = SimpleNamespace(max_steps=4, global_step=0, progress_bar_metrics={"loss": 0.25, "text": "no number"})
    shown.on_train_start(trainer, None)
    for trainer.global_step in range(1, 5):
        clock.now += 20
        shown.on_train_batch_end(trainer, None)
    shown.on_train_end(trainer, None)
    assert capsys.readouterr().err.splitlines() == [
        "autoencoder: 3/4 steps, loss 0.25, 0.05/s, 20 s left",
        "autoencoder: 4/4 steps, loss 0.25, 0.05/s, done in 80 s",
    ]
