"""Checking a folder of labels: whether it is complete, undamaged, and of one teacher."""

import fcntl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.checks import SLACK
from distill.core.errors import LabelError
from distill.labels.folder import check_folder, mismatch
from distill.labels.index import FILE, Index, label_files, read_index
from distill.labels.records import FURTHEST, Columns, differ
from distill.labels.shard import SUFFIX, Shard, digest, open_shard


@dataclass
class Audit:
    """The findings of :func:`audit` in one folder.

    Attributes:
        folder: that was checked.
        shards: the files that can be read and are of the same teacher.
        labels: how many there are in these, each point counted once.
        fingerprint: of the teacher that made most of them.
        refused: files that cannot be read or are of another teacher, and why.
        bad: for each file that can be read, (R,) bool which labels are damaged, impossible or contradicted.
        problems: all that is wrong, as sentences.
        notes: what is unusual but no problem.
        unfinished: files that killed processes left.
    """

    folder: Path
    shards: list[Shard] = field(default_factory=list)
    labels: int = 0
    fingerprint: dict[str, str] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    bad: dict[Path, NDArray[np.bool_]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)


def audit(folder: Path) -> Audit:
    """Reads every label in ``folder``, compares checksums, files, index and fingerprints.

    Raises:
        LabelError: when there is no such folder.
    """
    check_folder(folder)
    found = Audit(folder)
    readable = [shard for path in label_files(folder) if (shard := _readable(path, found))]
    makers = Counter[str]()
    for shard in readable:
        makers[str(sorted(shard.fingerprint.items()))] += len(shard.columns)
    most = makers.most_common(1)[0][0] if makers else ""
    found.fingerprint = next((s.fingerprint for s in readable if str(sorted(s.fingerprint.items())) == most), {})
    for shard in readable:
        _look_at(shard, found)
    index = Index.of(found.shards)
    found.labels = index.distinct()
    _look_for_doubles(index, found)
    _look_at_index(found)
    hidden = (path for suffix in (SUFFIX, Path(FILE).suffix) for path in folder.glob(f".*{suffix}"))
    found.unfinished = [path for path in sorted(hidden) if _is_left(path)]
    if found.unfinished:
        found.notes.append(
            f"{len(found.unfinished)} unfinished files were left by killed processes; nothing reads them"
        )
    found.problems = [f"{path.name} {why}" for path, why in found.refused.items()] + found.problems
    return found


def _readable(path: Path, found: Audit) -> Shard | None:
    try:
        return open_shard(path)
    except LabelError as error:
        found.refused[path] = f"cannot be read ({str(error).partition(';')[0]})"
        return None


def _look_at(shard: Shard, found: Audit) -> None:
    differing = mismatch(shard.fingerprint, found.fingerprint)
    if differing:
        found.refused[shard.path] = f"is of another teacher: {differing.replace('asked for', 'in most others')}"
        return
    columns = shard.columns
    bad = shard.damaged()
    if bad.any():
        example = columns.describe(int(bad.argmax()))
        found.problems.append(f"{shard.path.name} has {int(bad.sum())} damaged labels, such as of {example}")
    elif digest(shard.path.read_bytes()) != shard.path.stem:
        bad = bad.copy()
        found.problems.append(f"{shard.path.name} has other bytes than its name says, outside its labels")
        found.bad[shard.path] = bad
    impossible = ~bad & ~_possible(columns)
    if impossible.any():
        example = columns.describe(int(impossible.argmax()))
        found.problems.append(f"{shard.path.name} has {int(impossible.sum())} impossible labels, such as of {example}")
    if (bad | impossible).any():
        found.bad[shard.path] = bad | impossible
    found.shards.append(shard)


def _possible(columns: Columns) -> NDArray[np.bool_]:
    """Returns (R,) which labels are such as are stored, see :func:`distill.core.checks.check_label`; NaN is none."""
    points = np.concatenate([columns.src_point, columns.trg_point], 1)
    near, sure = (np.abs(points) < FURTHEST).all(1), np.abs(columns.confidence - 0.5) <= 0.5 + SLACK
    return near & sure & np.isfinite(columns.heatmap).all((1, 2)) & (columns.heatmap.max((1, 2)) >= -SLACK)


def _look_for_doubles(index: Index, found: Audit) -> None:
    """Compares labels of the same point, up to rounding."""
    shards = {shard.path: shard for shard in found.shards}
    same, disagreeing = 0, []
    for place in (index.key[1:] == index.key[:-1]).nonzero()[0].tolist():
        one, other = (shards[index.files[index.file[p]]] for p in (place, place + 1))
        rows = [np.array([index.row[p]]) for p in (place, place + 1)]
        if not differ(one.columns.take(rows[0]).answers(), other.columns.take(rows[1]).answers()).any():
            same += 1
            continue
        disagreeing.append(f"{one.columns.describe(int(rows[0][0]))} in {one.path.name} and {other.path.name}")
        for shard, row in ((one, rows[0]), (other, rows[1])):
            found.bad.setdefault(shard.path, np.zeros(len(shard.columns), bool))[row] = True
    if same:
        found.notes.append(f"{same} labels are there twice, the same up to rounding; label.compact=true keeps one")
    if disagreeing:
        found.problems.append(f"{len(disagreeing)} labels disagree with another of their point: {disagreeing[0]}")


def _look_at_index(found: Audit) -> None:
    try:
        index, fingerprint, sizes = read_index(found.folder)
    except LabelError as error:
        found.problems.append(str(error).partition(";")[0])
        return
    if not sizes:
        return
    present = label_files(found.folder)
    differing = mismatch(fingerprint, found.fingerprint) if found.shards else ""
    if differing:
        found.problems.append(f"{FILE} is of another teacher: {differing.replace('asked for', 'in the files')}")
        return
    gone = [path for path in sizes if path not in present]
    if len(gone) == len(sizes):
        found.problems.append(f"{FILE} is of other files: none of its {len(sizes)} is in {found.folder}")
        return
    cut = [path for path in sizes if path in present and present[path] != sizes[path]]
    found.problems += [f"{path.name} has {present[path]} bytes, where {FILE} says {sizes[path]}" for path in cut]
    covered = [shard for shard in found.shards if shard.path in sizes]
    wrong = _differences(index.without({*sizes} - {shard.path for shard in covered}), Index.of(covered))
    if wrong:
        found.problems.append(f"{FILE} has {wrong} labels elsewhere than the files")
    unknown = len(present) - len([path for path in sizes if path in present])
    if unknown or gone:
        found.notes.append(f"{FILE} does not know {unknown} files and knows {len(gone)} that are gone; both is allowed")


def _differences(index: Index, truth: Index) -> int:
    """Returns how many labels one of two indices has and the other has not, in the same place."""

    def rows(of: Index) -> Counter[tuple[int, str, int]]:
        """Returns how often the index has each (key, file name, row)."""
        names = [path.name for path in of.files]
        files = (names[number] for number in of.file.tolist())
        return Counter(zip(of.key.tolist(), files, of.row.tolist(), strict=True))

    one, other = rows(index), rows(truth)
    return ((one - other) + (other - one)).total()


def _is_left(path: Path) -> bool:
    """Returns whether no process writes an unfinished file any more: its writer holds a lock as long as it lives."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def summary(found: Audit) -> Mapping[str, object]:
    """Returns the figures of an audit, by name."""
    images = {image.hash for shard in found.shards for image in shard.columns.images}
    size = sum(label_files(found.folder).values())
    return {
        "folder": str(found.folder),
        "labels": found.labels,
        "images": len(images),
        "files": len(found.shards) + len(found.refused),
        "MiB": round(size / 2**20, 2),
        "made by": ", ".join(f"{name}={value}" for name, value in sorted(found.fingerprint.items())),
    }
