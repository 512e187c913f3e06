"""Hydra's own command line, with its sweeps and launchers."""

import subprocess
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from distill.cli.config import shipped
from distill.labels.store import LabelStore


@pytest.mark.slow
def test_a_sweep_labels_every_share(tmp_path, root):
    command = [sys.executable, "-m", "distill.cli.multirun", "--multirun", "--config-name", "label"]
    data = ["teacher=oracle", "data.size=32", "splits=[train]", "train.n_pairs=16", "device=cpu"]
    shares = ["label.shard=0/2,1/2", f"labels.dir={tmp_path}/labels", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run([*command, *data, *shares], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("points labelled") == 2
    assert len(LabelStore(tmp_path / "labels").files) == 2 and len(LabelStore(tmp_path / "labels")) > 50


def test_the_launcher_for_slurm_is_submitits():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(shipped("configs")), version_base="1.3"):
        config = hydra.compose("label", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert config.hydra.launcher["_target_"].endswith("SlurmLauncher") and config.hydra.launcher.gpus_per_node == 1
