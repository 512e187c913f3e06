"""A run's folder from a stranger: checkpoints, configuration and metrics are data."""

import ast
import types
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf

from distill.cli.run_folder import check_unchanged, read_config
from distill.core.errors import ConfigError, DataError, WeightsError
from distill.training.checkpoint import load_state, read_checkpoint, read_resumable
from distill.training.train import run_fit, train

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("torch.load", "fit", "validate", "test", "predict", "load_from_checkpoint")
"""What reads a checkpoint, by the last part of the name (``torch.load`` in full)."""


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def hostile(place, marker):
    honest = {"state_dict": {"x": torch.zeros(1)}, "global_step": 1, "hyper_parameters": {"lr": 1e-3}}
    return {
        "the whole file": Payload(marker),
        "hyper-parameters": honest | {"hyper_parameters": Payload(marker)},
        "a callback's state": honest | {"callbacks": {"x": Payload(marker)}},
        "a weight": honest | {"state_dict": {"x": Payload(marker)}},
    }[place]


@pytest.mark.parametrize("place", ["the whole file", "hyper-parameters", "a callback's state", "a weight"])
def test_a_checkpoint_that_holds_an_object_is_refused_before_training_goes_on(tmp_path, place):
    marker = tmp_path / "marker"
    torch.save(hostile(place, marker), tmp_path / "last.ckpt")
    checkpoint = types.SimpleNamespace(dirpath=str(tmp_path), best_model_path="")
    with pytest.raises(WeightsError, match="Expected a checkpoint of tensors and plain values") as caught:
        train(None, None, None, checkpoint, resume=True)
    assert not marker.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04."])
def test_a_checkpoint_that_is_none_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value)


RESUMABLE = {
    **{"epoch": 0, "global_step": 1, "state_dict": {"x": torch.zeros(1)}, "optimizer_states": [], "lr_schedulers": []},
    **{"loops": {}, "pytorch-lightning_version": "2.5.0"},
}


@pytest.mark.parametrize(
    "changes",
    [
        *({key: None} for key in RESUMABLE),
        {"epoch": "many"},
        {"epoch": float("nan")},
        {"state_dict": [1]},
        {"state_dict": {"x": 1}},
        {"loops": 3},
        {"loops": {"fit_loop": 3}},
        {"optimizer_states": [None]},
        {"optimizer_states": [{"param_groups": None}]},
        {"optimizer_states": [{"param_groups": [3]}]},
        {"lr_schedulers": [None]},
    ],
)
def test_a_checkpoint_that_no_training_can_go_on_from_is_refused_in_one_line(tmp_path, changes):
    torch.save(RESUMABLE, tmp_path / "last.ckpt")
    assert read_resumable(tmp_path / "last.ckpt")["global_step"] == 1
    torch.save({**RESUMABLE, **changes}, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match=r"Expected a checkpoint .*last.ckpt") as caught:
        read_resumable(tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cannot_have_files_outside_of_its_folder_removed(tmp_path):
    """Lightning removes the file that a checkpoint calls the one before."""
    path = f"{tmp_path}/checkpoints/../../precious"
    for state in ({"last_model_path": path}, {"best_k_models": {path: 1.0}}, {"best_model_path": path}):
        torch.save({**RESUMABLE, "callbacks": {"ModelCheckpoint": state}}, tmp_path / "last.ckpt")
        with pytest.raises(WeightsError, match="precious.*do not trust it"):
            read_resumable(tmp_path / "last.ckpt")


@pytest.mark.parametrize("scheme", ["local://", "memory://", "http://127.0.0.1:9", "simplecache::local://"])
def test_a_checkpoint_cannot_name_files_by_a_scheme(tmp_path, scheme):
    """Lightning opens such names with fsspec, and removes them wherever they are."""
    path = f"{scheme}{tmp_path}/precious"
    for state in ({"last_model_path": path}, {"best_k_models": {path: 1.0}}, {"best_model_path": path}):
        torch.save({**RESUMABLE, "callbacks": {"ModelCheckpoint": state}}, tmp_path / "last.ckpt")
        with pytest.raises(WeightsError, match="precious.*do not trust it"):
            read_resumable(tmp_path / "last.ckpt")


def test_the_kept_weights_are_those_of_the_runs_own_folder(tmp_path, monkeypatch):
    """Also where the checkpoint that a training went on from names another folder's, or the folder has been moved."""
    module, loaded = BoringModel(), []
    monkeypatch.setattr("distill.training.train.run_fit", lambda *arguments, **named: None)
    monkeypatch.setattr("distill.training.train.load_state", lambda module, path: loaded.append(path))
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.ckpt").touch()
    checkpoint = types.SimpleNamespace(
        dirpath=str(tmp_path / "own"), best_model_path=str(tmp_path / "other" / "best.ckpt")
    )
    train(None, module, None, checkpoint, resume=False)
    assert loaded == [tmp_path / "own" / "best.ckpt"]
    checkpoint.best_model_path = ""
    with pytest.raises(DataError, match="Expected weights that were kept"):
        train(None, module, None, checkpoint, resume=False)


def test_weights_of_another_training_are_refused_in_one_line(tmp_path):
    torch.save(RESUMABLE, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match="Expected a checkpoint of this training") as caught:
        load_state(torch.nn.Linear(2, 2), tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(WeightsError, match="Expected a checkpoint of this training"):
        run_fit(trainer, BoringModel(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_other_tensors_are_no_checkpoint(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match="it is none"):
        read_checkpoint(tmp_path / "x.ckpt")
    torch.save({"state_dict": {}, "global_step": 3}, tmp_path / "x.ckpt")
    assert read_checkpoint(tmp_path / "x.ckpt")["global_step"] == 3


def test_whatever_reads_a_checkpoint_asks_for_weights_only():
    found = []
    for package in ("distill", "teacher", "student"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
                reads = name == "torch.load" or (name.rpartition(".")[2] in LOADERS and "ckpt_path" in given)
                if reads or name.endswith(".load_from_checkpoint"):
                    found.append(name)
                    assert ast.unparse(given.get("weights_only", ast.Constant(None))) == "True", f"{path}: {name}"
    assert len(found) >= 2


HOSTILE_YAML = [
    "a: !!python/object/apply:os.system ['touch {marker}']",
    "a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
    "a: !!python/name:os.system",
    "a: ${{oc.create:[}}",
    "a: ${{missing.key}}",
    "a: [1, 2",
    "\x00",
    "- a\n- b",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "a: " + "x" * (1 << 20),
    "".join(f"k{n}: ${{{{k{n + 1}}}}}${{{{k{n + 1}}}}}\n" for n in range(12)) + "k12: x",  # each line doubles the time
    "'${{oc.env:HOME}}': 1",
    "a: [{{b: '${{oc.env:HOME}}'}}]",
]


@pytest.mark.parametrize("text", HOSTILE_YAML)
def test_a_runs_configuration_that_is_no_plain_yaml_is_refused_in_one_line(tmp_path, text):
    marker = tmp_path / "marker"
    (tmp_path / "config.yaml").write_text(text.format(marker=marker))
    with pytest.raises(ConfigError, match="Expected the configuration of a run") as caught:
        read_config(tmp_path / "config.yaml")
    assert not marker.exists() and "\n" not in str(caught.value)


def test_targets_in_a_runs_configuration_are_compared_and_not_built(tmp_path):
    marker = tmp_path / "marker"
    target = {"_target_": "pathlib.Path.touch", "_args_": [str(marker)]}
    OmegaConf.save(OmegaConf.create({"lr": target, "run": {"dir": str(tmp_path)}}), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="Expected the settings that"):
        check_unchanged(OmegaConf.create({"lr": 1.0, "run": {"dir": str(tmp_path)}}))
    assert not marker.exists()
