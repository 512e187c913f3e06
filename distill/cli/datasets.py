"""Building data sets of pairs from their configuration, for a split and a number of pairs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.cli.config import instantiate
from distill.cli.processes import is_first_process
from distill.core.errors import ConfigError, DataError, DistillError
from distill.core.protocols import Benchmark
from distill.data.datasets.folder import of_split
from distill.data.photograph_pairs import EmptySplit


def pairs_of(data: DictConfig, split: str, choice: Mapping[Any, Any], count_key: str | None = None) -> Benchmark:
    """Returns the pairs that ``data`` describes, but of ``split``.

    Args:
        data: the configuration of a data set.
        split: which one.
        choice: what else differs for this split, such as ``n_pairs``, or ``pairs``, a file with a list of pairs.
        count_key: the key that ``n_pairs`` comes from; None for that of the split.

    Raises:
        DistillError: whatever is wrong with settings or data; keys are those of the split, such as ``val.n_pairs``.
    """
    others = {str(key): value for key, value in choice.items() if key != "unlabelled"}  # which are another data set
    differing = {key: value for key, value in others.items() if value is not None or key == "n_pairs"}  # null: all
    try:
        return check_benchmark(instantiate({**data, "split": split, **differing}))
    except DistillError as error:
        text = str(error)
        for key in map(str, differing):
            named = count_key if key == "n_pairs" and count_key else f"{split}.{key}"
            text = text.replace(f"data.{key}", named)
        error.args = (text,)  # the same error, with what it carries
        raise


def as_trained(data: DictConfig, student: Mapping[str, Any]) -> DictConfig:
    """Returns ``data`` with images like those that a student was trained on.

    Args:
        data: the configuration of a data set.
        student: the configuration in its file: "size", px, and "resize", "squash" without it. Data sets whose images are square
            have no such setting.
    """
    images: dict[Any, Any] = {"size": student["size"]}
    if "resize" in data:
        images["resize"] = student.get("resize", "squash")
    return DictConfig({**data, **images})


def check_benchmark(built: Any) -> Benchmark:
    """Returns what a configuration of data built.

    Raises:
        ConfigError: when it lacks something of :class:`distill.core.protocols.Benchmark`.
    """
    missing = [name for name in ("name", "split", "threshold", "__len__", "__getitem__") if not hasattr(built, name)]
    if missing:
        raise ConfigError(
            f"Expected data to build a data set of pairs but {type(built).__name__} has no {', '.join(missing)}; add what is missing."
        )
    return built


def scored_pairs(data: Mapping[str, Any]) -> Benchmark:
    """Returns the pairs that ``data`` describes, and prints in which way they differ from what was asked for."""
    benchmark = check_benchmark(instantiate(data))
    if is_first_process():
        _tell_notes(benchmark)
    return benchmark


def fit_pairs(cfg: DictConfig) -> tuple[Benchmark, Benchmark, Benchmark | None]:
    """Returns the pairs to train on, to validate on, and to compare on, and prints how many of each there are.

    There are none to compare on where ``test.n_pairs`` is 0, nothing is annotated, or the folder is too small to set
    photographs aside for testing.
    """
    train, val = (pairs_of(cfg.data, split, cfg[split]) for split in ("train", "val"))
    for pairs in (val,) if cfg.points is not None else (train, val):  # which places points where none are annotated
        check_common_points(pairs)
    test, reason = None, "test.n_pairs=0"
    if cfg.test.n_pairs != 0 and not getattr(train, "has_truth", True):
        reason = "nothing is annotated"
    elif cfg.test.n_pairs != 0:  # null: all pairs
        try:
            test = pairs_of(cfg.data, "test", cfg.test)
        except EmptySplit as error:
            reason = str(error)
    if is_first_process():
        tested = f"no test: {reason}" if test is None else f"{len(test)} test"
        print(f"pairs:   {len(train)} training, {len(val)} validation, {tested}")
        for found in (train, val, test):
            tell_what_differs(found)
    return train, val, test


def tell_what_differs(benchmark: Benchmark | None) -> None:
    """Prints in which way pairs differ from what was asked for, and what data.on_error=skip left out of them, with an example."""
    _tell_notes(benchmark)
    skipped = getattr(benchmark, "skipped", {})
    for message in list(skipped.values())[:1]:
        print(f"left out: {len(skipped)} of split {getattr(benchmark, 'split', '')}; data check names all: {message}")


def _tell_notes(benchmark: Benchmark | None) -> None:
    for note in getattr(benchmark, "notes", []):
        print(f"note: {note}")


def unlabelled_pairs(cfg: DictConfig, train: Benchmark) -> Benchmark | None:
    """Returns the training pairs that only self-distillation learns from, and prints how many; None for none.

    Those that ``train`` has are left out. There are none without self-distillation, beside a list of training pairs, beside
    photographs annotated by a person, and for data sets that have no ``pairs``.

    Raises:
        ConfigError: for a negative number of them.
    """
    wanted, labelled = cfg.train.unlabelled, getattr(train, "pairs", None)
    if wanted < 0:
        raise ConfigError(f"Expected train.unlabelled of at least 0 but got {wanted}.")
    if not wanted or labelled is None or cfg.self_distillation is None or cfg.train.pairs or cfg.truth.points:
        return None
    pairs = pairs_of(cfg.data, "train", {"n_pairs": len(train) + wanted})
    known = set(map(repr, labelled))
    pairs.pairs = [pair for pair in pairs.pairs if repr(pair) not in known][:wanted]  # type: ignore[attr-defined]
    if not len(pairs):
        return None
    if is_first_process():
        print(f"further: {len(pairs)} training pairs without labels, for self-distillation")
    return pairs


def truth_pairs(cfg: DictConfig, train: Benchmark, others: Sequence[Benchmark | None]) -> Benchmark | None:
    """Returns the pairs of annotated photographs that ``truth.points`` names, by a person; None without such a file.

    Photographs of the ``others``, those for validation and testing, are left out, unless training uses them too; and so are
    those that are set aside for a test of all photographs, or of the annotated ones, whether it is made now or later.

    Raises:
        ConfigError: for a data set that takes no file of points, or a number of repetitions below 1.
        DataError: when no two annotated photographs can be paired.
    """
    if cfg.truth.points is None:
        return None
    if not {"points", "by_person"} <= cfg.data.keys():
        raise ConfigError("Expected data=folder for truth.points, which are points in its photographs; leave them out.")
    if cfg.truth.repeat < 1:
        raise ConfigError(f"Expected truth.repeat of at least 1 but got {cfg.truth.repeat}.")
    choice = {"points": cfg.truth.points, "n_pairs": cfg.truth.n_pairs, "pairs": None, "by_person": True}
    pairs = pairs_of(cfg.data, "all", OmegaConf.create(choice))
    used = {name for other in others for name in getattr(other, "names", None) or ()}
    apart = used - set(getattr(train, "names", None) or ())
    for benchmark in (train, pairs):
        apart |= set(of_split(getattr(benchmark, "usable", []), "test"))
    pairs.pairs = [pair for pair in pairs.pairs if not apart & set(pair)]  # type: ignore[attr-defined]
    if not len(pairs):
        raise DataError(
            f"Expected annotated photographs for training in {cfg.truth.points} but all pairs have one that validation or test "
            "uses; annotate others."
        )
    check_common_points(pairs)
    if is_first_process():
        print(f"truth:   {len(pairs)} pairs of annotated photographs")
    return pairs


def n_without_common_points(benchmark: Benchmark) -> int:
    """Returns how many pairs have no point that is known in both images."""
    return sum(not shared for shared in _shared(benchmark))


def check_common_points(benchmark: Benchmark) -> None:
    """Raises a :class:`DataError` when no pair has a point that is known in both images, with which nothing can be learned."""
    if not any(_shared(benchmark)):
        raise DataError(
            f"Expected pairs of split {benchmark.split} of {benchmark.name} whose images have an annotated part in common but "
            f"none of the {len(benchmark)} has; name the same parts in several images of a category."
        )


def _shared(benchmark: Benchmark) -> Iterator[bool]:
    """Yields whether the images of each pair have a point in common, from annotations alone where the data set can."""
    count = getattr(benchmark, "n_common_points", None)
    for number in range(len(benchmark)):
        yield bool(count(number)) if count is not None else bool(benchmark[number].kps_mask.any())


def has_truth(benchmark: Benchmark) -> bool:
    """Returns whether any pair has a point whose place in the target is annotated."""
    if not getattr(benchmark, "has_truth", True):
        return False
    pairs = (benchmark[number] for number in range(len(benchmark)))
    return any(bool((p.kps_mask & torch.isfinite(p.trg_kps).all(-1)).any()) for p in pairs)
