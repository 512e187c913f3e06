"""Symmetric groups of SPair-71k, AP-10K and CUB-200-2011.

A group holds the parts of an object that mirror or repeat each other, such as both eyes or the four legs. A part is
named by its number among the benchmark's points, from 0 on. Each constant holds the groups by category; the category ""
stands for all that are not named.

A point is geometry-aware when another part of its group is visible in the target too, so that appearance alone cannot
tell them apart (Zhang et al., "Telling Left from Right", CVPR 2024). The groups of SPair-71k and AP-10K are those of that
work; those of CUB-200-2011 are its parts named left and right, and so are those of data whose parts have names of any kind.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

Groups = Sequence[Sequence[int]]

_WHEELED = ((10, 13, 20, 23), (11, 14, 21, 24), (12, 15, 22, 25), (16, 17, 26, 27), (18, 19, 28, 29))
_LEGS = ((9, 10, 11, 12), (15, 16, 17, 18))

SPAIR71K: Mapping[str, Groups] = {
    "aeroplane": tuple((left, left + 1) for left in range(4, 21, 2)),
    "bicycle": ((2, 3), (6, 7), (9, 10)),
    "bird": ((1, 2), (10, 11), (12, 13), (14, 15)),
    "boat": tuple((left, left + 1) for left in range(1, 12, 2)),
    "bottle": tuple((left, left + 1) for left in range(0, 9, 2)),
    "bus": ((0, 1), (2, 3, 5, 6), (4, 7), *_WHEELED),
    "car": ((0, 1), (2, 3, 6, 7), (4, 8), (5, 9), *_WHEELED),
    "cat": ((2, 3), _LEGS[0]),
    "chair": ((0, 1), (2, 3), (4, 5, 6, 7), (8, 9), (10, 11), (12, 13)),
    "cow": ((2, 3), *_LEGS, (19, 20)),
    "dog": ((2, 3), _LEGS[0]),
    "horse": ((2, 3), (10, 11, 12, 13), (16, 17, 18, 19)),
    "motorbike": ((0, 1), (2, 3)),
    "person": tuple((left, left + 1) for left in range(8, 19, 2)),
    "pottedplant": ((0, 1, 2, 3), (4, 5), (6, 8)),
    "sheep": ((2, 3), *_LEGS, (19, 20)),
    "train": tuple((left, left + 1) for left in range(0, 17, 2)),
    "tvmonitor": ((0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)),
}

AP10K: Mapping[str, Groups] = {"": ((5, 8), (6, 9, 12, 15), (7, 10, 13, 16), (11, 14))}

CUB: Mapping[str, Groups] = {"": ((6, 10), (7, 11), (8, 12))}

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+|\d+")
SIDES = {"left", "right", "l", "r"}


def named_groups(parts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Returns groups of parts, by their number, whose names differ in the word for the side only.

    Such words are left and right, and l and r: "left eye" and "right eye", "L_Eye" and "R_Eye", "earLeft" and "earRight".
    """
    groups = defaultdict(list)
    for number, name in enumerate(parts):
        words = [word.lower() for word in WORD.findall(name)]
        if SIDES & set(words):
            groups[tuple("" if word in SIDES else word for word in words)].append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
