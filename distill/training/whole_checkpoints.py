"""Writing checkpoints so that a training can be resumed whatever happens meanwhile."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from distill.core.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that an older one stays whole until then.

    Lightning writes to the system's temporary folder and moves the file. Where that is on another disk the move copies it onto the
    older one: a full disk, or a process that was killed, left a part of it, and the training could not be resumed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes ``checkpoint``.

        Args:
            checkpoint: tensors and plain values.
            path: of the file; an older one is replaced.
            storage_options: none, as of :class:`TorchCheckpointIO`.

        Raises:
            OSError: when there is no room; it names ``path``.
            DataError: when it cannot be written there.
        """
        content = BytesIO()
        torch.save(checkpoint, content)
        with replacing(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())


def write_whole_checkpoints(trainer: Trainer) -> Trainer:
    """Returns ``trainer``, which writes its checkpoints by :class:`WholeCheckpoints` unless it has a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer
