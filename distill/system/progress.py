"""Progress and remaining time: a bar in a terminal; elsewhere, such as in the log of a batch job, a line a minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

Item = TypeVar("Item")

MINUTE = 60.0
"""Seconds between two lines where the output is no terminal."""


def bar(unit: str = "") -> "Shown":
    """Returns a progress display on stderr, with count, rate and remaining time.

    Args:
        unit: shown after the count.
    """
    console = Console(stderr=True)
    return terminal_bar(console, unit) if console.is_terminal else LineProgress(unit)


def terminal_bar(console: Console, unit: str = "") -> Progress:
    """Returns a bar that takes one line of a ``console`` of at least 60 columns; ``unit`` is shown after the count."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit.strip() + "{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
    )


@dataclass
class _Task:
    description: str
    total: float | None
    note: str = ""
    completed: float = 0
    visible: bool = True
    began_at: float = 0.0  # of the clock
    began_with: float = 0.0  # that were done before the clock started
    told_at: float = 0.0


class LineProgress:
    """Writes a line a minute for each task, and one when it is complete. It is used like ``rich.progress.Progress``.

    Args:
        unit: of what is counted.
    """

    def __init__(self, unit: str = "") -> None:
        self.unit = f" {unit.strip()}" if unit.strip() else ""
        self._tasks: list[_Task] = []

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Does nothing; a bar of rich is drawn from here on."""

    def stop(self) -> None:
        """Does nothing; a bar of rich is drawn until here."""

    def add_task(
        self, description: str, total: float | None = None, note: str = "", visible: bool = True, **others: Any
    ) -> TaskID:
        """Adds a task, starts its clock, and returns its number; ``total`` is None while it is not known."""
        now = time.monotonic()
        self._tasks.append(_Task(description, total, note, visible=visible, began_at=now, told_at=now))
        return TaskID(len(self._tasks) - 1)

    def reset(self, task: TaskID, total: float | None = None, completed: float = 0, **others: Any) -> None:
        """Sets a task's total and count, and starts its clock anew."""
        of = self._tasks[task]
        of.total, of.completed, of.began_with = total, completed, completed
        of.began_at = of.told_at = time.monotonic()

    def advance(self, task: TaskID, advance: float = 1) -> None:
        """Adds ``advance`` to the count of a task."""
        self.update(task, advance=advance)

    def update(
        self,
        task: TaskID,
        *,
        advance: float = 0,
        completed: float | None = None,
        total: float | None = None,
        description: str | None = None,
        note: str | None = None,
    ) -> None:
        """Changes a task, and writes a line when a minute has passed since the last one, or all is done."""
        of = self._tasks[task]
        before = of.completed
        of.completed = of.completed + advance if completed is None else completed
        of.total = of.total if total is None else total
        of.description, of.note = description or of.description, of.note if note is None else note
        now = time.monotonic()
        finished = of.total is not None and before < of.total <= of.completed
        if of.visible and (finished or now - of.told_at >= MINUTE):
            of.told_at = now
            print(self._line(of, now), file=sys.stderr, flush=True)

    def _line(self, task: _Task, now: float) -> str:
        seconds, done = now - task.began_at, task.completed - task.began_with
        rate = done / max(seconds, 1e-9)
        amount = f"{task.completed:g}" if task.total is None else f"{task.completed:g}/{task.total:g}"
        parts = [
            f"{task.description}: {amount}{self.unit}{task.note}",
            f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s",
        ]
        if task.total is not None and task.completed >= task.total:
            parts.append(f"done in {duration(seconds)}")
        elif task.total is not None and done > 0:
            parts.append(f"{duration((task.total - task.completed) / rate)} left")
        return ", ".join(parts)


Shown = Progress | LineProgress
"""What :func:`bar` returns."""


def duration(seconds: float) -> str:
    """Returns a duration as text: "42 s", "3 min", "2 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def track(
    items: Iterable[Item],
    description: str,
    enabled: bool = True,
    unit: str = "",
    total: int | None = None,
    amount: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yields ``items`` and shows the progress.

    Args:
        items: whose number must be known, unless ``total`` is given.
        description: of what is done.
        enabled: whether to show anything.
        unit: of what is counted.
        total: how much there is; the number of items without it.
        amount: how much one item is, such as the pairs of a batch; 1 without it.
    """
    if not enabled:
        yield from items
        return
    total = len(items) if total is None else total  # type: ignore[arg-type]
    with bar(unit) as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task, 1 if amount is None else amount(item))
