"""Stops a training whose loss is NaN or infinite, and names the batch and the pair."""

import torch
from torch import Tensor

from distill.core.errors import DataError
from distill.core.types import Matches
from distill.data.pairs import select_pairs
from distill.losses import Example, Loss


def check_finite(terms: dict[str, Tensor], losses: dict[str, Loss], example: Example, batch_idx: int) -> None:
    """Checks the losses of a batch.

    Args:
        terms: the scalar value of each loss, by name.
        losses: the losses themselves, to find the pair.
        example: the batch.
        batch_idx: its number in the epoch.

    Raises:
        DataError: naming the losses, the batch and the pair, before an optimiser's step could spread the damage.
    """
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if not broken:
        return
    pairs = example.pairs
    culprits = [
        f"{pairs.src_id[row]} -> {pairs.trg_id[row]}"
        for row in range(len(pairs.category))
        if _is_broken(one_pair(example, row), losses[broken[0]])
    ]
    where = f"the pair {culprits[0]}" if culprits else f"one of its {len(pairs.category)} pairs together"
    raise DataError(
        f"Expected a finite loss but {', '.join(broken)} is NaN or infinite in batch {batch_idx}, at {where}; the weights "
        "are as they were before it, and checkpoints/ in run.dir holds the last good ones. Lower lr, or leave the pair out."
    )


def one_pair(example: Example, row: int) -> Example:
    """Returns the example of one pair of the batch."""

    def only(matches: Matches) -> Matches:
        """Returns the answers to the one pair."""
        return Matches(*(field[row : row + 1] for field in matches))

    return Example(
        pairs=select_pairs(example.pairs, [row]),
        label=only(example.label),
        prediction=only(example.prediction),
        student=example.student,
        src_map=None if example.src_map is None else example.src_map[row : row + 1],
        trg_map=None if example.trg_map is None else example.trg_map[row : row + 1],
    )


def _is_broken(example: Example, loss: Loss) -> bool:
    with torch.no_grad():
        return not bool(torch.isfinite(loss(example)))
