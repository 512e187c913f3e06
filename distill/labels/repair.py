"""Repairing a folder of labels."""

from pathlib import Path

from distill.core.errors import DataError, LabelError
from distill.labels.audit import audit
from distill.labels.folder import LabelFolder
from distill.labels.index import FILE
from distill.labels.shard import is_label_name, write_shard

ASIDE = "damaged"


def repair(folder: Path) -> list[str]:
    """Moves damaged files away, keeps every undamaged label, and makes the index again.

    Files that cannot be read or are of another teacher go to the folder ``damaged`` inside; so do files with single
    damaged labels, after their other labels were written to a new file. Where labels of one point disagree, none is
    kept. No other process may write meanwhile.

    Returns:
        What was done, in words.

    Raises:
        LabelError: when there is no such folder, it holds files of something else alone, or it cannot be written to.
    """
    found = audit(folder)
    if found.refused and not found.shards and not any(map(is_label_name, found.refused)):
        names = ", ".join(path.name for path in found.refused)
        raise LabelError(
            f"Expected a folder of labels but {folder} holds {names} and none; give the folder of the labels, of a fit "
            f"labels.dir=<its run.dir>/labels."
        )
    done = []
    try:
        for path, why in found.refused.items():
            _set_aside(path)
            done.append(f"{path.name} {why}: moved to {ASIDE}/")
        for shard in found.shards:
            bad = found.bad.get(shard.path)
            if bad is None:
                continue
            if not bad.all():
                write_shard(folder, shard.columns.take((~bad).nonzero()[0]), found.fingerprint)
            _set_aside(shard.path)
            done.append(f"{shard.path.name}: {int((~bad).sum())} labels kept, {int(bad.sum())} not, moved to {ASIDE}/")
        for path in found.unfinished:
            path.unlink()
            done.append(f"{path.name}: unfinished, removed")
        (folder / FILE).unlink(missing_ok=True)
        LabelFolder(folder).write_index()
    except (OSError, DataError) as error:
        raise LabelError(f"Expected to mend labels in {folder} but got: {error}; make it writable.") from error
    return [*done, f"{FILE}: made again" if (folder / FILE).exists() else "one file needs no index"]


def _set_aside(path: Path) -> None:
    aside = path.parent / ASIDE
    aside.mkdir(exist_ok=True)
    path.replace(aside / path.name)
