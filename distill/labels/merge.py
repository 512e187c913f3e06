"""Merging folders of labels of one teacher."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.core.errors import DataError, LabelError
from distill.labels.folder import LabelFolder, mismatch
from distill.labels.records import differ
from distill.labels.shard import digest, write_whole


def merge(sources: Sequence[Path], into: Path) -> int:
    """Adds the labels of ``sources`` to those in ``into``; returns how many were added.

    Labels that are there already are left out. Files of the previous format are converted, see
    :func:`distill.labels.shard.open_shard`. It may be interrupted and done again.

    Raises:
        LabelError: before anything is written, when the folders are of different teachers, naming the fields, or have
            labels of one point that differ by more than rounding (:data:`distill.labels.records.ROUNDING`), naming it;
            when a folder is missing, empty or damaged.
    """
    folders = [LabelFolder(source) for source in sources]
    for folder in folders:
        if not len(folder.index):
            raise LabelError(f"Expected labels in {folder.path} but found none; correct label.sources=[...].")
    target = LabelFolder(into)
    _check_teachers([folder for folder in (target, *folders) if folder.fingerprint is not None])
    target.fingerprint = folders[0].fingerprint
    everything = [target, *folders]
    for number, folder in enumerate(everything):
        for earlier in everything[:number]:
            _check_agreement(earlier, folder)
    before = target.index.distinct()
    for folder in folders:
        _add(folder, target)
    target.write_index()
    return target.index.distinct() - before


def _check_teachers(folders: Sequence[LabelFolder]) -> None:
    first = folders[0]
    for folder in folders[1:]:
        differing = mismatch(folder.fingerprint or {}, first.fingerprint or {})
        if differing:
            differing = differing.replace("in the store", f"in {folder.path}").replace("asked for", f"in {first.path}")
            raise LabelError(f"Expected labels of one teacher but these differ: {differing}; keep them apart.")


def _check_agreement(one: LabelFolder, other: LabelFolder) -> None:
    """Compares the answers to points that both folders have, up to rounding."""
    place = one.index.find(other.index.key)
    shared = (place >= 0).nonzero()[0]
    answers = [np.zeros((len(shared), 3), np.float32) for _ in range(2)]
    for folder, places, into in ((one, place[shared], answers[0]), (other, shared, answers[1])):
        for members, columns in folder.read(places):
            into[members] = columns.answers()
    differing = differ(*answers).nonzero()[0]
    if len(differing):
        ((_, columns),) = other.read(shared[differing[:1]])
        raise LabelError(
            f"Expected the same labels in {one.path} and {other.path} but {len(differing)} of {len(shared)} that both have "
            f"differ, such as of {columns.describe(0)}; look at both with: python -m distill label export, and leave one "
            "out."
        )


def _add(source: LabelFolder, target: LabelFolder) -> None:
    """Copies whole files, and of files that share labels with the target the other labels."""
    new = target.index.find(source.index.key) < 0
    new[1:] &= source.index.key[1:] != source.index.key[:-1]
    for number, path in enumerate(source.index.files):
        places = (source.index.file == number).nonzero()[0]
        if not new[places].any():
            continue
        if new[places].all() and not source.is_old(path):
            content = path.read_bytes()
            if digest(content) != path.stem:
                raise LabelError(f"Expected labels as they were written but {path} has changed; see label verify.")
            target.path.mkdir(parents=True, exist_ok=True)
            try:
                write_whole(target.path / path.name, content)
            except (OSError, DataError) as error:
                raise target.cannot_write(error) from error
        else:
            target.write(columns for _, columns in source.read(places[new[places]]))
    target.refresh()
