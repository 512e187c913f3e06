"""Training's figures as lines of JSON."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLines(Logger):
    """Appends one line per logged step to a file: the step and what was logged.

    Args:
        folder: of the file.
        file: its name.
    """

    def __init__(self, folder: Path, file: str = "metrics.jsonl") -> None:
        super().__init__()
        self.path = folder / file

    @property
    def name(self) -> str:
        """Of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """There is one per run."""
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder holds its configuration."""
