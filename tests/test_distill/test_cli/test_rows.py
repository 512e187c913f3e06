"""The rows of a comparison, as a command line names them."""

import pytest

from distill.cli.config import compose
from distill.cli.rows import build_rows, read_rows, with_backbone
from distill.core.errors import ConfigError
from distill.matchers.box_relative import BoxRelative
from student import FeatureTeacher, NearestNeighbour

BACKBONE = "backbone={backbone: test_resnet, strides: [8]}"


def rows_of(matchers: str, *others: str):
    return read_rows(compose("compare", [f"matchers={matchers}", *others]))


def test_the_usual_rows_are_those_of_a_student_and_its_backbone():
    rows = read_rows(compose("compare", ["ckpt=s.safetensors"]))
    assert [row.name for row in rows] == ["teacher", "student", "nearest_neighbour", "box_relative"]


def test_files_are_named_after_themselves_and_where_they_clash_after_their_folders(tmp_path):
    for name in ("a/student.safetensors", "b/student.safetensors", "b/small.onnx", "kept.npz", "labels/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = ",".join(
        f"{tmp_path}/{name}" for name in ("a/student.safetensors", "b/student.safetensors", "b/small.onnx")
    )
    rows = rows_of(f"[{paths},{{old: {tmp_path}/kept.npz}},{tmp_path}/labels]")
    assert [row.name for row in rows] == ["a_student", "b_student", "small", "old", "labels"]
    assert [row.student_file for row in rows] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("matchers", "message"),
    [
        ("[]", "at least one of matchers"),
        ("[oracl]", "did you mean 'oracle'"),
        ("[gone/student.safetensors]", "there is none at gone/student.safetensors"),
        ("[oracle,oracle]", "a name of its own but 'oracle' stands 2 times"),
        ("[{a: oracle, b: oracle}]", r"a name, a path, or \{name: either\}"),
        ("[[oracle]]", r"a name, a path, or \{name: either\}"),
        ("[student]", "Expected a value for ckpt"),
    ],
)
def test_what_is_no_row_is_refused_in_words(matchers, message):
    with pytest.raises(ConfigError, match=message):
        rows_of(matchers)


@pytest.mark.parametrize("backbone", ["resnet50", "5", "[resnet50]"])
def test_a_backbone_is_a_mapping(backbone):
    config = compose("compare", ["matchers=[nearest_neighbour]", f"backbone={backbone}"])
    with pytest.raises(ConfigError, match=r"arguments of a timm backbone but got .*write 'backbone=\{backbone: "):
        build_rows(config, read_rows(config), "cpu")


@pytest.mark.parametrize("row", ["+rows.mine=3", "rows.oracle=null"])
def test_a_row_that_describes_no_matcher_is_refused(row):
    name = row.partition(".")[2].partition("=")[0]
    with pytest.raises(ConfigError, match=f"Expected rows.{name} to describe a matcher"):
        rows_of(f"[{name}]", row)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kept.npz").touch()
    for entry in ("~/kept.npz", "{kept: ~/kept.npz}"):
        (row,) = rows_of(f"['{entry}']" if entry[0] == "~" else "[{kept: '~/kept.npz'}]")
        assert (row.name, row.what) == ("kept", str(tmp_path / "kept.npz"))


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "x" * 61, "a\nb"])
def test_a_name_that_could_lead_out_of_the_runs_folder_is_refused(name):
    config = compose("compare", [])
    config.matchers = [{name: "oracle"}]
    with pytest.raises(ConfigError, match="at most 60 letters, digits, spaces"):
        read_rows(config)


def test_baselines_differ_by_what_their_names_say_and_share_a_backbone():
    names = [
        "nearest_neighbour",
        "nearest_neighbour_flip",
        "nearest_neighbour_enlarged",
        "nearest_neighbour_enlarged_flip",
    ]
    config = compose("compare", [f"matchers=[{','.join(names)},consensus,box_relative]", BACKBONE])
    *found, consensus, boxes = build_rows(config, read_rows(config), "cpu").values()
    assert [(one.enlarge, one.flip) for one in found] == [(False, False), (False, True), (True, False), (True, True)]
    assert all(isinstance(one, NearestNeighbour) for one in found) and isinstance(boxes, BoxRelative)
    assert isinstance(consensus, FeatureTeacher) and isinstance(consensus.model, NearestNeighbour)
    weights = [one.backbone.state_dict() for one in (*found, consensus.model)]
    assert all((other[key] == weights[0][key]).all() for other in weights[1:] for key in weights[0])


def test_a_row_of_ones_own_is_a_key_and_a_backbone_of_its_own_stays():
    config = compose("compare", ["matchers=[mine]", "+rows.mine._target_=student.NearestNeighbour", BACKBONE])
    assert build_rows(config, read_rows(config), "cpu").keys() == {"mine"}
    own = {"_target_": "student.NearestNeighbour", "backbone": "mine"}
    assert with_backbone(own, {"backbone": "other"}, "x") == own


def test_all_strides_are_those_of_the_student_and_a_nearest_neighbour_has_one():
    config, backbone = (
        {"_target_": "student.NearestNeighbour"},
        {"backbone": "b", "strides": [16], "all_strides": [4, 16]},
    )
    assert with_backbone(config, backbone, "x") == config | {"backbone": "b", "strides": [16]}
    assert with_backbone(config | {"strides": "all"}, backbone, "x")["strides"] == [4, 16]
    assert with_backbone(config | {"strides": [8]}, backbone, "x")["strides"] == [8]
    assert with_backbone(config | {"strides": "all"}, {"backbone": "b"}, "x")["strides"] == [16]


def test_a_baseline_without_any_backbone_is_refused():
    config = compose("compare", ["matchers=[consensus]"])
    with pytest.raises(ConfigError, match="Expected a backbone for consensus"):
        build_rows(config, read_rows(config), "cpu")
