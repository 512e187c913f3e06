"""Progress and remaining time: a bar in a terminal; elsewhere, such as in the log of a batch job, a line a minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from distill.system.time_left import Clock, duration

Item = TypeVar("Item")

MINUTE = 60.0
"""Seconds between two lines where the output is no terminal."""


def bar(unit: str = "") -> "Shown":
    """Returns a progress display on stderr, with count, rate and remaining time.

    Args:
        unit: shown after the count.
    """
    console = Console(stderr=True)
    return TerminalProgress(console, unit) if console.is_terminal else LineProgress(unit)


BAR, SHORTEST_BAR = 8, 3
"""Columns of a terminal's bar, and with how few it is drawn at all."""
SHORTEST = 20
"""Columns that a description keeps beside what is told of a task."""


class _Line(ProgressColumn):
    """All that is told of a task, in the width of the console; what does not fit is cut, the note first.

    Args:
        console: to draw on.
        unit: of what is counted.
    """

    def __init__(self, console: Console, unit: str) -> None:
        super().__init__()
        self.console, self.unit = console, unit.strip()

    def render(self, task: Task) -> Text:
        """Returns the line of a task."""
        count = f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'} {self.unit}".rstrip()
        left = _time_left(task)
        room = self.console.width - cell_len(count) - cell_len(left) - 2
        wanted = min(cell_len(task.description), SHORTEST)
        bar = min(BAR, room - wanted - 1)
        bar = bar if bar >= SHORTEST_BAR else 0
        room -= bar + 1 if bar else 0
        note = _cut(task.fields["note"], room - wanted)
        description = _cut(task.description, room - cell_len(note))
        full = round(bar * min(1.0, task.percentage / 100))
        return Text.assemble(
            f"{set_cell_size(description, room - cell_len(note))} ",
            ("━" * full, "bar.finished" if task.finished else "bar.complete"),
            ("━" * (bar - full), "bar.back"),
            " " if bar else "",
            (count, "progress.download"),
            f"{note} ",
            (left, "progress.remaining"),
        )


def _time_left(task: Task) -> str:
    """Returns the time that is left, and what comes after it."""
    left = 0.0 if task.finished else task.fields["clock"].left(time.monotonic(), task.total)
    if left is None:
        return f"--:-- left{task.fields['then']}"
    hours, seconds = divmod(round(left), 3600)
    told = f"{seconds // 60:02d}:{seconds % 60:02d}"
    return f"{f'{hours}:' if hours else ''}{told} left{task.fields['then']}"


def _cut(text: str, width: int) -> str:
    """Returns ``text`` in at most ``width`` columns."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…" if width > 0 else ""


class TerminalProgress(Progress):
    """A bar that takes one line of a console of at least 60 columns.

    Args:
        console: to draw on.
        unit: of what is counted.
    """

    def __init__(self, console: Console, unit: str = "") -> None:
        super().__init__(_Line(console, unit), console=console)

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        """See rich's; "note" is shown behind the count, "then" behind the time that is left."""
        return super().add_task(
            description, *args, **{"note": "", "then": "", "clock": Clock(time.monotonic()), **fields}
        )

    def reset(self, task_id: TaskID, **changes: Any) -> None:
        """See rich's; what was done before does not count for the time that is left."""
        super().reset(task_id, **changes)
        task = self._tasks[task_id]
        task.fields["clock"] = Clock(time.monotonic(), task.completed)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See rich's."""
        super().update(task_id, **changes)
        task = self._tasks[task_id]
        task.fields["clock"].see(time.monotonic(), task.completed)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See rich's."""
        self.update(task_id, advance=advance)

    def begin_part(self, task_id: TaskID, description: str, ends: float) -> None:
        """Begins a part of a task whose speed differs from others', after which ``ends`` are done."""
        self._tasks[task_id].fields["clock"].begin_part(time.monotonic(), ends)
        super().update(task_id, description=description)


@dataclass
class _Lines:
    """What is told of a task."""

    description: str
    total: float | None
    note: str
    then: str
    visible: bool
    clock: Clock
    told_at: float


class LineProgress:
    """Writes a line a minute for each task, and one when it is complete. It is used like :class:`TerminalProgress`.

    Args:
        unit: of what is counted.
    """

    def __init__(self, unit: str = "") -> None:
        self.unit = f" {unit.strip()}" if unit.strip() else ""
        self._tasks: list[_Lines] = []

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
        self,
        description: str,
        total: float | None = None,
        note: str = "",
        then: str = "",
        visible: bool = True,
        **others: Any,
    ) -> TaskID:
        """Adds a task, starts its clock, and returns its number; ``total`` is None while it is not known."""
        now = time.monotonic()
        self._tasks.append(_Lines(description, total, note, then, visible, Clock(now), now))
        return TaskID(len(self._tasks) - 1)

    def reset(self, task: TaskID, total: float | None = None, completed: float = 0, **others: Any) -> None:
        """Sets a task's total and count, and starts its clock anew."""
        of, now = self._tasks[task], time.monotonic()
        of.total, of.clock, of.told_at = total, Clock(now, completed), now

    def begin_part(self, task: TaskID, description: str, ends: float) -> None:
        """Begins a part of a task whose speed differs from others', after which ``ends`` are done."""
        self._tasks[task].clock.begin_part(time.monotonic(), ends)
        self._tasks[task].description = description

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
        of, now = self._tasks[task], time.monotonic()
        before = of.clock.done
        of.clock.see(now, before + advance if completed is None else completed)
        of.total = of.total if total is None else total
        of.description, of.note = description or of.description, of.note if note is None else note
        finished = of.total is not None and before < of.total <= of.clock.done
        if of.visible and (finished or now - of.told_at >= MINUTE):
            of.told_at = now
            print(self._line(of, now), file=sys.stderr, flush=True)

    def _line(self, task: _Lines, now: float) -> str:
        clock = task.clock
        finished = task.total is not None and clock.done >= task.total
        rate, left = clock.rate(now, finished), clock.left(now, task.total)
        amount = f"{clock.done:g}" if task.total is None else f"{clock.done:g}/{task.total:g}"
        parts = [
            f"{task.description}: {amount}{self.unit}{task.note}",
            f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s",
        ]
        if finished:
            parts.append(f"done in {duration(now - clock.began_at)}")
        elif left is not None:
            parts.append(f"{duration(left)} left{task.then}")
        return ", ".join(parts)


Shown = TerminalProgress | LineProgress
"""What :func:`bar` returns."""


class PartsProgress:
    """One display for parts that follow each other, with the time that is left of all of them. A context manager.

    Args:
        parts: how much there is of each, by what it is called, in their order.
        unit: of what is counted.
        then: what comes after them and is not counted, such as " + report".
        enabled: whether to show anything.
    """

    def __init__(self, parts: Mapping[str, int], unit: str = "", then: str = "", enabled: bool = True) -> None:
        self._parts, self._number, self._ends = list(parts.items()), 0, 0
        self._bar = bar(unit)
        first = f"1/{len(parts)} {self._parts[0][0]}"
        self._task = self._bar.add_task(first, total=sum(parts.values()), then=then, visible=enabled)
        self._enabled = enabled

    def __enter__(self) -> "PartsProgress":
        if self._enabled:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def track(self, items: Iterable[Item], amount: Callable[[Item], int] | None = None) -> Iterator[Item]:
        """Yields the ``items`` of the next part; an item counts as one without ``amount``."""
        name, total = self._parts[self._number]
        self._number, self._ends = self._number + 1, self._ends + total
        self._bar.begin_part(self._task, f"{self._number}/{len(self._parts)} {name}", self._ends)
        for item in items:
            yield item
            self._bar.advance(self._task, 1 if amount is None else amount(item))


def track(
    items: Iterable[Item],
    description: str,
    enabled: bool | PartsProgress = True,
    unit: str = "",
    total: int | None = None,
    amount: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yields ``items`` and shows the progress.

    Args:
        items: whose number must be known, unless ``total`` is given.
        description: of what is done.
        enabled: whether to show anything; or a display of several parts, the next of which this is.
        unit: of what is counted.
        total: how much there is; the number of items without it.
        amount: how much one item is, such as the pairs of a batch; 1 without it.
    """
    if isinstance(enabled, PartsProgress):
        yield from enabled.track(items, amount)
        return
    if not enabled:
        yield from items
        return
    total = len(items) if total is None else total  # type: ignore[arg-type]
    with bar(unit) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, 1 if amount is None else amount(item))
