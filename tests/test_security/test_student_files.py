"""A student's file from a stranger: nothing in it runs code or reads other files.

Each hostile file would create a marker file if what it asks for were done.
"""

import json
import os
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn

from distill.cli.config import compose, instantiate
from distill.cli.rows import Row, backbone_arguments, build_rows, read_rows, with_backbone
from distill.core.errors import ConfigError, DistillError, WeightsError
from distill.export import plan
from distill.export.student_file import load_student, save_student
from student import StudentMatcher

STUDENT = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "strides": [8, 16], "width": 16, "size": 64}


def write(path, description, tensors=None):
    text = description if isinstance(description, str) else json.dumps(description)
    metadata = {"format": "distill-student-2", "student": text, "version": "0.1.0"}
    save_file({"x": torch.zeros(1)} if tensors is None else tensors, path, metadata)
    return path


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return {name: value.clone() for name, value in StudentMatcher("test_resnet", [8, 16], 16).state_dict().items()}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that hostile files try to make, and a module in the working folder that makes it when imported."""
    path = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(
        f"import torch\nopen({str(path)!r}, 'w').close()\n\n\nclass Hostile(torch.nn.Module):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("hostile_module", None)


def touch(marker):
    return {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(marker)]}}


HOSTILE = {
    "a function": lambda m: touch(m) | {"size": 64},
    "a function with _args_": lambda m: {"_target_": "pathlib.Path.touch", "_args_": [str(m)], "size": 64},
    "os.system": lambda m: {"_target_": "os.system", "command": f"touch {m}", "size": 64},
    "a nested function": lambda m: STUDENT | {"mean": touch(m)},
    "a function in a list": lambda m: STUDENT | {"strides": [8, touch(m)]},
    "a function in the options": lambda m: STUDENT | {"options": {"act_layer": touch(m)}},
    "a partial": lambda m: STUDENT | {"_partial_": True, "mean": touch(m)},
    "positional arguments": lambda m: STUDENT | {"_args_": ["test_resnet", touch(m)]},
    "a module that acts when imported": lambda m: {"_target_": "hostile_module.Hostile", "size": 64},
    "a submodule of ours that is torch": lambda m: {"_target_": "student.matcher.torch.hub.load", "size": 64},
    "a class that we re-export": lambda m: {"_target_": "student.matcher.nn.Sequential", "size": 64},
    "a class of torch in our module": lambda m: {"_target_": "student.matcher.NeighbourhoodConsensus", "size": 64},
    "timm by a name of ours": lambda m: {"_target_": "student.backbone.timm.create_model", "size": 64},
    "a relative name": lambda m: {"_target_": ".student.StudentMatcher", "size": 64},
    "a name without module": lambda m: {"_target_": "StudentMatcher", "size": 64},
    "a target that is no text": lambda m: {"_target_": ["student.StudentMatcher"], "size": 64},
    "no target": lambda m: {"backbone": "test_resnet", "size": 64},
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_names_anything_but_a_class_of_the_student_package_is_refused(tmp_path, marker, weights, hostile):
    with pytest.raises(WeightsError, match="Expected .*student.safetensors") as caught:
        load_student(write(tmp_path / "student.safetensors", hostile(marker), weights))
    assert not marker.exists() and "hostile_module" not in sys.modules
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "evil.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "evil.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/evil.pth"}},
        {"pretrained_strict": False},
        {"cache_dir": "somewhere"},
        {"nested": [{"checkpoint_path": "evil.pth"}]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_make_timm_read_another_file_or_address_are_refused(tmp_path, weights, options):
    with pytest.raises(WeightsError, match="a file from a stranger must not read others"):
        load_student(write(tmp_path / "student.safetensors", STUDENT | {"options": options}, weights))


def test_a_checkpoint_with_code_beside_the_student_is_not_read(tmp_path, marker, weights):
    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save(Payload(), tmp_path / "evil.pth")
    options = {"checkpoint_path": str(tmp_path / "evil.pth")}
    with pytest.raises(WeightsError, match="checkpoint_path"):
        load_student(write(tmp_path / "student.safetensors", STUDENT | {"options": options}, weights))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["hf-hub:owner/name", "hf_hub:owner/name", "local-dir:/tmp/model", "../resnet18", "timm/resnet18", "a b"]
)
@pytest.mark.parametrize("key", ["backbone", "name"])
def test_a_network_by_scheme_or_path_is_refused(tmp_path, weights, name, key):
    target = {"backbone": "student.StudentMatcher", "name": "student.backbone.Backbone"}[key]
    description = {"_target_": target, key: name, "strides": [8, 16], "size": 64}
    with pytest.raises(WeightsError, match="must not fetch others"):
        load_student(write(tmp_path / "student.safetensors", description, weights))


def test_the_weights_a_description_names_are_not_looked_for(tmp_path, weights):
    path = write(tmp_path / "student.safetensors", STUDENT | {"weights": str(tmp_path / "none.safetensors")}, weights)
    assert load_student(path).size == 64


MALFORMED = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "1",
    "NaN": json.dumps(STUDENT)[:-1] + ', "temperature": NaN}',
    "infinity": json.dumps(STUDENT)[:-1] + ', "temperature": 1e999}',
    "deep nesting": json.dumps(STUDENT)[:-1] + ', "mean": ' + "[" * 20 + "]" * 20 + "}",
    "very deep nesting": '{"mean": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "a long text": json.dumps(STUDENT | {"mean": "x" * 100_000}),
    "no size": json.dumps({key: value for key, value in STUDENT.items() if key != "size"}),
    "a huge size": json.dumps(STUDENT | {"size": 10**9}),
    "a size of zero": json.dumps(STUDENT | {"size": 0}),
    "a size that is text": json.dumps(STUDENT | {"size": "64"}),
    "a size that is true": json.dumps(STUDENT | {"size": True}),
    "a huge number": json.dumps(STUDENT | {"upsample": 10**9}),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_description_is_refused_in_one_line(tmp_path, weights, text):
    with pytest.raises(WeightsError, match="to describe a student but its description") as caught:
        load_student(write(tmp_path / "student.safetensors", text, weights))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda value: value.fill_(torch.nan), "NaN or infinity"),
        (lambda value: value.view(-1)[-1:].fill_(torch.inf), "NaN or infinity"),
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value.bool(), "bool"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, weights, change, found):
    name = sorted(name for name in weights if name.endswith("conv1.weight"))[0]
    changed = change(weights[name].clone())
    changed = changed if changed.shape == weights[name].shape else weights[name].clone().fill_(torch.inf)
    path = write(tmp_path / "student.safetensors", STUDENT, {**weights, name: changed})
    with pytest.raises(WeightsError, match=f"weights in .*student.safetensors but {name} .*{found}"):
        load_student(path)


def test_half_precision_and_counters_are_read(tmp_path, weights):
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    assert any(not value.is_floating_point() for value in half.values())
    student = load_student(write(tmp_path / "student.safetensors", STUDENT, half))
    assert {value.dtype for value in [*student.parameters(), *student.buffers()]} == {torch.float32, torch.int64}


@pytest.mark.parametrize("path", [5, 2.5, True, ["a"], b"a"])
def test_what_is_no_path_is_refused_in_words(path):
    with pytest.raises(ConfigError, match="Expected the path of a student's file but got"):
        load_student(path)


def test_a_file_without_a_description_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "s.safetensors", {"format": "distill-student-2"})
    with pytest.raises(WeightsError, match="its description is missing"):
        load_student(tmp_path / "s.safetensors")


def test_a_short_file_cannot_ask_for_a_network_that_fills_the_memory(tmp_path, weights):
    with pytest.raises(WeightsError, match="takes little more than the .* but it takes .* MiB or more"):  # 150 GB
        load_student(write(tmp_path / "student.safetensors", STUDENT | {"width": 65_536}, weights))
    with pytest.raises(WeightsError, match="fit the student it describes"):
        load_student(write(tmp_path / "student.safetensors", STUDENT | {"width": 32}, weights))


def written(path, description):
    """Writes the file of a student that was built with other bounds, as a stranger's could be."""
    arguments = {key: value for key, value in description.items() if key not in ("_target_", "size")}
    with torch.device("meta"):
        shapes = StudentMatcher(**arguments).state_dict()
    # Standard deviations of colours may not be 0.
    return write(path, description, {name: torch.full(v.shape, 0.5, dtype=v.dtype) for name, v in shapes.items()})


def test_a_short_file_cannot_ask_for_large_buffers_that_no_file_holds(tmp_path):
    """The index of a window's relative positions grows with the fourth power of its side, the weights with the second."""

    def windows(side):
        options = {"img_size": 4 * side, "window_size": side, "embed_dim": 2, "depths": [1, 1], "num_heads": [1, 1]}
        network = {"backbone": "swin_tiny_patch4_window7_224", "strides": [4], "width": 1, "options": options}
        return written(tmp_path / f"{side}.safetensors", STUDENT | network)

    assert load_student(windows(8)).backbone.strides == (4,)
    path = windows(300)  # 65 GB
    assert path.stat().st_size < 3e6
    with pytest.raises(
        WeightsError, match="takes little more than the 1.4 MiB of its tensors but it takes .* MiB or more"
    ):
        load_student(path)
    assert torch.is_grad_enabled()


def test_a_short_file_cannot_ask_for_many_buffers_of_layers_that_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SPARE", 1 << 20)
    options = {"embed_dim": 4, "depths": [1, 1, 60], "num_heads": [1, 1, 1], "window_size": 14, "img_size": 224}
    network = {"backbone": "swin_tiny_patch4_window7_224", "strides": [4], "width": 1, "options": options}
    with pytest.raises(WeightsError, match="but it takes 1 MiB or more"):  # 62 times 0.3 MiB
        load_student(written(tmp_path / "student.safetensors", STUDENT | network))


def resident():
    """Returns the memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory as Linux tells it")
def test_layers_that_are_left_out_take_no_memory_when_a_student_is_loaded(tmp_path, monkeypatch):
    """A hundred blocks are made, as the options say, for a file that holds the first."""
    options = {"embed_dim": 512, "num_heads": 1, "depth": 100}
    description = STUDENT | {"backbone": "vit_tiny_patch16_224", "strides": [16], "layers": [0], "options": options}
    path, used, init = written(tmp_path / "student.safetensors", description), [], Block.__init__

    def recorded(self, *arguments, **settings):
        init(self, *arguments, **settings)
        used.append(resident())

    monkeypatch.setattr(Block, "__init__", recorded)
    before, student = resident(), load_student(path)
    assert len(student.backbone.network.blocks) == 1 and len(used) >= 200
    assert max(*used, resident()) - before < 300e6  # 1.3 GB with values
    assert all(value.eq(0.5).all() for value in student.parameters())


@pytest.mark.parametrize(
    "write",
    [
        lambda value: value.normal_(),
        lambda value: value.data.fill_(1.0),
        lambda value: value.copy_(torch.ones(3, 3)),
        lambda value: nn.init.constant_(value, 1.0),
        lambda value: nn.init.kaiming_uniform_(value),
        lambda value: nn.init.trunc_normal_(value, 1.0),
    ],
)
def test_what_follows_from_a_file_is_not_initialised(write):
    with torch.no_grad():
        parameter, buffer = nn.Parameter(torch.full((3, 3), 5.0)), torch.full((3, 3), 5.0)
        with plan.unfilled():
            write(parameter)
            write(buffer)
    assert parameter.eq(5.0).all() and not buffer.eq(5.0).any()


def test_directions_of_position_that_a_file_holds_are_not_computed(tmp_path, monkeypatch):
    """The blank image has 28 patches a side, so that of a patch of 512 px has 200 million pixels."""
    path = written(tmp_path / "student.safetensors", STUDENT | {"backbone": "test_vit", "strides": [16], "debias": 3})
    monkeypatch.setattr("student.debias.PositionalDebias.fit", lambda *_: pytest.fail("a blank image was described"))
    assert load_student(path).backbone.debias[0].basis.eq(0.5).all()


def test_what_other_threads_build_meanwhile_has_its_weights():
    def norm():
        return nn.LayerNorm(1000).weight.detach()

    full = torch.full((1000,), 7.0)  # where a new tensor may be placed
    with plan.unfilled(), ThreadPoolExecutor(1) as other:
        del full
        assert other.submit(norm).result().eq(1).all() and not norm().eq(1).all()
    assert norm().eq(1).all()


def test_several_threads_load_students_at_once(tmp_path, weights):
    """Torch's hooks for all modules were set and removed by each, while the others went through them."""
    path = write(tmp_path / "student.safetensors", STUDENT, weights)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            students = list(threads.map(load_student, [path] * 24))
    finally:
        sys.setswitchinterval(before)
    assert all(
        torch.equal(student.state_dict()[name], value) for student in students for name, value in weights.items()
    )


def test_a_short_file_cannot_ask_for_a_network_of_thousands_of_layers(tmp_path, weights, monkeypatch):
    built, init = [], Block.__init__
    monkeypatch.setattr(
        Block, "__init__", lambda self, *args, **kwargs: (built.append(1), init(self, *args, **kwargs))[1]
    )
    description = STUDENT | {"backbone": "test_vit", "strides": [16], "options": {"depth": 3000}}
    with pytest.raises(WeightsError, match="about the .* tensors that it holds but it describes one of many more"):
        load_student(write(tmp_path / "student.safetensors", description, weights))
    assert len(built) < 1500 and torch.is_grad_enabled()


@pytest.mark.parametrize(
    "changed",
    [
        {"upsample": 65_536},
        {"strides": [8] * 5000},
        {"backbone": "resnet18", "options": {"layers": [60_000, 2, 2, 2]}},
        {
            "_target_": "student.FusedFeatures",
            "sources": {
                f"{n}": {"_target_": "student.NearestNeighbour", "backbone": "test_resnet"} for n in range(500)
            },
        },
    ],
    ids=["upsample", "strides", "layers", "sources"],
)
def test_a_short_file_cannot_multiply_layers_otherwise(tmp_path, changed, monkeypatch):
    monkeypatch.setattr(plan, "LARGEST_PLAN", (5000, 50))
    description = changed | {"size": 64} if "_target_" in changed else STUDENT | changed
    with pytest.raises(WeightsError, match="correct its options, its lists or upsample"):
        load_student(write(tmp_path / "student.safetensors", description))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "changed", [{"unknown": 1}, {"strides": "8"}, {"mean": [1.0]}, {"backbone": None}, {"options": {"block": 3}}]
)
def test_arguments_that_the_class_does_not_take_are_refused_in_one_line(tmp_path, weights, changed):
    with pytest.raises(DistillError) as caught:
        load_student(write(tmp_path / "student.safetensors", STUDENT | changed, weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"stem_width": 4000}, {"layers": [90, 90, 90, 90]}])
def test_a_baseline_takes_no_network_that_is_not_that_of_the_files_weights(tmp_path, weights, options):
    """A baseline of random weights needs none of the file's tensors, so a short file could ask for any network."""
    path = write(tmp_path / "student.safetensors", STUDENT | {"options": options}, weights)
    with pytest.raises(WeightsError, match="that fit the student it describes|takes little more than"):
        build_rows(compose("compare", [f"ckpt={path}"]), [Row("nearest_neighbour", "nearest_neighbour")], "cpu")
    whole = write(tmp_path / "whole.safetensors", STUDENT, weights)
    assert backbone_arguments(str(whole))["backbone"] == STUDENT["backbone"]


def test_the_comparison_builds_no_object_that_a_students_file_describes(tmp_path, marker, weights):
    for changed in ({"mean": touch(marker)}, {"options": {"act_layer": touch(marker)}}, {"strides": [touch(marker)]}):
        path = write(tmp_path / "student.safetensors", STUDENT | changed, weights)
        with pytest.raises(WeightsError, match="plain values"):
            instantiate(with_backbone({"_target_": "student.NearestNeighbour"}, backbone_arguments(str(path)), "it"))
    path = write(tmp_path / "student.safetensors", STUDENT | {"backbone": "hf-hub:owner/name"}, weights)
    with pytest.raises(WeightsError, match="must not fetch others"):
        backbone_arguments(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "where",
    [
        lambda text: {"mean": text},
        lambda text: {"options": {"act_layer": text}},
        lambda text: {"strides": [8, text]},
        lambda text: {"options": {text: 1}},
    ],
    ids=["mean", "options", "strides", "key"],
)
def test_no_text_in_a_students_file_is_resolved_as_an_interpolation(tmp_path, marker, weights, where):
    """OmegaConf makes a configuration of ``${oc.create:...}``, and Hydra would build what that describes."""
    touched = f"${{oc.create:{{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, _args_: ['{marker}']}}}}}}"
    path = write(tmp_path / "student.safetensors", STUDENT | where(touched), weights)
    config = compose("compare", [f"ckpt={path}", "matchers=[nearest_neighbour]"])
    with pytest.raises(WeightsError, match="its description holds .* where plain text is read"):
        build_rows(config, read_rows(config), "cpu")
    with pytest.raises(WeightsError, match="where plain text is read"):
        load_student(path)
    assert not marker.exists()


def test_options_that_a_network_does_not_take_are_refused_in_words(tmp_path, weights):
    with pytest.raises(
        ConfigError, match="Expected options that test_resnet takes but .*unexpected keyword argument 'foo'"
    ):
        StudentMatcher("test_resnet", [8, 16], options={"foo": 1})
    path = write(tmp_path / "student.safetensors", STUDENT | {"options": {"foo": 1}}, weights)
    config = compose("compare", [f"ckpt={path}", "matchers=[nearest_neighbour]"])
    with pytest.raises(ConfigError, match="Expected options that test_resnet takes"):
        build_rows(config, read_rows(config), "cpu")


@pytest.mark.parametrize("named", ["/etc/hostname", ["a"]])
def test_the_comparison_opens_no_weights_that_only_a_students_file_names(tmp_path, weights, monkeypatch, named):
    opened = []
    monkeypatch.setattr("student.backbone.load_weights", lambda network, file, name: opened.append(str(file)))
    path = write(tmp_path / "student.safetensors", STUDENT | {"weights": named}, weights)

    def rows(*given):
        config = compose("compare", [f"ckpt={path}", "matchers=[student,nearest_neighbour,consensus]", *given])
        return build_rows(config, read_rows(config), "cpu")

    with pytest.raises(ConfigError, match=r"Expected backbone.weights .* does not choose what is read"):
        rows()
    assert opened == []
    found = rows("backbone={weights: mine.safetensors}")["nearest_neighbour"]
    assert (
        opened == ["mine.safetensors"] * 2 and found.backbone.name == "test_resnet" and found.backbone.strides == (16,)
    )
    assert list(rows("matchers=[student,oracle]")) == ["student", "oracle"]  # no baseline, no weights


def test_a_student_that_was_trained_with_weights_of_another_file_is_kept_without_its_name(tmp_path):
    student = StudentMatcher("test_resnet", [8, 16], 16)
    save_student(student, STUDENT | {"options": {"checkpoint_path": "mine.pth"}}, tmp_path / "s.safetensors")
    assert load_student(tmp_path / "s.safetensors").size == 64


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        from torch.nn import Linear
        from student import StudentMatcher


        class Mine(StudentMatcher):
            pass
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_package"
    sys.modules.pop("my_package", None)


def test_a_class_of_ones_own_is_built_once_its_package_is_named(tmp_path, own_package, weights):
    path = write(tmp_path / "student.safetensors", STUDENT | {"_target_": "my_package.Mine"}, weights)
    with pytest.raises(WeightsError, match=r"trust=\[<package>\]"):
        load_student(path)
    assert type(load_student(path, [own_package])).__name__ == "Mine"
    assert type(load_student(path, own_package)).__name__ == "Mine"


def test_trusting_a_package_trusts_only_the_modules_that_it_defines(tmp_path, own_package, marker):
    for target in ("my_package.Linear", "my_package.Path", "my_package.Absent", "my_package.inner.Absent"):
        with pytest.raises(WeightsError):
            load_student(write(tmp_path / "s.safetensors", {"_target_": target, "size": 64}), [own_package])
    nested = {"_target_": "my_package.Mine", "backbone": touch(marker), "size": 64}
    with pytest.raises(WeightsError, match="must not run code"):
        load_student(write(tmp_path / "s.safetensors", nested), [own_package])
    assert not marker.exists()


@pytest.mark.parametrize(
    ("verb", "required"),
    [("evaluate", []), ("match", ["src=a", "trg=b", "points=[[1,1]]"]), ("export", []), ("compare", [])],
)
def test_every_verb_that_reads_a_students_file_takes_trust(verb, required):
    config = compose(verb, ["ckpt=s.safetensors", "trust=[my_package]", *required])
    assert list(config.trust) == ["my_package"]
    if "matcher" in config:
        assert OmegaConf.to_container(config.matcher, resolve=True)["trusted"] == ["my_package"]


def test_the_filter_by_a_student_takes_trust():
    config = compose("fit", ["filter=student", "filter.student=s.safetensors", "filter.trust=[my_package]"])
    assert list(config.filter.criteria.agreement.matcher.trusted) == ["my_package"]
