"""Run a teacher over a data set into the label store, and look after the store.

Can be killed at any moment and started again: labels that are there are not made twice. The pairs are those that fit
trains and validates on, and those that it compares on. Any number of processes may work in one folder at once.

A word after the verb does something else: status (what is there), verify (whether all of it is whole), repair (set aside
what is not), merge (add the labels of other folders), export (write a table for other programs, or keypoints and pairs in
the formats of annotation tools and of SPair-71k).

Examples:
  python -m distill label labels.dir=labels
  python -m distill label labels.dir=labels label.shard=0/4 splits=[train]
  python -m distill label labels.dir=labels trainer.devices=8
  python -m distill label --multirun hydra/launcher=slurm labels.dir=labels label.shard=0/4,1/4,2/4,3/4
  torchrun --nproc-per-node=8 -m distill label labels.dir=labels trainer.devices=8
  python -m distill label status labels.dir=labels
  python -m distill label verify labels.dir=labels
  python -m distill label repair labels.dir=labels
  python -m distill label merge labels.dir=labels label.sources=[from_a,from_b]
  python -m distill label export labels.dir=labels label.file=labels.parquet
  python -m distill label export labels.dir=labels label.format=spair71k label.file=tree data=folder data.root=photos
"""

from pathlib import Path

from omegaconf import DictConfig

from distill.cli.config import instantiate
from distill.cli.datasets import check_common_points, pairs_of, tell_what_differs
from distill.cli.processes import is_first_process, launch, on_own_device
from distill.cli.reporting import announce
from distill.core.errors import ConfigError, LabelError, nearest
from distill.core.files import new_folder
from distill.data.annotated_keypoints import check_photographs, root_of
from distill.data.keypoint_files import check_format, write_keypoints
from distill.data.keypoints import check_threshold
from distill.data.photograph_pairs import EmptySplit
from distill.data.spair_tree import write_spair_tree
from distill.labels.audit import audit, summary
from distill.labels.cached import Cached
from distill.labels.folder import check_folder
from distill.labels.formats import export
from distill.labels.generate import coverage, label
from distill.labels.keypoints import label_keypoints, label_pairs
from distill.labels.merge import merge
from distill.labels.repair import repair
from distill.labels.store import LabelStore


def run(cfg: DictConfig) -> int:
    """Runs ``label.action``; returns the number of labels that were made, found, repaired, merged or exported.

    Raises:
        ConfigError: when ``label.action`` is no action.
    """
    actions = {
        "make": _make,
        "status": _status,
        "verify": _verify,
        "repair": _repair,
        "merge": _merge,
        "export": _export,
    }
    if cfg.label.action not in actions:
        raise ConfigError(
            f"Expected a word after label but got {cfg.label.action!r}; {nearest(cfg.label.action, actions)}."
        )
    return actions[cfg.label.action](cfg)


def _make(cfg: DictConfig) -> int:
    """Labels, prints a summary, and returns how many points were labelled, by all processes of this run."""
    share, own = parse_shard(cfg.label.shard), on_own_device(cfg)
    datasets, device = _datasets(own), own.device
    for pairs in datasets:
        check_common_points(pairs)
    fabric = launch(cfg)
    every = slice(share.start + share.step * fabric.global_rank, None, share.step * fabric.world_size)
    teacher = Cached(
        cfg.labels.dir,
        instantiate(own.teacher),
        flush_seconds=cfg.label.flush_seconds,
        fallbacks=list(cfg.labels.fallbacks),
        prompt_cache=cfg.labels.prompt_cache,
        images=cfg.data,
    )
    shown = fabric.is_global_zero
    if shown:
        announce("label", ", ".join(f"{len(p)} {p.split} pairs of {p.name}" for p in datasets), device, cfg.labels.dir)
        for pairs in datasets:
            tell_what_differs(pairs)
    limits = {"batch_size": cfg.label.batch_size, "batch_seconds": cfg.label.batch_seconds}
    mine = sum(label(teacher, pairs, device, progress=shown, every=every, **limits) for pairs in datasets)
    made = int(fabric.all_reduce(float(mine), reduce_op="sum"))
    if fabric.is_global_zero:
        if cfg.label.compact:
            teacher.store.compact()
        teacher.store.refresh()
        print(f"{made} points labelled, {len(teacher.store)} labels in {' and '.join(map(str, teacher.store.folders))}")
    return made


def _status(cfg: DictConfig) -> int:
    folder = Path(cfg.labels.dir)
    check_folder(folder)
    store = LabelStore(folder)
    print(f"folder: {folder}\nlabels: {len(store)}\nfiles: {len(store.files)}")
    print(f"MiB: {sum(path.stat().st_size for path in store.files) / 2**20:.2f}")
    print(f"made by: {', '.join(f'{name}={value}' for name, value in sorted((store.fingerprint or {}).items()))}")
    if cfg.label.coverage:
        for pairs in _datasets(cfg):
            known, points = coverage(store, pairs)
            print(f"{pairs.name} {pairs.split}: {known} of {points} points are labelled")
    return len(store)


def _verify(cfg: DictConfig) -> int:
    found = audit(Path(cfg.labels.dir))
    for name, value in summary(found).items():
        print(f"{name}: {value}")
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        raise LabelError(
            f"Expected whole labels in {cfg.labels.dir} but found {len(found.problems)} problems: "
            f"{'; '.join(found.problems)}; mend them with: python -m distill label repair labels.dir={cfg.labels.dir}"
        )
    print("nothing is wrong")
    return found.labels


def _repair(cfg: DictConfig) -> int:
    for line in repair(Path(cfg.labels.dir)):
        print(line)
    return _verify(cfg)


def _merge(cfg: DictConfig) -> int:
    if not cfg.label.sources:
        raise ConfigError("Expected folders to merge but got none; add label.sources=[a,b].")
    added = merge([Path(source) for source in cfg.label.sources], Path(cfg.labels.dir))
    print(f"{added} labels added to {cfg.labels.dir}")
    return added


def _export(cfg: DictConfig) -> int:
    if cfg.label.file is None:
        raise ConfigError("Expected a file to export to but got none; add label.file=labels.parquet (or .csv, .json).")
    if cfg.label.format is not None:
        return _export_keypoints(cfg, Path(cfg.label.file))
    written = export(Path(cfg.labels.dir), Path(cfg.label.file))
    print(f"{written} labels in {cfg.label.file}")
    return written


def _export_keypoints(cfg: DictConfig, path: Path) -> int:
    """Writes the labels of the data set's pairs as keypoints by image, or as pairs; returns how many of these."""
    check_format(cfg.label.format, path, "label.file")
    check_threshold(cfg.label.unsure)
    check_folder(Path(cfg.labels.dir))
    store, datasets = LabelStore(cfg.labels.dir), [check_photographs(pairs) for pairs in _datasets(cfg)]
    upright = datasets[0].exif_orientation if datasets else True
    if cfg.label.format == "spair71k":
        tree_images, pairs = label_pairs(store, datasets, cfg.label.unsure)
        with new_folder(path) as folder:
            written, what = write_spair_tree(tree_images, pairs, folder, upright), "pairs"
    else:
        images, splits = label_keypoints(store, datasets, cfg.label.unsure)
        splits = {name: "train" if split == "train" else "val" for name, split in splits.items()}
        write_keypoints(images, root_of(datasets[0]), path, cfg.label.format, splits, upright)
        written, what = len(images), "images"
    print(f"labels of {written} {what} in {path}")
    return written


def _datasets(cfg: DictConfig) -> list:
    unknown = [split for split in cfg.splits if split not in ("train", "val", "test")]
    if unknown:
        raise ConfigError(f"Expected splits among train, val and test but got {unknown}; correct splits=[...].")
    wanted, found, empty = [split for split in cfg.splits if cfg[split].n_pairs != 0], [], None
    for split in wanted:
        try:
            pairs = pairs_of(cfg.data, split, cfg[split])
            # As fit does: points of its own are for training, annotated ones for measuring.
            gridded = split == "train" and cfg.points is not None
            found.append(instantiate(cfg.points, pairs=pairs) if gridded else pairs)
        except EmptySplit as error:  # of a folder too small to set photographs aside, which fit takes, too
            empty = error
            if is_first_process() and len(wanted) > 1:
                print(f"note: split {split} is left out: {error}")
    if empty is not None and not found:
        raise empty
    return found


def parse_shard(text: str) -> slice:
    """Returns which source images "i/N" means: every N-th from the i-th on.

    Raises:
        ConfigError: unless 0 <= i < N.
    """
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise ConfigError(f"Expected label.shard as i/N with 0 <= i < N but got {text!r}; the first of four is 0/4.")
    return slice(int(i), None, int(n))
