"""Writes a list of pairs of test photographs that ``data=cub data.n_pairs=1000`` leaves out, for a second test.

    python docs/left_out_pairs.py <CUB-crops> left_out.csv

The list is read by ``data.pairs=left_out.csv data.n_pairs=null``: 500 pairs of one species each, from all species in turn, drawn by a seed.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from distill.core.files import replacing
from distill.data.datasets.cub import CUBPairs
from distill.data.pair_list import pair_list


def left_out(root: str, count: int = 500, first: int = 1000, seed: int = 7) -> list[tuple[str, str]]:
    """Returns ``count`` pairs, (source, target), of test photographs that are in none of the ``first`` pairs of the test split."""
    tested = CUBPairs(root, "test", first)
    used = {name for pair in tested.pairs for name in pair}
    species = defaultdict(list)
    for name in tested.ids:
        if name not in used:
            species[tested.annotations.category[tested.ids[name]]].append(name)
    groups = [names for _, names in sorted(species.items()) if len(names) > 1]
    if sum(len(names) * (len(names) - 1) for names in groups) < count:
        raise SystemExit(
            f"Expected {count} pairs of photographs that are left out but there are fewer; give a larger set."
        )
    random = np.random.default_rng(seed)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        for names in groups:
            source, target = random.choice(len(names), 2, replace=False)
            pairs[names[source], names[target]] = None
    return list(pairs)[:count]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of the crops, in the layout of CUB-200-2011")
    parser.add_argument("file", type=Path, help="of the list, CSV")
    arguments = parser.parse_args()
    with replacing(arguments.file) as unfinished:
        unfinished.write_text(pair_list(left_out(arguments.root)), encoding="utf-8")
