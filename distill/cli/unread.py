"""Errors for overrides that have no effect on the verb that they are given to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Unread:
    """Keys that have no effect under a condition.

    Attributes:
        keys: dotted; a section stands for all keys in it.
        when: the condition, of the composed configuration.
        hint: what to do instead.
    """

    keys: tuple[str, ...]
    when: Callable[[DictConfig], bool]
    hint: str


def _always(config: DictConfig) -> bool:
    return True


def _lacks(section: str, key: str) -> Callable[[DictConfig], bool]:
    """Returns a condition: true when no value in ``section`` refers to ``key`` by ``${key}``."""
    return lambda config: f"${{{key}}}" not in OmegaConf.to_yaml(config[section])


def _does_not(key: str, *words: str) -> Callable[[DictConfig], bool]:
    """Returns a condition: true when the value of ``key``, a word or a list of words, has none of ``words``."""

    def check(config: DictConfig) -> bool:
        """Returns whether none of the words is chosen."""
        value = OmegaConf.select(config, key)
        chosen = [value] if isinstance(value, str) else list(value)
        return not set(chosen) & set(words)

    return check


def _optimises_no_prompts(config: DictConfig) -> bool:
    """Returns whether the teacher that ``bench`` measures is of another class than the paper's method."""
    return OmegaConf.select(config, "teacher._target_") != OmegaConf.select(config, "paper._target_")


def _lacks_format(config: DictConfig) -> bool:
    return config.label.format is None


_SPLITS = Unread(
    ("data.split", "data.n_pairs"),
    _always,
    "train.n_pairs, val.n_pairs and test.n_pairs say how many pairs of each split are used",
)
_MATCHER = (
    Unread(("ckpt",), _lacks("matcher", "ckpt"), "it is read by matcher=student"),
    Unread(("file",), _lacks("matcher", "file"), "it is read by matcher=onnx and matcher=predictions"),
)
_OF_PAPER = ("reference_pairs", "ablation", "ablation_pairs", "paper", "reference", "increments")
UNREAD: dict[str, tuple[Unread, ...]] = {
    "fit": (
        _SPLITS,
        Unread(
            ("truth.n_pairs", "truth.repeat", "truth.weight"),
            lambda config: config.truth.points is None,
            "it belongs to truth.points=, a file of points in photographs",
        ),
    ),
    "label": (
        _SPLITS,
        Unread(("label.sources",), _does_not("label.action", "merge"), "it belongs to label merge"),
        Unread(
            ("label.file", "label.format", "label.unsure"),
            _does_not("label.action", "export"),
            "it belongs to label export",
        ),
        Unread(("label.unsure",), _lacks_format, "it belongs to label.format"),
        Unread(("label.coverage",), _does_not("label.action", "status"), "it belongs to label status"),
        Unread(
            (
                *(f"label.{key}" for key in ("shard", "batch_size", "batch_seconds", "flush_seconds", "compact")),
                "trainer",
            ),
            _does_not("label.action", "make"),
            "it matters when labels are made",
        ),
        Unread(
            ("data", "splits", "train", "val", "test"),
            lambda config: config.label.action in ("verify", "repair", "merge", "export") and _lacks_format(config),
            "the action works on the label store alone",
        ),
        Unread(
            ("teacher", "labels.prompt_cache", "labels.fallbacks"),
            lambda config: config.label.action in ("verify", "repair", "merge", "export"),
            "the action works on the label store alone",
        ),
    ),
    "export": (
        Unread(
            ("data.split", "data.n_pairs", "data.size"),
            _always,
            "gate_pairs says how many validation pairs are used, at the student's own size",
        ),
        Unread(
            ("file", "precision", "split", "page", "gate_pairs", "calibration_pairs", "insist", "data"),
            lambda config: config.bundle is not None,
            "bundle= writes its folder alone, which needs no data; leave bundle out to write a file",
        ),
        Unread(
            ("file", "split"),
            lambda config: config.page is not None,
            "page= writes its folder alone; leave page out to write a file",
        ),
        Unread(("examples", "onnxruntime_web"), lambda config: config.page is None, "it belongs to page="),
    ),
    "ablate": (
        Unread(
            ("seeds",),
            lambda config: "matcher" in config.suite,
            "this suite trains nothing; base=['matcher.seed=1'] sets the matcher's",
        ),
    ),
    "evaluate": _MATCHER,
    "match": _MATCHER,
    "propagate": (
        *_MATCHER,
        Unread(("corrections", "annotations"), _does_not("action", "apply"), "it belongs to propagate apply"),
        Unread(("measure",), _does_not("action", "measure"), "it belongs to propagate measure"),
        Unread(("unsure", "review"), _does_not("action", "make"), "it belongs to propagate without a word after it"),
        Unread(
            (
                "matcher",
                "root",
                "points",
                "size",
                "resize",
                "sources",
                "vote_sigma",
                "cycle_tolerance",
                "batch_size",
                "run",
            ),
            lambda config: config.action == "apply",
            "propagate apply works on the two files alone",
        ),
    ),
    "data": (
        Unread(("pairs_per_image", "describer"), _does_not("action", "pair"), "it belongs to data pair"),
        Unread(("images",), _does_not("action", "describe"), "it belongs to data describe"),
        Unread(("format", "to"), _does_not("action", "convert"), "it belongs to data convert"),
    ),
    "bench": (
        Unread(
            (
                "batches",
                "repeats",
                "student",
                "threads",
                "precisions",
                "compiled",
                "ckpt",
                "pck_pairs",
                "calibration_pairs",
            ),
            _does_not("what", "student"),
            "it belongs to what=[student]",
        ),
        Unread(("teacher", "teacher_pairs", *_OF_PAPER), _does_not("what", "teacher"), "it belongs to what=[teacher]"),
        Unread(
            tuple(key for key in _OF_PAPER if key != "reference_pairs"),  # 0 says what holds for other teachers anyway
            _optimises_no_prompts,
            "it belongs to teachers of prompt optimisation",
        ),
        Unread(("labels",), _does_not("what", "labels"), "it belongs to what=[labels]"),
    ),
}


def unread(verb: str, config: DictConfig, given: Iterable[str]) -> list[str]:
    """Returns an error message for those of the ``given`` keys that ``verb`` does not read with this configuration."""
    given, problems = list(given), []
    for rule in UNREAD.get(verb, ()):
        keys = [key for key in given if any(key == name or key.startswith(f"{name}.") for name in rule.keys)]
        if keys and rule.when(config):
            problems.append(
                f"Expected keys with an effect but {verb} does not read {', '.join(keys)} here; {rule.hint}."
            )
    return problems
