"""A run's folder: what was asked for, what was measured, what was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.core.errors import ConfigError, DataError
from distill.core.files import replacing


class RunFolder:
    """The folder that a command writes to, and no other.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, config: DictConfig, resume: bool = False) -> "RunFolder":
        """Makes ``run.dir`` and writes ``config.yaml``, the resolved configuration, into it.

        Raises:
            ConfigError: when the folder holds a run already and is not to be resumed, or cannot be made.
        """
        folder = cls(config.run.dir)
        if (folder.path / "config.yaml").exists() and not resume:
            hint = "run.resume=true continues it, " if "resume" in config.run else ""
            raise ConfigError(
                f"Expected run.dir to be a new folder but {folder.path} holds a run; {hint}"
                "run.dir=<another folder> leaves it alone."
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_text("config.yaml", OmegaConf.to_yaml(config, resolve=True))
        except (OSError, DataError) as error:
            raise ConfigError(f"Expected to write to run.dir but got: {error}; choose another run.dir.") from error
        return folder

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes ``content`` to a JSON file, which appears whole or not at all."""
        return self.write_text(name, json.dumps(content, indent=2, allow_nan=True) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Writes ``text`` to a file, which appears whole or not at all; returns its path."""
        path = self.path / name
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        return path

    def __truediv__(self, name: str) -> Path:
        return self.path / name
