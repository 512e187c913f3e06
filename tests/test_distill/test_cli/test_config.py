from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill.cli.config import compose, defaults, instantiate, options, shipped
from distill.core.errors import ConfigError

VERBS = ["fit", "ablate", "label", "evaluate", "compare", "export", "match", "pretrain", "bench", "data", "doctor"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_defaults_that_compose(verb):
    config, choices = defaults(verb)
    assert config and all(choice in options(group.partition("@")[0]) for group, choice in choices.items())


@pytest.mark.parametrize("group", ["data", "teacher", "student", "loss", "filter", "logger", "trainer", "matcher"])
def test_every_choice_composes_in_some_verb(group):
    verb = {"matcher": "evaluate"}.get(group, "fit")
    for name in options(group):
        extra = ["data.root=somewhere"] if group == "data" and name != "shapes" else []
        assert compose(verb, [f"{group}={name}", *extra])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sede=1"], "did you mean 'seed'"),
        (["student.bakcbone=x"], "did you mean 'student.backbone'"),
        (["teacher=promt_optimization"], "did you mean 'prompt_optimization'"),
        (["batch_size=many"], "Expected a whole number for batch_size but got many"),
        (["seed"], "write seed=<value>"),
        (["lr=[1"], "cannot read"),
        (["data=cub"], r"data.root=<root>"),
        (["lr=1,2"], "Expected one value for lr"),
    ],
)
def test_what_a_user_mistypes_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("fit", overrides)


def test_a_tolerance_without_effect_is_infinite_and_no_other_number_is():
    """``compare`` and the teacher's docstring say so, and the command line refused it."""
    told = compose("fit", ["teacher=nearest_neighbour", "teacher.flip_tolerance=inf"])
    assert told.teacher.flip_tolerance == float("inf")
    for wrong in ("teacher.flip_tolerance=nan", "teacher.flip_tolerance=-inf", "teacher.cycle_tolerance=inf", "lr=inf"):
        with pytest.raises(ConfigError, match="Expected finite numbers"):
            compose("fit", ["teacher=nearest_neighbour", wrong])


def test_null_takes_back_the_weights_that_a_recipe_names():
    given = ["experiment=spair71k_cleandift", "data.root=x", "student.weights=null", "teacher.unet_weights=null"]
    told = compose("fit", given)
    assert told.student.weights is None and told.teacher.unet_weights is None and told.baseline.weights is None
    fused = compose("fit", ["experiment=spair71k_fused", "data.root=x", "teacher.model.sources.backbone.weights=null"])
    assert fused.teacher.model.sources.backbone.weights is None


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("match", ["src=null"], "Expected a value for src but got null; write src=<src>"),
        ("match", ["src=null", "run.dir=null"], "Expected a value for src .*Expected a value for run.dir"),
        ("match", ["run.dir=null"], "Expected a value for run.dir but got null; leave it out for runs/match"),
        ("match", ["src=[a,b]"], r"Expected one path for src but got \['a', 'b'\]"),
        ("evaluate", ["data=folder", "data.root=[a,b]"], "Expected one path for data.root"),
        ("match", ["size=64.5"], "Expected a whole number for size but got 64.5"),
        ("evaluate", ["data=folder", "data.root=null"], "Expected a value for data.root"),
        ("export", ["ckpt=null"], "Expected a value for ckpt"),
        ("label", ["label.shard=null"], "Expected a value for label.shard"),
        ("label", ["labels.dir=null"], "Expected a value for labels.dir"),
        ("fit", ["labels.dir=null"], "Expected a value for labels.dir"),
        ("fit", ["weight_decay=null"], "Expected a value for weight_decay but got null; leave it out for 0.05"),
        ("fit", ["seed=null"], "Expected a value for seed"),
        ("fit", ["data.size=null"], "Expected a value for data.size"),
        ("fit", ["run=null"], "Expected a value for run but got null; leave it out"),
        ("fit", ["labels=null"], "Expected a value for labels"),
        ("fit", ["labels.fallbacks=null"], "Expected a value for labels.fallbacks"),
    ],
)
def test_null_is_refused_where_a_value_is_needed(verb, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(verb, overrides, complete=False)


@pytest.mark.parametrize("name", ["backbone", "width"])
def test_null_for_a_setting_that_a_class_needs_is_named(name):
    with pytest.raises(ConfigError, match=f"Expected a value for {name} of student.StudentMatcher but got null"):
        instantiate(compose("fit", [f"student.{name}=null"]).student)


@pytest.mark.parametrize(
    "override",
    ["ema=null", "augment=null", "self_distillation=null", "train.n_pairs=null", "init_from=null", "data.n_pairs=null"],
)
def test_null_is_taken_where_it_means_something(override):
    key = override.partition("=")[0]
    verb = "evaluate" if key.startswith("data.") else "fit"
    assert OmegaConf.select(compose(verb, [override]), key) is None


def test_several_mistakes_are_told_together():
    with pytest.raises(ConfigError, match="sede.*labelz"):
        compose("fit", ["sede=1", "labelz.dir=x"])


def test_a_users_own_folder_adds_choices(tmp_path: Path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "mine.yaml").write_text("_target_: distill.matchers.oracle.Oracle\nheatmap_side: 4\n")
    config = compose("fit", ["teacher=mine"], tmp_path)
    assert instantiate(config.teacher).heatmap_side == 4
    assert "oracle" in options("teacher", tmp_path)
    with pytest.raises(ConfigError, match="--config-dir to be a folder"):
        compose("fit", [], tmp_path / "none")


def test_errors_inside_what_is_built_pass_through_and_wrong_arguments_do_not():
    with pytest.raises(ConfigError, match="heatmap_side and sigma"):
        instantiate({"_target_": "distill.matchers.oracle.Oracle", "sigma": -1})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sigam'; did you mean 'sigma'"):
        instantiate({"_target_": "distill.matchers.oracle.Oracle", "sigam": 1})
    with pytest.raises(ConfigError, match="distill.nothing"):
        instantiate({"_target_": "distill.nothing.Here"})


def test_files_of_the_project_are_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (shipped("configs") / "fit.yaml").is_file()
    assert Path(compose("fit").teacher.model) == shipped("checkpoints/sd-mini")


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_says_what_it_costs_and_whether_it_was_run(name):
    header = (shipped("configs") / "experiment" / f"{name}.yaml").read_text()
    assert header.startswith("# @package _global_\n")
    if name == "none":
        return
    assert all(word in header for word in ("Source:", "Hardware:", "Time:", "xpect", "Run so far:"))
    root = [] if name.startswith("shapes") else ["data.root=somewhere"]
    config = compose("fit", [f"experiment={name}", *root, "student.weights=some.safetensors"])
    assert config.data.size % 14 == 0 or "dinov2" not in config.student.backbone


@pytest.mark.parametrize("value", ["2", "0.5", "1.0"])
def test_a_limit_of_batches_is_a_number_or_a_share(value):
    config = compose("fit", ["trainer=smoke", f"trainer.limit_train_batches={value}"])
    assert config.trainer.limit_train_batches == float(value)
