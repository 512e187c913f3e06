import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from distill.__main__ import main
from distill.bench.loader import loader_rates
from distill.cli.config import compose
from distill.cli.datasets import pairs_of
from distill.data.datasets.folder import FolderPairs
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


def test_a_data_set_without_lists_of_pairs_cannot_be_paired(capsys):
    assert main(["data", "pair", "data=shapes"]) == 2
    assert "choose data=folder or data=cub" in capsys.readouterr().err


def test_download_explains_what_has_to_be_done_by_hand(tmp_path, capsys):
    assert main(["data", "download", "data=ap10k", f"data.root={tmp_path}"]) == 0
    assert "prepare_ap10k.ipynb" in capsys.readouterr().out


def test_an_unknown_action_is_named(capsys):
    assert main(["data", "chek"]) == 2
    assert "did you mean 'check'" in capsys.readouterr().err


def test_the_loader_is_measured_with_and_without_processes(folder):
    rows = loader_rates(lambda: FolderPairs(str(folder), size=32), workers=(0, 1))
    assert [row["variant"] for row in rows] == [
        f"folder, {workers} workers, {name}" for workers in (0, 1) for name in ("first pass", "second pass")
    ]
    assert all(row["per_second"] > 0 and row["batch"] == 8 for row in rows)
