"""Learning rates of a training that goes on with another length."""

from typing import Any


def drop_length(checkpoint: dict[str, Any]) -> None:
    """Removes the length of one-cycle schedules from a checkpoint of Lightning's, in place; they keep that of the new training."""
    for state in checkpoint.get("lr_schedulers", []):
        for name in ("total_steps", "_schedule_phases"):
            state.pop(name, None)
