"""The pace of what is done, and the time that is left."""

from dataclasses import dataclass, field


@dataclass
class Clock:
    """How far a task is, and since when, for its rate and the time that is left.

    A task may have parts of different speed, such as one for each matcher. What is left of the present part is taken to go on
    at this part's pace, and later parts to have the mean pace of those that were seen.

    Attributes:
        began_at: seconds of the clock.
        began_with: what was done before.
        part_at: when the present part began.
        part_with: what was done before it.
        part_ends: how much is done after it; None for all.
        paces: seconds for one, of each finished part.
        seen_at: when something was done last.
        done: how much is done.
    """

    began_at: float
    began_with: float = 0
    part_at: float = field(init=False)
    part_with: float = field(init=False)
    part_ends: float | None = None
    paces: list[float] = field(default_factory=list)
    seen_at: float = field(init=False)
    done: float = field(init=False)

    def __post_init__(self) -> None:
        self.part_at = self.seen_at = self.began_at
        self.part_with = self.done = self.began_with

    def see(self, now: float, done: float) -> None:
        """Takes how much is done."""
        if done != self.done:
            self.seen_at, self.done = now, done

    def begin_part(self, now: float, ends: float) -> None:
        """Ends a part, and begins the next one."""
        pace = self._pace()
        self.paces += [] if pace is None else [pace]
        self.part_at = self.seen_at = now
        self.part_with, self.part_ends = self.done, ends

    def rate(self, now: float, finished: bool) -> float:
        """Returns how many were done a second: in the present part, or in all of them when all is ``finished``."""
        since, before = (self.began_at, self.began_with) if finished else (self.part_at, self.part_with)
        return (self.done - before) / max(now - since, 1e-9)

    def left(self, now: float, total: float | None) -> float | None:
        """Returns the seconds until ``total`` is done; None where that is not known."""
        pace = self._pace()
        paces = [*self.paces, *([] if pace is None else [pace])]
        if total is None or not paces:
            return None
        mean = sum(paces) / len(paces)
        end = total if self.part_ends is None else min(self.part_ends, total)
        seconds = (end - self.done) * (mean if pace is None else pace) + (total - end) * mean
        return max(0.0, seconds - (now - self.seen_at))

    def _pace(self) -> float | None:
        done = self.done - self.part_with
        return (self.seen_at - self.part_at) / done if done > 0 else None


def duration(seconds: float) -> str:
    """Returns a duration as text: "42 s", "3 min", "2 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
