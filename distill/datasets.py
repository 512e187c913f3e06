"""Building a data set of pairs from its configuration, for a split and a number of pairs."""

from omegaconf import DictConfig

from distill.config import instantiate
from distill.evaluation import Benchmark


def pairs_of(data: DictConfig, split: str, n_pairs: int) -> Benchmark:
    """Returns the pairs that ``data`` describes, but of ``split`` and as many as ``n_pairs``."""
    return instantiate({**data, "split": split, "n_pairs": n_pairs})
