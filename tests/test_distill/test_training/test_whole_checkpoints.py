"""Checkpoints are there whole, or as they were."""

import errno
import resource

import pytest
import torch
from trainings import distillation, fit

from distill.cli.config import compose
from distill.cli.fit_parts import build, settle
from distill.training.checkpoint import read_checkpoint
from distill.training.whole_checkpoints import WholeCheckpoints

SMALL = [
    *("teacher=oracle", "data.size=64", "student.backbone=test_resnet", "student.strides=[8,16]", "train.n_pairs=8"),
    *("val.n_pairs=4", "test.n_pairs=0", "device=cpu", "trainer.accelerator=cpu", "train.unlabelled=0"),
]


def test_without_room_an_older_checkpoint_stays(tmp_path):
    """Half of the new one was there in its place, and the training could not be resumed."""
    path, writer = tmp_path / "checkpoints" / "last.ckpt", WholeCheckpoints()
    content = {"state_dict": {"x": torch.arange(10_000)}, "global_step": 1}
    writer.save_checkpoint(content, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            writer.save_checkpoint(content | {"global_step": 2}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"] and read_checkpoint(path)["global_step"] == 1


def test_fits_write_them(tmp_path):
    config = compose("fit", [*SMALL, f"run.dir={tmp_path}/r", f"labels.dir={tmp_path}/l"])
    settle(config)
    trainer = build(config).trainer
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)


def test_a_training_writes_what_lightning_writes(tmp_path):
    for name in ("lightnings", "ours"):
        (tmp_path / name).mkdir()
    lightnings, ours = (fit(distillation(), tmp_path / name, 1) for name in ("lightnings", "ours"))
    ours.strategy.checkpoint_io = WholeCheckpoints()
    for trainer, name in ((lightnings, "lightnings"), (ours, "ours")):
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("lightnings", "ours"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
