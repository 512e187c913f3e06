"""The command line: ``python -m distill <verb> [key=value ...]``.

``python -m distill <verb> --help`` shows what a verb does and every key it takes.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from distill import __version__
from distill.core.errors import ConfigError, DistillError, nearest

VERBS = {
    "fit": "train a student on a teacher's labels",
    "ablate": "train variants of a fit with several seeds, and tabulate what each gains",
    "label": "run a teacher over a data set into the label store",
    "evaluate": "PCK of one matcher on a benchmark",
    "compare": "teacher, student and baselines on the same pairs",
    "export": "write a student as ONNX, verified",
    "match": "two image files and points in, matches out",
    "pretrain": "train the small Stable Diffusion that the default teacher uses",
    "bench": "speed and memory of teacher and student, side by side",
    "data": "check, download or describe a data set",
    "doctor": "versions, devices, weights and data sets, with fixes",
}

ACTIONS = {
    "label": ("label.action", ("status", "verify", "repair", "merge", "export")),
    "data": ("action", ("describe", "check", "pair", "download")),
    "bench": ("what", ("student", "teacher", "loader", "labels")),
}
"""Words that may follow a verb, and the key whose value they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _quiet()
    try:
        return _dispatch(arguments)
    except DistillError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb, *rest = arguments
    config_dir, overrides, wants_help = _split(_with_action(verb, rest))
    if verb not in VERBS and not _is_users_verb(verb, config_dir):
        raise ConfigError(f"Expected a verb but got {verb!r}; {nearest(verb, VERBS)}.")
    from distill.cli.config import compose  # Hydra takes a second to import, which an overview need not wait for
    from distill.cli.help import describe_verb
    from distill.cli.verbs import run_verb

    if wants_help:
        print(describe_verb(verb, config_dir))
        return 0
    run_verb(verb, compose(verb, overrides, config_dir), config_dir)
    return 0


def _is_users_verb(verb: str, config_dir: str | None) -> bool:
    """Says whether ``<config_dir>/<verb>.yaml`` exists, which makes ``verb`` a command of the user's own."""
    return config_dir is not None and verb.isidentifier() and (Path(config_dir).expanduser() / f"{verb}.yaml").is_file()


def _with_action(verb: str, arguments: list[str]) -> list[str]:
    """Writes a word after the verb as the override that it stands for."""
    if verb not in ACTIONS or not arguments or "=" in arguments[0] or not arguments[0][:1].isalpha():
        return arguments
    word, *rest = arguments
    key, words = ACTIONS[verb]
    if word not in words:
        raise ConfigError(f"Expected a word that {verb} knows but got {word!r}; {nearest(word, words)}.")
    return [f"{key}={word}", *rest]


def _split(arguments: list[str]) -> tuple[str | None, list[str], bool]:
    """Separates ``--config-dir`` and ``--help`` from the overrides."""
    config_dir, overrides, wants_help = None, [], False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-h", "--help"):
            wants_help = True
        elif argument == "--config-dir":
            config_dir = next(rest, None)
            if config_dir is None:
                raise ConfigError("Expected a folder after --config-dir but got nothing; name one.")
        elif argument.startswith("--config-dir="):
            config_dir = argument.partition("=")[2]
        elif argument.startswith("-"):
            raise ConfigError(f"Expected key=value but got {argument!r}; settings are written without dashes.")
        else:
            overrides.append(argument)
    return config_dir, overrides, wants_help


def _overview() -> str:
    lines = ["usage: python -m distill <verb> [key=value ...] [--config-dir DIR]", "", "verbs:"]
    lines += [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "python -m distill <verb> --help shows a verb's keys."])


def _quiet() -> None:
    """Silences what libraries say on import and in passing, which drowns what we have to say."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*|torch\..*|diffusers\..*|transformers\..*")


if __name__ == "__main__":
    sys.exit(main())
