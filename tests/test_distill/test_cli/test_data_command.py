import importlib
import inspect
import json
from dataclasses import asdict

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from distill.__main__ import main
from distill.bench.loader import loader_rates
from distill.cli.config import compose
from distill.cli.datasets import fit_pairs, pairs_of
from distill.core.errors import ConfigError, DataError
from distill.data.datasets.folder import FolderPairs
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.pair_mining import nearest_pairs


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "photos" / "cat" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def test_check_names_every_file_that_is_broken(folder, capsys):
    arguments = ["data", "check", "data=folder", f"data.root={folder}", "data.size=32"]
    assert main(arguments) == 0
    assert "30 pairs and 6 photographs are in order, 0 problems" in capsys.readouterr().out
    for number in (2, 4):
        (folder / "cat" / f"{number}.png").write_bytes(b"no image")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "12 pairs and 4 photographs are in order, 2 problems" in shown.out
    assert all(f"{number}.png" in shown.out for number in (2, 4))
    assert "data.on_error=skip" in shown.err and not (folder / "runs").exists()


def test_describe_writes_the_list_of_pairs_that_can_be_given_again(folder, tmp_path, capsys):
    arguments = ["data", "describe", "data=folder", f"data.root={folder}", "data.size=32", "data.n_pairs=7"]
    assert main([*arguments, f"run.dir={tmp_path}/d"]) == 0
    description = json.loads((tmp_path / "d" / "description.json").read_text())
    again = FolderPairs(str(folder), pairs=str(tmp_path / "d" / "pairs.csv"), size=32)
    assert len(again) == 7 and again.fingerprint() == description["pairs_fingerprint"]
    assert "note: nothing is annotated" in capsys.readouterr().out


def test_photographs_without_annotation_are_not_scored_and_nothing_is_written(folder, tmp_path, capsys):
    arguments = ["evaluate", "matcher=box_relative", "data=folder", f"data.root={folder}", "data.size=32"]
    assert main([*arguments, f"run.dir={tmp_path}/e"]) == 2
    assert "Expected annotated points in folder" in capsys.readouterr().err and not (tmp_path / "e").exists()


def test_photographs_without_annotation_are_compared_by_agreement_confidence_and_cycle(folder, tmp_path, capsys):
    matchers = ["matchers=[nearest_neighbour,consensus]", "backbone={backbone: test_resnet, strides: [8]}"]
    arguments = ["compare", "data=folder", f"data.root={folder}", "data.size=32", "data.n_pairs=3", *matchers]
    assert main([*arguments, f"run.dir={tmp_path}/c"]) == 0
    found = json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert found["reference"] == "nearest_neighbour" and found["differences"] == {}
    assert set(found["agreement"]["consensus"]) > {"within_0.10", "median_relative"}
    for row in found["matchers"]:
        assert "pck" not in row and 0 <= row["confidence"]["mean"] <= 1 and 0 <= row["cycle"]["within_0.10"] <= 100
    files = {path.name for path in (tmp_path / "c").iterdir()}
    assert {"report.html", "report.md", "matches.png", "predictions"} <= files
    kept = f"matchers=[{tmp_path}/c/predictions/consensus.npz,{tmp_path}/c/predictions/nearest_neighbour.npz]"
    assert main([*arguments[:5], kept, "reference=nearest_neighbour", f"run.dir={tmp_path}/k"]) == 0
    again = json.loads((tmp_path / "k" / "metrics.json").read_text())
    assert again["agreement"] == found["agreement"] and again["matchers"][0]["cycle"] is None
    assert "3 pairs, not annotated" in capsys.readouterr().out
    assert main([*arguments[:5], "data.seed=7", kept, f"run.dir={tmp_path}/o"]) == 2
    assert (
        "give the data settings that they were made with" in capsys.readouterr().err and not (tmp_path / "o").exists()
    )


def test_symmetric_groups_list_parts_by_number(folder):
    class Named(FolderPairs):
        symmetric_groups = {"cat": (("left ear", "right ear"),)}

    with pytest.raises(ConfigError, match="Named.symmetric_groups to list parts by their number"):
        Named(str(folder))


def test_pair_writes_a_list_in_which_photographs_meet_those_that_look_like_them(tmp_path, capsys):
    for name, colour in {"red": (250, 0, 0), "rose": (240, 10, 10), "blue": (0, 0, 250), "navy": (0, 10, 240)}.items():
        file = tmp_path / "photos" / "cat" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), colour, dtype=np.uint8)).save(file)
    arguments = ["data", "pair", "data=folder", f"data.root={tmp_path}/photos", "data.size=32", "pairs_per_image=1"]
    assert main([*arguments, "describer.backbone=resnet10t", f"run.dir={tmp_path}/p"]) == 0
    assert "4 pairs of 4 photographs" in capsys.readouterr().out
    found = FolderPairs(str(tmp_path / "photos"), pairs=str(tmp_path / "p" / "pairs.csv"), size=32).pairs
    like = {"blue": "navy", "navy": "blue", "red": "rose", "rose": "red"}
    assert sorted(found) == [(f"cat/{name}.png", f"cat/{other}.png") for name, other in like.items()]


def test_training_pairs_may_come_from_a_list_of_their_own(folder, tmp_path):
    (tmp_path / "list.csv").write_text('source_image,target_image\n"cat/1.png","cat/2.png"\n"cat/4.png","cat/1.png"\n')
    data = compose("fit", ["data=folder", f"data.root={folder}", "data.size=32", "data.n_points=3"]).data
    listed = pairs_of(data, "all", OmegaConf.create({"n_pairs": None, "pairs": str(tmp_path / "list.csv")}))
    assert listed.pairs == [("cat/1.png", "cat/2.png"), ("cat/4.png", "cat/1.png")]
    assert len(pairs_of(data, "all", OmegaConf.create({"n_pairs": 5, "pairs": None}))) == 5


def test_pairs_stay_within_a_category_and_the_most_similar_come_first():
    features = np.array([[1.0, 0], [3, 3], [2, 0.1], [0, 5], [1, 0]])
    found = nearest_pairs(features, ["a", "a", "a", "a", "b"], 2)
    assert found == [(0, 2), (0, 1), (1, 2), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_an_image_is_paired_with_one_other_at_least(count):
    with pytest.raises(ConfigError, match=f"Expected pairs_per_image as a whole number of at least 1 but got {count}"):
        nearest_pairs(np.eye(3), ["a"] * 3, count)


def test_a_data_set_without_lists_of_pairs_cannot_be_paired(capsys):
    assert main(["data", "pair", "data=shapes"]) == 2
    assert "choose data=folder or data=cub" in capsys.readouterr().err


def test_download_explains_what_has_to_be_done_by_hand(tmp_path, capsys):
    assert main(["data", "download", "data=ap10k", f"data.root={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "prepare_ap10k.ipynb" in told and "licence: CC BY 4.0" in told


def test_a_download_that_fails_says_what_can_be_done_by_hand(tmp_path, capsys, monkeypatch):
    def fail(source, folder, progress):
        raise DataError(f"Expected to download {source.url} but got: no answer.")

    monkeypatch.setattr("distill.cli.commands.data.download", fail)
    assert main(["data", "download", "data=soco", f"data.root={tmp_path}"]) == 2
    told = capsys.readouterr()
    assert "By hand: https://huggingface.co/datasets/GenIntelLab/SOCO" in told.err and "licence: CC BY 4.0" in told.out


def test_an_unknown_action_is_named(capsys):
    assert main(["data", "chek"]) == 2
    assert "did you mean 'check'" in capsys.readouterr().err


def test_the_loader_is_measured_with_and_without_processes(folder):
    rows = loader_rates(lambda: FolderPairs(str(folder), size=32), workers=(0, 1))
    assert [row["variant"] for row in rows] == [
        f"folder, {workers} workers, {name}" for workers in (0, 1) for name in ("first pass", "second pass")
    ]
    assert all(row["per_second"] > 0 and row["batch"] == 8 for row in rows)


def photographs(root, count, size=(60, 40)):
    """As many photographs of one category, each of another colour."""
    (root / "cat").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour = (number * 255 // count, 255 - number * 255 // count, 128)
        Image.new("RGB", size, colour).save(root / "cat" / f"{number}.png")
    return root


@pytest.mark.parametrize("count", [6, 40])
def test_the_contact_sheet_shows_every_photograph(tmp_path, count, capsys):
    """Photographs that were first met as targets were left out: 10 of 40, 2 of 6."""
    root = photographs(tmp_path / "photos", count)
    arguments = ["data", "data=folder", f"data.root={root}", "data.size=32", "data.n_points=1", f"images={count}"]
    assert main([*arguments, f"run.dir={tmp_path}/d"]) == 0
    pixels = np.asarray(Image.open(tmp_path / "d" / "contact_sheet.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in pixels[::1].tolist()}
    expected = {(number * 255 // count, 255 - number * 255 // count, 128) for number in range(count)}
    assert expected <= colours


def test_a_contact_sheet_of_some_photographs_says_so(folder, tmp_path, capsys):
    arguments = ["data", "data=folder", f"data.root={folder}", "data.size=32", "images=4", f"run.dir={tmp_path}/d"]
    assert main(arguments) == 0
    assert "4 of 6 photographs; images=6 shows all" in capsys.readouterr().out


def test_describe_names_the_sizes_of_photographs(folder, tmp_path, capsys):
    Image.new("RGB", (200, 20)).save(folder / "cat" / "panorama.png")
    arguments = ["data", "data=folder", f"data.root={folder}", "data.size=32", f"run.dir={tmp_path}/d"]
    assert main(arguments) == 0
    description = json.loads((tmp_path / "d" / "description.json").read_text())
    assert description["sizes"] == {"60 x 40 px": 6, "200 x 20 px": 1} and description["images"] == 7


def test_check_counts_and_names_what_is_ignored(folder, capsys):
    (folder / "cat" / "notes.txt").write_text("hello")
    (folder / "cat" / "._0.png").write_bytes(b"hidden")
    (folder / "cow").mkdir()
    Image.new("RGB", (60, 40)).save(folder / "cow" / "alone.png")
    assert main(["data", "check", "data=folder", f"data.root={folder}", "data.size=32"]) == 0
    shown = capsys.readouterr().out
    assert "30 pairs and 7 photographs are in order, 0 problems" in shown and "ignored: 2 files or rows" in shown
    assert (
        "cat/notes.txt: no image" in shown and "cow/alone.png: is the only photograph" in shown and "._0" not in shown
    )


def test_check_says_how_fit_would_share_the_photographs(tmp_path, capsys):
    root = photographs(tmp_path / "photos", 40)
    assert main(["data", "check", "data=folder", f"data.root={root}", "data.size=32"]) == 0
    assert (
        "fit uses 32 photographs for training and 4 for validation; 4 are set aside for a test"
        in capsys.readouterr().out
    )


def test_check_finds_boxes_that_do_not_suit_their_photographs(folder, capsys):
    points = {f"cat/{k}.png": {"points": {"nose": [20, 20]}, "bbox": [10, 10, 50, 35]} for k in range(6)}
    points["cat/3.png"]["bbox"] = [10, 10, 5000, 60]
    (folder / "points.json").write_text(json.dumps(points))
    assert main(["data", "check", "data=folder", f"data.root={folder}", "data.size=32"]) == 2
    shown = capsys.readouterr().out
    assert "20 pairs and 5 photographs are in order, 1 problems" in shown and "[10, 10, 5000, 60]" in shown


def test_pairing_by_an_untrained_backbone_says_so(folder, tmp_path, capsys):
    arguments = ["data", "pair", "data=folder", f"data.root={folder}", "data.size=32", "pairs_per_image=1"]
    assert main([*arguments, "describer.backbone=resnet10t", f"run.dir={tmp_path}/p"]) == 0
    assert "backbone resnet10t is untrained" in capsys.readouterr().out


def test_a_photograph_that_cannot_be_read_stops_pairing_or_is_named(folder, tmp_path, capsys):
    (folder / "cat/3.png").write_bytes(b"no image")
    arguments = ["data", "pair", "data=folder", f"data.root={folder}", "data.size=32", "describer.backbone=resnet10t"]
    assert main([*arguments, f"run.dir={tmp_path}/p"]) == 2
    assert "3.png" in capsys.readouterr().err
    assert main([*arguments, f"run.dir={tmp_path}/q", "data.on_error=skip"]) == 0
    out = capsys.readouterr().out
    assert "3.png" in out and "of 5 photographs" in out


def with_a_cut_photograph(folder, orientation=1):
    """Adds a photograph with a sound header and half of its pixels, which takes part in no pair that can be read."""
    file, exif = folder / "cat" / "cut.jpg", Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, exif=exif)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return ["data=folder", f"data.root={folder}", "data.size=32"]


def test_what_is_left_out_of_the_pairs_is_left_out_of_the_description_too(folder, tmp_path, capsys):
    arguments = ["data", "describe", *with_a_cut_photograph(folder)]
    assert main([*arguments, f"run.dir={tmp_path}/d"]) == 2
    assert "cut.jpg cannot be read" in capsys.readouterr().err
    assert main([*arguments, f"run.dir={tmp_path}/s", "data.on_error=skip"]) == 0
    description = json.loads((tmp_path / "s" / "description.json").read_text())
    assert description["pairs"] == 30 and description["sizes"] == {"60 x 40 px": 6}
    assert "cut.jpg cannot be read" in description["skipped"]["cat/cut.jpg"]


def test_a_photograph_whose_pixels_are_damaged_stops_pairing_or_is_named(folder, tmp_path, capsys):
    arguments = ["data", "pair", *with_a_cut_photograph(folder), "describer.backbone=resnet10t"]
    assert main([*arguments, f"run.dir={tmp_path}/p"]) == 2
    assert "cut.jpg cannot be read" in capsys.readouterr().err
    assert main([*arguments, f"run.dir={tmp_path}/q", "data.on_error=skip"]) == 0
    out = capsys.readouterr().out
    assert "cut.jpg cannot be read" in out and "of 6 photographs" in out
    assert "cut.jpg" not in (tmp_path / "q" / "pairs.csv").read_text()


@pytest.mark.parametrize("format_", ["yolo_pose", "coco"])
def test_a_photograph_whose_pixels_are_damaged_is_left_out_of_a_conversion(folder, tmp_path, capsys, format_):
    """Copies of turned photographs are decoded; other photographs would have been copied with their damage."""
    rows = [f"cat/{name},nose,20,20" for name in (*(f"{number}.png" for number in range(6)), "cut.jpg")]
    arguments = ["data", "convert", *with_a_cut_photograph(folder, orientation=6), "data.on_error=skip"]
    (folder / "points.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    to = tmp_path / ("to.json" if format_ == "coco" else "to")
    assert main([*arguments, f"format={format_}", f"to={to}"]) == 0
    out = capsys.readouterr().out
    assert "6 images in" in out and "cut.jpg cannot be read" in out


def test_a_data_set_of_the_users_own_has_no_address(tmp_path, capsys):
    (tmp_path / "own" / "data").mkdir(parents=True)
    for target in ("Birds", "my.cub.Birds"):
        (tmp_path / "own" / "data" / "birds.yaml").write_text(f"_target_: {target}\nroot: {tmp_path}\n")
        assert main(["data", "download", "data=birds", "--config-dir", str(tmp_path / "own")]) == 2
        error = capsys.readouterr().err
        assert f"no address of {target}" in error and len(error.strip().splitlines()) == 1


def test_errors_about_numbers_of_pairs_name_the_key_of_the_split(folder, capsys):
    data = compose("fit", ["data=folder", f"data.root={folder}", "data.size=32"]).data
    with pytest.raises(DataError, match="Expected val.n_pairs of at least 1"):
        pairs_of(data, "val", OmegaConf.create({"n_pairs": 0}))
    with pytest.raises(DataError, match="Expected val.n_pairs of at least 1"):
        pairs_of(data, "val", OmegaConf.create({"n_pairs": -3}))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (40, "pairs:   800 training, 12 validation, no test: nothing is annotated"),
        (3, "pairs:   6 training, 6 validation, no test: nothing is annotated"),
    ],
)
def test_fit_takes_the_pairs_that_a_folder_has_and_says_which(tmp_path, capsys, count, expected):
    root = photographs(tmp_path / "photos", count)
    cfg = compose("fit", ["data=folder", f"data.root={root}", "data.size=32"])
    train, val, test = fit_pairs(cfg)
    shown = capsys.readouterr().out
    assert test is None and expected in shown and len(train) + len(val) == {40: 812, 3: 12}[count]
    assert ("validation uses the photographs of training" in shown) == (count == 3)


def test_fit_compares_on_annotated_photographs_as_far_as_there_are_any(tmp_path, capsys):
    for count, tested in ((6, "no test: "), (20, "2 test")):
        root = photographs(tmp_path / str(count), count)
        rows = [f"cat/{number}.png,nose,{10 + number},20" for number in range(count)]
        (root / "points.csv").write_text("\n".join(["image,part,x,y", *rows]))
        test = fit_pairs(compose("fit", ["data=folder", f"data.root={root}", "data.size=32"]))[2]
        assert tested in capsys.readouterr().out and (test is None) == (count == 6)


@pytest.mark.parametrize("name", ["ap10k", "cub", "folder", "pf_pascal", "pf_willow", "soco", "spair71k", "spair_u"])
def test_the_defaults_of_a_class_are_those_of_its_configuration(name):
    """A setting stands in one place; that class and file agree is checked here."""
    data = compose("evaluate", [f"data={name}", "data.root=x"]).data
    path, _, target = data._target_.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(path), target)).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert set(ImageOptions.__annotations__) == set(asdict(ImageConfig()))
    defaults |= asdict(ImageConfig())  # what **image_options stands for
    configured = {key: value for key, value in data.items() if key not in ("_target_", "root")}
    assert set(configured) == set(defaults) - {"root", "image_options"}
    different = {key for key, value in configured.items() if defaults[key] != value}
    assert different <= ({"split", "n_pairs"} if name == "cub" else set())
