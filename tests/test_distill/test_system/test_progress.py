"""A line a minute for a log, one line of 60 columns for a terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from distill.system import progress
from distill.system.progress import LineProgress, PartsProgress, TerminalProgress, track
from distill.system.time_left import Clock, duration
from distill.training.callbacks.progress import TrainingProgress
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


def test_a_log_tells_the_time_that_is_left_of_all_parts(clock, capsys):
    with PartsProgress({"teacher": 100, "student": 100}, "pairs") as shown:
        for _ in shown.track(range(100)):
            clock.now += 0.125
        assert capsys.readouterr().err == "", "a part that is done is no line of its own"
        for _ in track(range(0, 100, 10), "not shown", shown, amount=lambda _: 10):
            clock.now += 50
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "2/2 student: 110/200 pairs, 0.2/s, 8 min left"
    assert told[-1] == "2/2 student: 200/200 pairs, 0.39/s, done in 9 min"


def test_what_a_run_does_afterwards_stands_behind_the_time_that_is_left(clock, capsys):
    shown = LineProgress("steps")
    task = shown.add_task("train", total=10, then=" + comparison")
    for _ in range(10):
        clock.now += 70
        shown.advance(task)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "train: 1/10 steps, 0.0143/s, 10 min left + comparison"
    assert told[-1] == "train: 10/10 steps, 0.0143/s, done in 12 min"


def test_the_time_left_is_that_of_this_part_and_of_later_ones_at_the_mean_pace():
    clock = Clock(0.0)
    assert clock.left(5.0, 40) is None
    clock.begin_part(0.0, 20)
    clock.see(10.0, 10)
    assert clock.left(10.0, 40) == 10 + 20  # one a second, here and later
    assert clock.left(13.0, 40) == 27, "time passes between two looks"
    assert clock.left(99.0, 40) == 0 and clock.left(10.0, None) is None
    clock.see(20.0, 20)
    clock.begin_part(20.0, 30)
    clock.see(50.0, 30)
    assert clock.left(50.0, 40) == 10 * (1 + 3) / 2
    assert clock.rate(50.0, finished=False) == 10 / 30 and clock.rate(50.0, finished=True) == 30 / 50


def test_a_hidden_task_says_nothing(clock, capsys):
    shown = LineProgress()
    task = shown.add_task("x", total=1, visible=False)
    clock.now += 600
    shown.advance(task)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_gets_one_line_that_fits_it(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False, color_system=None)
    shown = TerminalProgress(console, "pairs")
    shown.add_task("label my_long_data_set train", total=12345, completed=2345, note=", 123.4 points/s")
    line = drawn(shown, console)
    assert "2345/12345 pairs" in line and "left" in line and "label" in line
    shown.reset(
        0, total=None, completed=2345, description="読む写真の名前はとても長いです読む写真の名前はとても長いです"
    )
    assert "2345/12345 pairs" in drawn(shown, console)


def drawn(shown, console) -> str:
    """Returns the one line of a display, which fits the console."""
    lines = "".join(segment.text for segment in console.render(shown.get_renderable())).rstrip("\n").split("\n")
    assert len(lines) == 1 and cell_len(lines[0]) <= console.width, lines
    return lines[0]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 60 columns that all displays are drawn on; nothing is drawn by itself."""
    console = Console(file=io.StringIO(), width=60, force_terminal=True, legacy_windows=False, color_system=None)
    monkeypatch.setattr(progress, "bar", lambda unit="": TerminalProgress(console, unit))
    monkeypatch.setattr(TerminalProgress, "start", lambda self: None)
    return console


def test_a_terminal_says_what_is_left_of_all_matchers_and_what_comes_after_them(clock, terminal):
    parts = {"teacher": 300, "nearest_neighbour_enlarged_flip": 300, "student": 300, "box_relative": 300}
    with PartsProgress(parts, "pairs", then=" + teacher") as shown:
        for _ in shown.track(range(0, 300, 100), lambda _: 100):
            clock.now += 100
        assert "300/1200 pairs" in drawn(shown._bar, terminal)
        seen = []
        for _ in shown.track(range(0, 300, 100), lambda _: 100):
            seen.append(drawn(shown._bar, terminal))
            clock.now += 1000
        assert "2/4 nearest" in seen[0] and "15:00 left + teacher" in seen[0], "three parts, each as the first one"
        # 200 of this part at 10 s each, and 600 at the mean of 10 s and 1 s
        assert "400/1200 pairs" in seen[1] and "1:28:20 left + teacher" in seen[1]


def test_a_slow_item_shows_the_time_left_in_a_terminal_too_and_it_runs_down(clock, terminal):
    """rich forgets what is older than half a minute, and showed no time for pairs that take longer."""
    shown = TerminalProgress(terminal, "pairs")
    task = shown.add_task("label", total=4)
    assert "--:-- left" in drawn(shown, terminal)
    for _ in range(2):
        clock.now += 300
        shown.advance(task)
    assert "10:00 left" in drawn(shown, terminal)
    clock.now += 100
    assert "08:20 left" in drawn(shown, terminal)
    shown.reset(task, total=10, completed=2)
    assert "--:-- left" in drawn(shown, terminal), "what was done before says nothing of what is left"


@pytest.mark.parametrize("count", [1, 999_999])
def test_the_stages_of_a_pretraining_fit_a_terminal_with_all_that_is_logged(clock, terminal, monkeypatch, count):
    monkeypatch.setattr("distill.training.callbacks.step_progress.bar", progress.bar)
    shown = StepProgress("1/2 autoencoder", every=1, then=" + 2/2")
    metrics = {"train/colour": 0.123456, "train/psnr": 12.3456, "val/loss": 1.0}
    shown.on_train_start(SimpleNamespace(max_steps=1_000_000, global_step=0), None)
    clock.now += 10 * count
    shown.on_train_batch_end(SimpleNamespace(global_step=count, progress_bar_metrics=metrics), None)
    line = drawn(shown._bar, terminal)
    assert f"{count}/1000000 steps" in line and "left + 2/2" in line and line.startswith("1/2 autoencoder")


@pytest.mark.parametrize("epochs", [2, 100])
def test_a_training_keeps_its_epoch_and_its_bar_in_a_terminal(clock, terminal, monkeypatch, epochs):
    monkeypatch.setattr("distill.training.callbacks.progress.bar", progress.bar)
    shown, steps = TrainingProgress(every=1, then=" + test"), 50 * epochs
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=steps, max_epochs=epochs, current_epoch=0)
    trainer.callback_metrics = {"train/loss": 0.12345}
    shown.on_train_start(trainer, None)
    clock.now += 60
    trainer.global_step = 1
    shown.on_train_batch_end(trainer, None)
    line = drawn(shown._bar, terminal)
    assert line.startswith(f"train, epoch 1/{epochs} ━") and f" 1/{steps} steps" in line and "left + test" in line


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
