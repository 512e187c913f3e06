"""Paths as they are, and hints that can be pasted."""

import shlex
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from distill.cli.config import compose, instantiate
from distill.cli.overrides import parse, quoted
from distill.core.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    ["2024_01_31", "2011", "1e3", "true", "my photos", "cats [2]", "a=b", "it's", 'say "x"', "a,b", "{x}", "back\\"],
)
def test_a_path_is_taken_as_it_is(name):
    config = compose("fit", ["data=folder", f"data.root={name}", f"run.dir={name}", f"init_from={name}"])
    assert [config.data.root, config.run.dir, config.init_from] == [name] * 3


def test_every_key_of_a_file_or_folder_holds_text():
    fit = ["teacher=dift", "teacher.unet_weights=1_5", "logger=tensorboard", "logger.also.save_dir=1e3"]
    for verb, others, keys in (
        ("data", ["action=convert"], ["to"]),
        ("demo", [], ["page"]),
        ("export", ["ckpt=a"], ["page", "onnxruntime_web"]),
        ("export", ["ckpt=a"], ["bundle"]),
        ("propagate", ["action=apply"], ["corrections", "annotations"]),
        ("fit", ["teacher=hub"], ["teacher.repo"]),
        ("fit", ["teacher=dit"], ["teacher.prompt_file"]),
    ):
        config = compose(verb, [*others, *(f"{key}=2024_01_31" for key in keys)])
        assert [OmegaConf.select(config, key) for key in keys] == ["2024_01_31"] * len(keys)
    assert (compose("fit", fit).teacher.unet_weights, compose("fit", fit).logger.also.save_dir) == ("1_5", "1e3")


@pytest.mark.parametrize(
    ("verb", "key", "others"),
    [
        ("match", "trg", ["src=a"]),
        ("label", "label.sources", ["label.action=merge"]),
        ("fit", "labels.fallbacks", []),
        ("compare", "matchers", []),
        ("export", "examples", ["ckpt=a", "page=b"]),
    ],
)
def test_lists_of_paths_hold_text(verb, key, others):
    config = compose(
        verb,
        [*others, f"{key}=[2024_01_31, 5,1e3, true,'a, 1',\"2\",b c,runs/${{run.dir}}]".replace("${run.dir}", "x")],
    )
    assert list(OmegaConf.select(config, key)) == ["2024_01_31", "5", "1e3", "true", "a, 1", "2", "b c", "runs/x"]


def test_entries_of_matchers_with_names_keep_their_meaning():
    assert compose("compare", ["matchers=[teacher,{1: 2.onnx, b: [3]}]"]).matchers == [
        "teacher",
        {1: "2.onnx", "b": [3]},
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("${x}", "Interpolation key 'x' not found"),
        ("runs/${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("${nothing:1}", "Unsupported interpolation type nothing"),
        ("${monitor}${run.dir}${labels.fallbacks}", "nterpolation"),
    ],
)
@pytest.mark.parametrize("key", ["run.dir", "monitor", "labels.fallbacks"])
def test_a_reference_that_leads_nowhere_is_named(key, value, reason):
    with pytest.raises(ConfigError) as error:
        compose("fit", [f"{key}=[{value}]" if key == "labels.fallbacks" else f"{key}={value}"])
    assert str(error.value).startswith("Expected ") and reason in str(error.value)


def test_quotes_lists_null_and_interpolations_keep_their_meaning():
    config = compose("match", ["src='a b'", 'trg="c"', "points=[[1,2]]", "ckpt=null", "run.dir=runs/${size}", "size=7"])
    assert (config.src, config.trg, config.points, config.ckpt) == ("a b", "c", [[1, 2]], None)
    assert config.run.dir == "runs/7"


def test_a_list_of_points_and_a_file_with_brackets_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("[1]").write_text("")
    assert compose("match", ["src=a", "trg=b", "points=[1]"]).points == "[1]"


def test_the_home_directory_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["data=folder", "data.root=~/photos", "run.dir='~/r'", "labels.fallbacks=['~/l']"]
    config = compose("fit", overrides)
    assert (config.data.root, config.run.dir, config.labels.dir) == (
        "/home/me/photos",
        "/home/me/r",
        "/home/me/r/labels",
    )
    assert config.labels.fallbacks == ["/home/me/l"]


@pytest.mark.parametrize("key", ["run.dir", "labels.dir", "teacher.model"])
def test_an_empty_path_is_refused(key):
    with pytest.raises(ConfigError, match=f"Expected a path for {key} but got nothing"):
        compose("fit", [f"{key}="])


@pytest.mark.parametrize("value", ["[1", "it's [", 'say "x" {', "a\\' ["])
def test_the_hint_to_quote_can_be_pasted_into_a_shell(value):
    with pytest.raises(ConfigError) as error:
        compose("fit", [f"monitor={value}"])
    hint = str(error.value).rpartition("quote the value: ")[2].removesuffix(".")
    (argument,) = shlex.split(hint)
    assert compose("fit", [argument]).monitor == value


def test_the_hint_for_a_list_of_paths_quotes_each_of_them():
    with pytest.raises(ConfigError) as error:
        compose("match", ["src=a", "points=[[1,1]]", "trg=[b.png,n/a=b.png, it's]"])
    (argument,) = shlex.split(str(error.value).rpartition("quote each entry: ")[2].removesuffix("."))
    assert compose("match", ["src=a", "points=[[1,1]]", argument]).trg == ["b.png", "n/a=b.png", "it's"]


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("[lr=0.1]", ["lr=0.1"]),
        ("[lr=0.1, 'seed=1', ema=null]", ["lr=0.1", "seed=1", "ema=null"]),
        ("[{a: b, c: d},e=f]", [{"a": "b", "c": "d"}, "e=f"]),
    ],
)
def test_the_hint_for_any_list_gives_a_list(value, entries):
    with pytest.raises(ConfigError) as error:
        parse([f"base={value}"])
    (argument,) = shlex.split(str(error.value).rpartition("quote each entry: ")[2].removesuffix("."))
    assert compose("ablate", [argument]).base == entries


def test_what_no_quotes_mend_gets_no_hint_that_fails():
    with pytest.raises(ConfigError, match="quote the texts in it, such as 'a=b'; keys are of letters"):
        parse(["matchers=[{<b>x</b>: box_relative}]"])


def test_quoting_is_undone_by_hydra():
    for value in ("", "a'b", "\\", "\\'", "a\\\\", "'", "a b"):
        assert compose("fit", [f"monitor={quoted(value)}"]).monitor == value


def test_usual_names_of_other_programs_lead_to_ours():
    with pytest.raises(ConfigError, match="got learning_rate; did you mean 'lr'"):
        compose("fit", ["learning_rate=1e-4"])
    with pytest.raises(ConfigError, match="got epochs; did you mean 'trainer.max_epochs'"):
        compose("fit", ["epochs=3"])


def test_a_key_that_nothing_reads_cannot_be_added():
    with pytest.raises(ConfigError, match=r"nothing reads foo"):
        compose("fit", ["+foo=1"])
    assert compose("fit", ["+trainer.fast_dev_run=true"]).trainer.fast_dev_run


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_epochs=3", "lr=1e-3", "seed=${batch_size}", "ema=0.5", "ema=null"],
        ["student.strides=[8,16]", "loss.terms.warp={colour:2}", "run.dir='a b/[1]'", "monitor='val/pck@0.05'"],
        ["+trainer.limit_train_batches=2", "++trainer.max_epochs=3", "++trainer.min_epochs=1", "+trainer.x.y={z:[1]}"],
        [
            "~loss.terms.warp",
            "~trainer.max_epochs=14",
            "self_distillation=null",
            "data=folder",
            "data.root=photographs",
        ],
        ["teacher.timestep=7", "teacher=dift", "hydra.job.name=x"],
    ],
)
def test_values_are_assigned_as_hydra_composes_them(overrides, root):
    found = compose("fit", overrides)
    with hydra.initialize_config_dir(str(root / "configs"), version_base="1.3"):
        expected = hydra.compose("fit", overrides)
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)


def test_a_section_for_what_users_add_takes_a_dictionary():
    given = "{_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {0: 2, 3: 1}}"
    for override in (f"callbacks={{slower: {given}}}", f"+callbacks.slower={given}"):
        built = instantiate(compose("fit", [override]).callbacks.slower)
        assert type(built).__name__ == "GradientAccumulationScheduler" and built.scheduling == {0: 2, 3: 1}
