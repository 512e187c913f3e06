"""A logger that writes one line of JSON per step."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from distill.core.files import replacing
from distill.core.jsonable import jsonable


class JsonLines(Logger):
    """Appends one line per logged step to a file: the step and what was logged.

    A training that was killed and resumed logs some steps again; what the file says of them is removed first.

    Args:
        folder: of the file.
        file: its name.
    """

    def __init__(self, folder: Path, file: str = "metrics.jsonl") -> None:
        super().__init__()
        self.path = folder / file
        self._begun = False

    @property
    def name(self) -> str:
        """Name of the logger, as Lightning asks for it."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Always "0": a run's folder has one log."""
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line with ``step`` and ``metrics``; NaN and infinity become null."""
        if not self._begun:
            self._forget(step or 0)
            self._begun = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable({"step": step, **metrics}), allow_nan=False) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder holds its configuration."""

    def _forget(self, step: int) -> None:
        """Removes what an earlier process logged of ``step`` and later, and lines that are cut or damaged."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if (logged := _step_of(line)) is not None and logged < step]
        with replacing(self.path) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> int | None:
    """Returns the step that a line is of, 0 where it says none; None for a line that is not a whole one of a log."""
    try:
        logged = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    step = (logged.get("step") or 0) if isinstance(logged, dict) else None
    return step if isinstance(step, int) else None
