"""Stops a training whose loss or gradient is NaN or infinite, or whose loss teaches nothing, and names where."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
        DataError: naming the losses, the batch and the pair, before an optimiser's step could spread the damage; or a loss
            that is no scalar.
    """
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"Expected loss.terms.{name} to return a scalar tensor but got {got}; distill.losses.weighted_mean averages "
                "over the points that count."
            )
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


def check_gradients_reach(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Checks that each loss of a training step that counts leads back to the student.

    A loss of 0 may be a constant: it is what a loss returns for a batch that it has nothing to say about.

    Args:
        terms: the scalar value of each loss, by name.
        weights: of the losses, by name; those of weight 0 are logged only.

    Raises:
        DataError: naming a loss that was cut off, such as by ``detach()``; the optimiser would not see it.
    """
    for name, weight in weights.items():
        if weight and not terms[name].requires_grad and bool(terms[name] != 0):
            raise DataError(
                f"Expected loss.terms.{name} to depend on the student's answer but its result has no gradient, so that nothing is "
                "learned from it; compute it from example.prediction with torch, without detach(), item() or no_grad(), or set "
                f"loss.weights.{name}=0, which only logs it."
            )


def check_finite_gradients(student: nn.Module, step: int) -> None:
    """Checks the gradients of a step. A loss can be finite where its gradient is not, such as a square root at 0.

    Args:
        student: whose parameters have their gradients, not scaled.
        step: how many steps were taken before.

    Raises:
        DataError: naming the parameters and the step, before the optimiser takes it.
    """
    gradients = {name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None}
    if not gradients or torch.isfinite(torch.nn.utils.get_total_norm(gradients.values())):
        return
    broken = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if not broken:  # their norm alone overflows, which clipping turns into a step of 0
        return
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    raise DataError(
        f"Expected finite gradients but that of {broken[0]}{more} is NaN or infinite in step {step}, where the losses are finite; the "
        "weights are as they were before it. Look for a root, a logarithm or a division that reaches 0 in a loss of your own: "
        "+trainer.detect_anomaly=true names the operation, loss.terms.<name>=null loss.weights.<name>=null leaves a loss out."
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
