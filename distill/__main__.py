"""The command line: ``python -m distill <verb> [key=value ...]``.

``python -m distill <verb> --help`` shows what a verb does and every key it takes. Nothing here imports torch: an overview
and a verb's help are printed at once.
"""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from distill.cli.arguments import CommandLine, split
from distill.cli.interruption import (
    SECONDS_TO_END,
    Terminated,
    end_with_starter,
    failure_of_started,
    interruption_behind,
    is_started,
    other_ended,
    terminable,
    while_exchanging,
)
from distill.core.errors import ConfigError, DistillError, nearest
from distill.core.version import __version__

VERBS = {
    "fit": "train a student on a teacher's labels",
    "ablate": "train variants of a fit with several seeds, and tabulate what each gains",
    "label": "run a teacher over a data set into the label store",
    "evaluate": "PCK of one matcher on a benchmark",
    "compare": "teacher, student and baselines on the same pairs",
    "export": "write a student as ONNX, verified",
    "match": "two image files and points in, matches out",
    "demo": "serve a web page that matches in the browser",
    "propagate": "carry the points of a few photographs to a whole folder, and correct them",
    "pretrain": "train the small Stable Diffusion that the default teacher uses",
    "bench": "speed and memory of teacher and student, side by side",
    "data": "describe, check, pair, convert or download a data set",
    "doctor": "versions, devices, weights and data sets, with fixes",
}

ACTIONS = {
    "label": ("label.action", ("status", "verify", "repair", "merge", "export")),
    "data": ("action", ("describe", "check", "pair", "convert", "download")),
    "propagate": ("action", ("apply", "measure")),
    "bench": ("what", ("student", "teacher", "loader", "labels")),
}
"""Words that may follow a verb, and the key whose value they are."""

GO_ON = {
    "fit": "go on with run.resume=true",
    "label": "the labels made so far are kept; the same command goes on",
    "pretrain": "the same command goes on",
    "ablate": "the same command goes on",
}
"""What to do after an interruption, by verb."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without room."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code.

    Returns:
        0 on success, 2 for an error that the user can correct, 130 after Ctrl-C, 141 when the reader of the output has
        closed it, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    hint = GO_ON.get(arguments[0] if arguments else "")
    _quiet()
    try:
        with terminable():
            end_with_starter()
            _dispatch(arguments)
            sys.stdout.flush()
    except DistillError as error:
        return _refused(str(error))
    except PermissionError as error:  # of whatever file or folder; which one is all that there is to say
        return _refused(
            f"Expected to be allowed to use {error.filename or 'a file'} but got: {error.strerror or error}; ask its owner, "
            "or choose another place."
        )
    except (KeyboardInterrupt, Terminated) as end:
        return _ended(end, hint)
    except BrokenPipeError:  # as after "| head"
        _discard_output()
        return 141
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = str(error.filename or "")
            return _refused(
                f"Expected names that the file system takes but got one of {len(name)} letters, {name[:60]}...; choose a shorter one."
            )
        if isinstance(error, OSError) and error.errno in FULL:
            _discard_output()
            place = error.filename or "the output"
            return _refused(f"Expected room to write {place} but got: {error.strerror}; make room.")
        behind = interruption_behind(error)
        if behind is not None:
            return _ended(behind, hint)
        lost = while_exchanging(error)
        if other_ended(SECONDS_TO_END if lost else 5):  # a connection may be lost before the end behind it is seen
            return _ended(Terminated(), hint)
        if not lost:
            raise
        why = f"Expected all processes of the command to go on but one is lost ({error}), see its own message"
        return _refused(", ".join(filter(None, [why, hint])))
    return 0


def _discard_output() -> None:
    """Drops what is still to be printed, which Python would otherwise try to write once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(reason: str) -> int:
    """Prints an error in one line; returns the exit code."""
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def _ended(end: BaseException, hint: str | None) -> int:
    """Prints what ended the command before its time, in the first of its processes; returns the exit code."""
    failure = failure_of_started() if isinstance(end, Terminated) else None
    if failure is not None:
        why = f"Expected all processes of the command to end well but {failure}; mend that"
        return _refused(", ".join(filter(None, [why, hint])))
    word, code = ("interrupted", 130) if isinstance(end, KeyboardInterrupt) else ("terminated", 143)
    if not is_started():
        print(", ".join(filter(None, [word, hint])), file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    verb, *rest = arguments
    line = split(_with_action(verb, rest))
    if verb not in VERBS and not _is_users_verb(verb, line.config_dir):
        raise ConfigError(f"Expected a verb but got {verb!r}; {nearest(verb, VERBS)}.")
    _run(verb, line)


def _is_users_verb(verb: str, config_dir: str | None) -> bool:
    """Returns whether ``<config_dir>/<verb>.yaml`` exists, so that ``verb`` is a command of the user's own."""
    return config_dir is not None and verb.isidentifier() and (Path(config_dir).expanduser() / f"{verb}.yaml").is_file()


def _run(verb: str, line: CommandLine) -> None:
    """Prints a verb's help, or composes its configuration and runs it; imports Hydra, which takes a second, only here."""
    if line.wants_help:
        from distill.cli.help import describe_verb

        print(describe_verb(verb, line.config_dir, line.overrides))
    elif line.hydra_flags:
        from distill.cli.hydra_app import run_hydra

        run_hydra(verb, line)
    else:
        from distill.cli.config import compose
        from distill.cli.verbs import run_verb

        run_verb(verb, compose(verb, line.overrides, line.config_dir), line.config_dir)


def _with_action(verb: str, arguments: list[str]) -> list[str]:
    """Replaces a word after the verb, such as "status" in ``label status``, by the override that it stands for."""
    if verb not in ACTIONS or not arguments or "=" in arguments[0] or not arguments[0][:1].isalpha():
        return arguments
    word, *rest = arguments
    key, words = ACTIONS[verb]
    if word not in words:
        raise ConfigError(f"Expected a word that {verb} knows but got {word!r}; {nearest(word, words)}.")
    return [f"{key}={word}", *rest]


def _overview() -> str:
    lines = ["usage: python -m distill <verb> [key=value ...] [--config-dir DIR]", "", "verbs:"]
    lines += [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    lines += ["", "python -m distill <verb> --help shows a verb's keys."]
    return "\n".join([*lines, "Hydra's --cfg job, --resolve, --package, --info and --multirun work after a verb."])


def _quiet() -> None:
    """Hides warnings and progress messages of libraries, among which the output of a command is hard to find."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("onnx_ir", "onnxscript"):  # dozens of lines an export where Hydra has logging at INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*|torch\..*|diffusers\..*|transformers\..*")


if __name__ == "__main__":
    sys.exit(main())
