"""Few-shot truth: annotation in place of labels, among other training pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.__main__ import main
from distill.cli.config import compose
from distill.cli.datasets import fit_pairs, truth_pairs
from distill.core.errors import ConfigError
from distill.core.types import Matches
from distill.data.coco import write_coco
from distill.data.datasets.folder import FolderPairs, of_split
from distill.data.joined_pairs import JoinedPairs
from distill.data.keypoints import ImageKeypoints
from distill.data.pairs import collate_pairs
from distill.labels import LabelStore
from distill.labels.truth import FewShotTruth


def label_of(batch) -> Matches:
    n = batch.src_kps.shape[:2]
    return Matches(torch.full((*n, 2), 3.0), torch.full(n, 0.25), torch.ones(*n, 4, 4))


def keys_of(batch) -> list[tuple[str, str]]:
    return [(src.hash, trg.hash) for src, trg in zip(batch.src_original, batch.trg_original, strict=True)]


def test_annotated_pairs_get_the_truth_and_all_others_keep_their_label(make_pairs):
    batch = collate_pairs([make_pairs(3, seed=1), make_pairs(2, seed=2)])
    batch.trg_kps[0, 1] = torch.nan  # a point whose counterpart nobody knows
    truth = FewShotTruth([keys_of(batch)[0]], weight=0.75, sigma_cells=0.5)
    found = truth(batch, label_of(batch))
    for n in (0, 2):
        x, y = batch.trg_kps[0, n].tolist()
        assert found.trg_kps[0, n].tolist() == [x, y] and found.confidence[0, n] == 0.75
        for row in range(4):
            for column in range(4):  # cells of 8 px, the Gaussian 4 px wide
                squared = (8 * column + 4 - x) ** 2 + (8 * row + 4 - y) ** 2
                assert float(found.heatmap[0, n, row, column]) == pytest.approx(np.exp(-squared / 32), abs=1e-5)
    kept = [(0, 1), (1, 0), (1, 1), (1, 2)]
    for b, n in kept:
        assert (
            found.trg_kps[b, n].tolist() == [3, 3]
            and found.confidence[b, n] == 0.25
            and (found.heatmap[b, n] == 1).all()
        )


def test_what_is_annotated_needs_no_label(make_pairs):
    batch = collate_pairs([make_pairs(3, seed=1), make_pairs(2, seed=2)])
    batch.trg_kps[0, 1] = torch.nan
    asked = FewShotTruth([keys_of(batch)[0]]).without_known(batch)
    assert asked.kps_mask.tolist() == [[False, True, False], [True, True, False]]
    assert batch.kps_mask.tolist() == [[True] * 3, [True, True, False]], "the batch itself stays as it is"


def test_a_batch_of_annotated_points_alone_has_heatmaps_although_nobody_was_asked(make_pairs):
    batch = make_pairs(2)
    nothing = Matches(torch.zeros(1, 2, 2), torch.zeros(1, 2), torch.zeros(1, 2, 1, 1))
    found = FewShotTruth(keys_of(batch))(batch, nothing)
    assert torch.equal(found.trg_kps, batch.trg_kps) and found.heatmap.shape == (1, 2, 32, 32)
    cells = found.heatmap[0].flatten(1).argmax(1)  # of 1 px, as the image has 32
    assert (torch.stack([cells % 32, cells // 32], 1) == batch.trg_kps[0].floor()).all()


def test_labels_without_annotated_pairs_are_as_they_were(make_pairs):
    batch, label = make_pairs(3), label_of(make_pairs(3))
    assert FewShotTruth([("a", "b")])(batch, label) is label


@pytest.mark.parametrize("settings", [{"weight": 0}, {"weight": 1.5}, {"sigma_cells": 0}])
def test_amounts_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match="truth.weight in"):
        FewShotTruth([], **settings)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs of one kind, and a COCO file: two annotated by a person, one by a matcher."""
    folder = tmp_path_factory.mktemp("few")
    images = {}
    for number in range(5):
        name = f"cup/{number}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images[name] = ImageKeypoints(
            {"rim": (10.0 + number, 12.0), "foot": (30.0, 30.0)}, size=(40, 50), category="cup"
        )
    images["cup/4.png"].confidence = {"rim": 0.9, "foot": 0.9}
    training = FolderPairs(str(folder), split="train", size=32).names
    chosen = [*training[:2], "cup/4.png"] if "cup/4.png" not in training[:2] else training[:3]
    (folder / "kps.json").write_text(json.dumps(write_coco({name: images[name] for name in dict.fromkeys(chosen)})))
    return folder


def test_points_of_a_matcher_are_no_truth(photographs):
    everything = FolderPairs(str(photographs), points="kps.json", size=32)
    by_person = FolderPairs(str(photographs), points="kps.json", size=32, by_person=True)
    assert len(everything.usable) == 3 and len(by_person.usable) == 2 and "cup/4.png" not in by_person.usable


def test_joined_pairs_are_those_of_both(photographs):
    parts = [
        FolderPairs(str(photographs), size=32, n_pairs=3),
        FolderPairs(str(photographs), points="kps.json", size=32),
    ]
    joined = JoinedPairs(parts)
    assert len(joined) == 3 + len(parts[1]) and joined.name == "folder" and not joined.has_truth
    assert joined[3].trg_id == parts[1][0].trg_id and joined.query(3).src == parts[1].query(0).src
    assert joined.views(3, 16)[0].image.shape == (3, 16, 16)


def fit(folder: Path, run: Path, *extra: str) -> int:
    small = [
        "student.backbone=test_resnet",
        "student.strides=[8,16]",
        "data.size=64",
        "train.n_pairs=2",
        "val.n_pairs=2",
    ]
    small += ["test.n_pairs=0", "batch_size=2", "pictures=0", "onnx=false", "loss=distillation", "device=cpu"]
    small += ["teacher=nearest_neighbour", "teacher.model.backbone=test_resnet", "teacher.model.strides=[8,16]"]
    return main(["fit", "trainer=smoke", "data=folder", f"data.root={folder}", *small, f"run.dir={run}", *extra])


@pytest.mark.parametrize("filters", [[], ["filter=curriculum"]])
def test_fit_takes_truth_beside_labels_and_asks_no_teacher_about_it(photographs, tmp_path, capsys, filters):
    truth = [f"truth.points={photographs}/kps.json", "truth.repeat=2"]
    assert fit(photographs, tmp_path / "run", *truth, *filters) == 0
    assert "truth:   2 pairs of annotated photographs" in capsys.readouterr().out
    assert (tmp_path / "run/student.safetensors").is_file()
    store = LabelStore(tmp_path / "run/labels")
    annotated = FolderPairs(str(photographs), points="kps.json", size=64, by_person=True)
    assert len(annotated) == 2 and not any(store.known(annotated.query(number)).any() for number in (0, 1))
    drawn = [FolderPairs(str(photographs), split=split, size=64, n_pairs=2) for split in ("train", "val")]
    assert all(store.known(pairs.query(number)).all() for pairs in drawn for number in (0, 1)), (
        "the others are labelled"
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["truth.points={0}/kps.json", "truth.repeat=0"], "truth.repeat of at least 1"),
        (["truth.points={0}/kps.json", "truth.weight=2"], "truth.weight in (0, 1]"),
        (["truth.points={0}/none.json"], "none.json"),
        (["truth.points={0}/one.csv"], "Expected two images of one category"),
    ],
)
def test_truth_that_cannot_be_learned_from_is_named_before_labels_are_made(
    photographs, tmp_path, extra, message, capsys
):
    (photographs / "one.csv").write_text("image,part,x,y\ncup/0.png,rim,1,1\n")
    assert fit(photographs, tmp_path / "run", *(word.format(photographs) for word in extra)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_photographs_that_are_set_aside_for_a_test_are_no_truth_whether_it_is_made_or_not(tmp_path):
    """Of twenty photographs all but two are annotated, and one of these would be for the test of all."""
    names = [f"cup/{number:02d}.png" for number in range(20)]
    (tmp_path / "cup").mkdir()
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    aside = of_split(names, "test")
    annotated = [name for name in names if name not in (aside[0], of_split(names, "train")[0])]
    rows = [f"{name},{part},{x},8" for name in annotated for part, x in (("rim", 3), ("foot", 12))]
    (tmp_path / "some.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    later = of_split(annotated, "test")
    assert aside[1] in annotated and set(later) - set(aside), "another split of the annotated ones"
    data = ["data=folder", f"data.root={tmp_path}", "data.size=32", f"truth.points={tmp_path}/some.csv"]
    cfg = compose("fit", [*data, "train.n_pairs=4", "val.n_pairs=2", "train.unlabelled=0"])
    train, val, test = fit_pairs(cfg)
    truth = truth_pairs(cfg, train, [val, test])
    used = {name for pair in truth.pairs for name in pair}
    assert test is None and used and used <= set(annotated) - set(aside) - set(later) - set(val.names)


def test_truth_belongs_to_a_folder_of_photographs(tmp_path, capsys):
    assert main(["fit", "truth.points=a.csv", f"run.dir={tmp_path}/run", "device=cpu"]) == 2
    assert "Expected data=folder for truth.points" in capsys.readouterr().err
