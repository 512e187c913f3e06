"""Run a teacher over a data set into the label store.

Can be killed at any moment and started again: labels that are there are not made twice. The pairs are those that fit
trains and validates on, and those that it compares on.

Examples:
  python -m distill label labels.dir=labels
  python -m distill label labels.dir=labels label.shard=0/4 splits=[train]
"""

from omegaconf import DictConfig

from distill.config import instantiate
from distill.datasets import pairs_of
from distill.environment import choose_device
from distill.errors import ConfigError
from distill.labelling import label
from distill.matchers.cached import Cached


def run(cfg: DictConfig) -> int:
    """Labels, prints a summary, and returns how many points were labelled."""
    every = parse_shard(cfg.label.shard)
    unknown = [split for split in cfg.splits if split not in ("train", "val", "test")]
    if unknown:
        raise ConfigError(f"Expected splits among train, val and test but got {unknown}; correct splits=[...].")
    datasets = [pairs_of(cfg.data, split, cfg[split].n_pairs) for split in cfg.splits]
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), offers=list(cfg.labels.offers))
    made = sum(label(teacher, pairs, choose_device(cfg.device), every=every) for pairs in datasets)
    if cfg.label.compact:
        teacher.store.compact()
    print(f"{made} points labelled, {len(teacher.store)} labels in {cfg.labels.dir}")
    return made


def parse_shard(text: str) -> slice:
    """Returns which pairs "i/N" means: every N-th from the i-th on.

    Raises:
        ConfigError: unless 0 <= i < N.
    """
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise ConfigError(f"Expected label.shard as i/N with 0 <= i < N but got {text!r}; the first of four is 0/4.")
    return slice(int(i), None, int(n))
