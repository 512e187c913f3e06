"""Who is right where: two matchers on the same points."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def win_loss(first: Sequence[NDArray], second: Sequence[NDArray]) -> dict[str, dict[str, int]]:
    """Counts where ``first`` beats ``second``, pair by pair and point by point.

    Args:
        first: for each pair (n,) bool, which of its points are right.
        second: the same of the other matcher.

    Returns:
        "pairs": "wins" (pairs of which the first has more points right), "losses", "ties"; "points": "both" right, "wins" (the
        first alone), "losses" (the second alone), "neither".
    """
    more = np.array([int(a.sum()) - int(b.sum()) for a, b in zip(first, second, strict=True)])
    one, other = np.concatenate(list(first)), np.concatenate(list(second))
    return {
        "pairs": {"wins": int((more > 0).sum()), "losses": int((more < 0).sum()), "ties": int((more == 0).sum())},
        "points": {
            "both": int((one & other).sum()),
            "wins": int((one & ~other).sum()),
            "losses": int((~one & other).sum()),
            "neither": int((~one & ~other).sum()),
        },
    }


def agreement_by_rightness(close: Sequence[NDArray], right: Sequence[NDArray]) -> dict[str, dict[str, Any]]:
    """Splits the agreement of a matcher with a reference by whether the reference was right.

    A student that agrees where its teacher was wrong has learned the teacher's errors.

    Args:
        close: for each pair (n,) bool, whether both answers lie within the tolerance of each other.
        right: for each pair (n,) bool, whether the reference was right.

    Returns:
        "right" and "wrong": the share of close answers in percent, None without such points, and "n_points".
    """
    near, good = np.concatenate(list(close)), np.concatenate(list(right))
    split = {"right": near[good], "wrong": near[~good]}
    return {
        name: {"within": round(float(100 * part.mean()), 3) if len(part) else None, "n_points": len(part)}
        for name, part in split.items()
    }
