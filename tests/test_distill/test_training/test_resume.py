"""Trainings that were stopped and go on, or finished and are extended."""

from functools import partial

import pytest
import torch
from trainings import Stop, trained

from distill.core.errors import ConfigError
from distill.data.datasets.shapes import ShapesPairs
from distill.training.callbacks.self_distillation import SelfDistillation
from student import FeatureTeacher


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (3, 9)])
def test_the_last_weights_are_kept_whenever_the_last_validation_was(tmp_path, epochs, steps):
    module, checkpoint = trained(tmp_path, epochs)
    state = torch.load(checkpoint.best_model_path, weights_only=True)
    assert state["global_step"] == steps
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in module.state_dict().items())


def test_a_finished_training_is_extended_with_a_schedule_of_its_new_length(tmp_path):
    trained(tmp_path / "extended", 2)
    states = [
        torch.load(trained(tmp_path / name, 4, resume=resume)[1].best_model_path, weights_only=True)
        for name, resume in (("extended", True), ("whole", False))
    ]
    extended, whole = ([group["lr"] for group in state["optimizer_states"][0]["param_groups"]] for state in states)
    assert extended == whole and [state["global_step"] for state in states] == [12, 12]


def test_a_resumed_training_with_fewer_epochs_than_it_has_is_refused(tmp_path):
    trained(tmp_path, 2)
    with pytest.raises(
        ConfigError, match="trainer.max_epochs of at least 2, the epochs that .*last.ckpt has, but got 1"
    ):
        trained(tmp_path, 1, resume=True)


def test_a_resumed_training_with_fewer_steps_than_it_has_is_refused(tmp_path):
    trained(tmp_path, 2)
    with pytest.raises(ConfigError, match="trainer.max_steps of at least 6, the steps that .*last.ckpt has, but got 5"):
        trained(tmp_path, 2, resume=True, max_steps=5)


def test_a_resumed_training_whose_epochs_have_other_steps_is_refused(tmp_path):
    """The schedule counts steps: it failed in the last epochs where there were fewer, and stayed above 0 where there were more."""
    trained(tmp_path, 1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    of_version_0_1 = torch.load(last, weights_only=True)
    for _ in range(2):
        for options in (
            {"devices": 2, "strategy": "ddp"},
            {"accumulate_grad_batches": 2},
            {"limit_train_batches": 0.7},
        ):
            with pytest.raises(
                ConfigError, match="Expected 3 steps an epoch, .*last.ckpt .* but got 2; set trainer.dev"
            ):
                trained(tmp_path, 4, resume=True, **options)
        assert of_version_0_1.pop("steps_per_epoch") == 3
        torch.save(of_version_0_1, last)
        of_version_0_1["steps_per_epoch"] = 3


def test_a_training_that_accumulates_gradients_goes_on(tmp_path):
    trained(tmp_path, 2, accumulate_grad_batches=2, max_steps=3)  # one and a half epochs
    last = tmp_path / "checkpoints" / "last.ckpt"
    of_version_0_1 = torch.load(last, weights_only=True)
    assert of_version_0_1.pop("steps_per_epoch") == 2
    torch.save(of_version_0_1, last)
    _, checkpoint = trained(tmp_path, 3, accumulate_grad_batches=2, resume=True)
    assert torch.load(checkpoint.best_model_path, weights_only=True)["steps_per_epoch"] == 2


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_resumed_training_with_another_optimizer_is_refused(tmp_path, before, after):
    trained(tmp_path, 2, optimizer=before)
    with pytest.raises(ConfigError, match=f"optimizer={before}, whose state .*last.ckpt has, but got {after}; set it"):
        trained(tmp_path, 4, resume=True, optimizer=after)


@pytest.mark.parametrize(("optimizer", "start_epoch"), [("adamw", 2), ("muon", 2), ("adamw", 3)])
def test_self_distillation_resumes_bit_for_bit(tmp_path, optimizer, start_epoch):
    """The labels are those of the last validation's averaged weights, which differ from the present ones.

    The teacher's are used until there is one, at the end of every second epoch, also in an epoch after ``start_epoch``.
    """

    def teaching():
        return SelfDistillation(partial(FeatureTeacher, side=8), start_epoch=start_epoch)

    whole, _ = trained(tmp_path / "whole", 6, self_distillation=teaching(), optimizer=optimizer)
    for stop in ((3, 1), (5, 2)):  # an epoch after a validation, and two epochs after another
        folder = tmp_path / str(stop[0])
        with pytest.raises(Stop):
            trained(folder, 6, stop=stop, self_distillation=teaching(), optimizer=optimizer)
        resumed, _ = trained(folder, 6, resume=True, self_distillation=teaching(), optimizer=optimizer)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (stop, name)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_training_goes_on_with_the_pairs_without_labels(tmp_path, num_workers):
    """Loading processes are started before Lightning tells the epoch."""
    seen: dict[str, list] = {}

    class Seen(SelfDistillation):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault(self.run, []).append((trainer.current_epoch, batch_idx, tuple(batch.src_hash)))

    def run(name, **options):
        own = Seen(partial(FeatureTeacher, side=8), start_epoch=2)
        own.run = name
        further = (ShapesPairs("train", 12, 1, 64), 2)
        return trained(
            tmp_path / name[:1], 6, self_distillation=own, unlabelled=further, num_workers=num_workers, **options
        )[0]

    whole = run("whole")
    with pytest.raises(Stop):
        run("stopped", stop=(4, 1))
    resumed = run("s, resumed", resume=True)
    begun = seen["s, resumed"][0][0]
    assert begun >= 3 and seen["s, resumed"] == [place for place in seen["whole"] if place[0] >= begun]
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())
