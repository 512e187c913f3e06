"""Building a data set of pairs from its configuration, for a split and a number of pairs."""

from omegaconf import DictConfig

from distill.cli.config import instantiate
from distill.core.protocols import Benchmark


def pairs_of(data: DictConfig, split: str, choice: DictConfig) -> Benchmark:
    """Returns the pairs that ``data`` describes, but of ``split``.

    Args:
        data: the configuration of a data set.
        split: which one.
        choice: what else differs for this split, such as ``n_pairs``, or ``pairs``, a file with a list of pairs.
    """
    differing = {key: value for key, value in choice.items() if value is not None or key == "n_pairs"}  # null: all
    return instantiate({**data, "split": split, **differing})
