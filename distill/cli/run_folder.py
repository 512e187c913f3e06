"""The folder of a run: its configuration, figures and files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, ScalarEvent, YAMLError

from distill.cli.keys import keys
from distill.core.errors import ConfigError, DataError, in_one_line
from distill.core.files import replacing
from distill.core.jsonable import jsonable

FREE_ON_RESUME = (
    "run",
    "device",
    "trainer",
    "num_workers",
    "labels",
    "test",
    "logger",
    "callbacks",
    "pictures",
    "onnx",
    "compile",
    "patience",
    "teacher.device",
    "teacher.batch_size",
)
"""Settings of a fit that may change when it is resumed: what was trained so far does not depend on them."""


BEFORE_0_2 = {
    "optimizer": "adamw",
    "train.unlabelled": 0,
    "truth.points": None,
    "truth.n_pairs": None,
    "truth.repeat": 1,
    "truth.weight": 1.0,
    "student.consensus_sigma": 3.0,
    "student.consensus_tolerance": 0.0,
    "student.debias": 0,
    "student.scales": [1.0],
    "self_distillation.teacher.consensus": 3.0,
    "self_distillation.teacher.consensus_tolerance": 0.0,
    "self_distillation.teacher.scale": 1.0,
    "teacher.consensus_tolerance": 0.0,
    "teacher.model.debias": 0,
    "teacher.model.scales": [1.0],
    "teacher.cuda_graph": "auto",
    "loss.terms.warp.colour": 0.0,
}
"""What a fit did for which there was no setting."""
LARGEST_CONFIG = 1 << 20  # bytes

WRITTEN = (".csv", ".html", ".json", ".md", ".mp4", ".npz", ".png", ".svg", ".yaml")
"""Suffixes of the files of runs that are numbered."""
WRITTEN_TO = ("flow", "pictures", "predictions")
"""Folders of such runs, in which further files lie."""


class RunFolder:
    """The only folder that a command writes to.

    As a context manager it removes the ``config.yaml`` that it wrote after an error where nothing but labels was made, so that
    the corrected command may use the same folder. Further processes of the command write none and remove nothing.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._wrote_config = False

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
        folder._begin(config)
        return folder

    @classmethod
    def numbered(cls, config: DictConfig) -> "RunFolder":
        """Makes ``run.dir``, or ``run.dir`` with a number, and writes ``config.yaml`` into it.

        It has a number where ``run.dir`` holds a run, or other files that one might replace, such as points beside photographs.

        Raises:
            ConfigError: when the folder cannot be made.
        """
        given = Path(config.run.dir)
        if _is_taken(given) and given.name in ("", ".."):
            raise ConfigError(
                f"Expected the name of a new folder in run.dir but {given} holds other files; choose another run.dir."
            )
        candidates: Iterator[Path] = (given if n == 1 else given.with_name(f"{given.name}_{n}") for n in count(1))
        folder = cls(next(path for path in candidates if not _is_taken(path)))
        folder._begin(config)
        return folder

    def _begin(self, config: DictConfig) -> None:
        content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        content["run"]["dir"] = str(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_text("config.yaml", OmegaConf.to_yaml(content))
            self._wrote_config = True
        except (OSError, DataError) as error:
            raise ConfigError(f"Expected to write to run.dir but got: {error}; choose another run.dir.") from error

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception)  # after an interruption the run may be resumed
        if failed and self._wrote_config and {path.name for path in self.path.iterdir()} <= {"config.yaml", "labels"}:
            (self.path / "config.yaml").unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes ``content`` to a JSON file, which appears whole or not at all; NaN and infinity become null."""
        return self.write_text(name, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Writes ``text`` to a file, which appears whole or not at all; returns its path."""
        path = self.path / name
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        return path

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def check_free(folder: Path, patterns: Sequence[str]) -> None:
    """Checks that a folder without a run holds nothing that a new one would replace or go on from.

    Args:
        folder: of the run to come. One with a ``config.yaml`` is not looked at: it is refused, or continued.
        patterns: of such files and folders.

    Raises:
        ConfigError: naming the first.
    """
    if (folder / "config.yaml").exists():
        return
    found = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
    if found is not None:
        raise ConfigError(
            f"Expected run.dir to be a new folder but {found} is there, which the run would replace; choose another run.dir."
        )


def _is_taken(folder: Path) -> bool:
    """Returns whether a folder holds files that a run might replace."""
    places = [place for place in (folder, *(folder / name for name in WRITTEN_TO)) if place.is_dir()]
    files = (file for place in places for file in place.iterdir() if not file.name.startswith("."))
    return any(file.suffix.lower() in WRITTEN for file in files)


def read_config(file: Path) -> DictConfig:
    """Returns the ``config.yaml`` of a run. It is data: plain values only, none of which is built.

    Raises:
        ConfigError: when it is no such file.
    """
    try:
        _check_plain(file)
        config = OmegaConf.load(file)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        reason = in_one_line(error, 160)
        raise ConfigError(
            f"Expected the configuration of a run at {file} but it cannot be read ({reason}); choose another run.dir."
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"Expected the configuration of a run at {file} but it is a list; choose another run.dir.")
    return config


def _check_plain(file: Path) -> None:
    """Refuses what no run writes: long files, aliases, and interpolations such as ``${other.key}``.

    Aliases and interpolations repeat what they name. A few lines, each of which repeats the one before it twice, fill the memory.
    """
    if file.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
    for event in yaml.parse(file.read_text(encoding="utf-8")):
        if isinstance(event, AliasEvent):
            raise ValueError("it holds aliases")
        if isinstance(event, ScalarEvent) and "${" in event.value:
            raise ValueError(f"it holds {event.value[:60]!r} where plain text is read")


def check_unchanged(config: DictConfig, free: tuple[str, ...] = FREE_ON_RESUME) -> None:
    """Checks that a run which is to be resumed has the settings of its first start.

    Its ``config.yaml`` is compared with ``config`` only; nothing in it is built.

    Args:
        config: of the run as it is asked for now.
        free: settings, and sections of settings, that may change.

    Raises:
        ConfigError: naming every setting that differs and may not.
    """
    file = Path(config.run.dir) / "config.yaml"
    if not file.is_file():
        return
    before, now = (_flat(read_config(file)), _flat(config))
    before = {key: value for key, value in BEFORE_0_2.items() if key in now} | before
    told = _differing(before, now, free)
    if told:
        raise ConfigError(
            f"Expected the settings that {config.run.dir} was started with but got {told}; leave them as they were, or "
            "start anew with run.dir=<another folder>."
        )


def check_same(config: DictConfig, what: str, whole: str) -> None:
    """Checks that a finished run, ``what``, was made with ``config``, as the table of ``whole`` takes it to be.

    Where its folder and that of its labels are may differ: the whole may have been moved.

    Raises:
        ConfigError: naming the settings that differ otherwise.
    """
    written = read_config(Path(config.run.dir) / "config.yaml")
    told = _differing(_flat(written), _flat(config), free=("run", "labels.dir"))
    if told:
        raise ConfigError(
            f"Expected the {what} in {config.run.dir} to have the settings of this {whole} but they differ: {told}; choose "
            "another run.dir."
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]) -> str:
    """Returns the settings that differ, at most five of them, in words; "" for none.

    Args:
        before: values by dotted key.
        now: values by dotted key.
        free: settings, and sections of settings, that may differ.
    """
    differing = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not any(key == f or key.startswith(f"{f}.") for f in free)
    )
    return ", ".join(f"{key}={now.get(key)} ({before.get(key)} before)" for key in differing[:5])


def _flat(config: DictConfig | ListConfig) -> dict[str, Any]:
    """Returns the values by dotted key, interpolations resolved."""
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(plain, DictConfig)
    values = {key: OmegaConf.select(plain, key) for key in keys(plain)}
    return {
        key: OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
        for key, value in values.items()
    }
