import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.core.errors import ConfigError, DataError
from distill.data.datasets.spair71k import SPairPairs
from distill.data.datasets.spair_u import SPairUPairs
from distill.evaluation.evaluate import evaluate
from distill.matchers.oracle import Oracle

NAMES = ["000001-2008_a-2008_b:cat", "000002-2008_b-2008_a:cat", "000003-2008_a-2008_c:cat"]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Three photographs and three test pairs; the point with id 4 is red."""
    spots = {"a": (20, 12), "b": (33, 25), "c": (8, 30)}
    sizes = {"a": (60, 40), "b": (50, 48), "c": (44, 44)}
    (tmp_path / "JPEGImages" / "cat").mkdir(parents=True)
    for name, (x, y) in spots.items():
        width, height = sizes[name]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y - 4 : y + 4, x - 4 : x + 4] = (255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "cat" / f"2008_{name}.jpg", quality=95)
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text("\r\n".join(NAMES) + "\r\n")
    (tmp_path / "PairAnnotation" / "test").mkdir(parents=True)
    for name in NAMES:
        src, trg = (part[-1] for part in name.split(":")[0].split("-")[1:])
        note = {
            "src_imname": f"2008_{src}.jpg",
            "trg_imname": f"2008_{trg}.jpg",
            "src_kps": [list(spots[src]), [5, 6]],
            "trg_kps": [list(spots[trg]), [7, 8]],
            "kps_ids": ["4", "17"],
            "src_bndbox": [2, 2, 40, 30],
            "trg_bndbox": [1, 4, 41, 34],
            "src_imsize": [*sizes[src], 3],
            "trg_imsize": [*sizes[trg], 3],
            "category": "cat",
            "viewpoint_variation": 1,
            "scale_variation": 2,
            "truncation": 3,
            "occlusion": 0,
        }
        (tmp_path / "PairAnnotation" / "test" / f"{name}.json").write_text(json.dumps(note))
    return tmp_path


def test_the_pairs_are_the_benchmarks_in_its_order(layout):
    pairs = SPairPairs(str(layout))
    assert [pairs._lines[pair] for pair in pairs.pairs] == NAMES
    assert [(p.src_id[0], p.trg_id[0]) for p in map(pairs.__getitem__, range(3))] == [
        ("cat/2008_a.jpg", "cat/2008_b.jpg"),
        ("cat/2008_b.jpg", "cat/2008_a.jpg"),
        ("cat/2008_a.jpg", "cat/2008_c.jpg"),
    ]


def test_points_flags_and_threshold_are_the_annotations(layout):
    pair = SPairPairs(str(layout), size=64)[0]
    assert pair.kps_id[0].tolist() == [4, 17] and pair.variation[0].tolist() == [1, 2, 3, 0]
    assert float(pair.pck_threshold) == pytest.approx(40, abs=1e-4), "the target's box, in its own pixels"
    for image, points in ((pair.src_img, pair.src_kps), (pair.trg_img, pair.trg_kps)):
        x, y = points[0, 0].int().tolist()
        red, green, _ = image[0, :, y, x].tolist()
        assert red > 0.7 and green < 0.3
    assert pair.trg_size[0].tolist() == [48, 50]


def test_a_file_system_without_colons_will_do(layout):
    for file in (layout / "PairAnnotation" / "test").iterdir():
        file.rename(file.with_name(file.name.replace(":", "_")))
    assert SPairPairs(str(layout))[2].kps_id[0].tolist() == [4, 17]


def test_a_draw_depends_on_the_seed_only(layout):
    first, again = (SPairPairs(str(layout), n_pairs=2, seed=1).pairs for _ in range(2))
    assert first == again and len(set(first)) == 2
    assert any(SPairPairs(str(layout), n_pairs=2, seed=seed).pairs != first for seed in range(2, 8))


def test_what_is_wrong_is_named(layout):
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        SPairPairs(str(layout), split="tset")
    with pytest.raises(DataError, match="trn.txt"):
        SPairPairs(str(layout), split="train")
    with pytest.raises(DataError, match="data.n_pairs of at least 1"):
        SPairPairs(str(layout), n_pairs=0)
    (layout / "Layout" / "large" / "test.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        SPairPairs(str(layout))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (lambda file: file.write_text(file.read_text()[:50]), "it is no JSON"),
        (lambda file: file.write_text(file.read_text().replace("trg_kps", "kps")), "the key 'trg_kps' is missing"),
        (lambda file: file.write_text(file.read_text().replace('"17"', '"30"')), "not all in 0 to 29"),
        (lambda file: file.write_text(file.read_text().replace('"17"', '"-1"')), "not all in 0 to 29"),
        (
            lambda file: file.write_text(file.read_text().replace("[7, 8]", "[7]")),
            "the point 17 of .*_kps is .* where 2 numbers are expected: x, y in px",
        ),
        (lambda file: file.write_text("[]"), "the file is .* where an object"),
    ],
)
def test_a_broken_annotation_is_named(layout, break_it, message):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[0]}.json"
    break_it(file)
    with pytest.raises(DataError, match=f"{NAMES[0]}.*{message}"):
        SPairPairs(str(layout))[0]


def test_a_missing_photograph_is_named(layout):
    (layout / "JPEGImages" / "cat" / "2008_b.jpg").unlink()
    with pytest.raises(DataError, match="2008_b.jpg"):
        SPairPairs(str(layout))[0]


def test_what_else_the_target_shows_is_known(layout):
    (layout / "ImageAnnotation" / "cat").mkdir(parents=True)
    slots = {str(k): None for k in range(30)} | {"4": [33, 25], "9": [3, 4]}
    (layout / "ImageAnnotation" / "cat" / "2008_b.json").write_text(json.dumps({"kps": slots, "azimuth_id": 2}))
    pair = SPairPairs(str(layout), size=64)[0]
    assert pair.kps_id[0].tolist() == [4, 17], "only common points are asked for"
    assert pair.trg_all_id[0].tolist() == [4, 9, 17]
    (layout / "ImageAnnotation" / "cat" / "2008_b.json").write_text('{"kps": {"31": [1, 2]}}')
    with pytest.raises(DataError, match="2008_b.json"):
        SPairPairs(str(layout))[0]


def numbers_of_a(file: Path) -> dict[str, list[float]]:
    """Returns the points of 2008_a.jpg by number, of COCO's file or of an SPair tree's annotation of the photograph."""
    content = json.loads(file.read_text())
    if "kps" in content:
        return {number: point for number, point in content["kps"].items() if point}
    (image,) = [entry["id"] for entry in content["images"] if entry["file_name"].endswith("2008_a.jpg")]
    (given,) = [entry["keypoints"] for entry in content["annotations"] if entry["image_id"] == image]
    names = content["categories"][0]["keypoints"]
    return {n: [given[3 * k] + 0.5, given[3 * k + 1] + 0.5] for k, n in enumerate(names) if given[3 * k + 2]}


def test_a_photograph_is_converted_with_the_points_of_all_its_pairs(layout, tmp_path):
    """A pair has those points alone that both of its images show; those of the first pair were all that was written."""
    file = layout / "PairAnnotation/test" / f"{NAMES[2]}.json"
    file.write_text(file.read_text().replace('"17"', '"9"').replace("[5, 6]", "[9, 10]"))
    (layout / "ImageAnnotation/cat").mkdir(parents=True)
    slots = {str(k): None for k in range(30)} | {"4": [1, 1], "0": [3, 4]}
    (layout / "ImageAnnotation/cat/2008_a.json").write_text(json.dumps({"kps": slots}))
    data = ["data", "convert", "data=spair71k", f"data.root={layout}", "data.split=test"]
    assert main([*data, "format=coco", f"to={tmp_path}/to.json"]) == 0
    assert main([*data, "format=spair71k", f"to={tmp_path}/tree"]) == 0
    expected = {"0": [3, 4], "4": [20, 12], "9": [9, 10], "17": [5, 6]}
    assert numbers_of_a(tmp_path / "to.json") == expected
    assert numbers_of_a(tmp_path / "tree/ImageAnnotation/cat/2008_a.json") == expected


def test_a_broken_pair_stops_a_conversion_or_is_named(layout, tmp_path, capsys):
    (layout / "PairAnnotation/test" / f"{NAMES[2]}.json").write_text("{")
    data = ["data", "convert", "data=spair71k", f"data.root={layout}", "data.split=test"]
    for format_, to in (("coco", "to.json"), ("spair71k", "tree")):
        assert main([*data, f"format={format_}", f"to={tmp_path}/{to}"]) == 2
        assert f"{NAMES[2]}.json but it is no JSON" in capsys.readouterr().err
        assert main([*data, f"format={format_}", f"to={tmp_path}/{to}", "data.on_error=skip"]) == 0
        out = capsys.readouterr().out
        assert "\n2 " in f"\n{out}" and "left out" in out and NAMES[2] in out


def test_figures_are_told_by_category_and_by_what_varies(layout):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[2]}.json"
    file.write_text(file.read_text().replace('"viewpoint_variation": 1', '"viewpoint_variation": 0'))
    report = evaluate(Oracle(), SPairPairs(str(layout), size=32), "oracle", progress=False).report
    assert {level: row["n_pairs"] for level, row in report["per_variation"]["viewpoint"].items()} == {"0": 1, "1": 2}
    assert report["per_variation"]["truncation"]["3"]["image"]["0.10"] == 100
    assert list(report["per_category"]) == ["cat"] and report["geometry_aware"]["n_points"] == 0
    assert report["convention"] == "canonical" and report["resize"] == "squash"


def test_categories_can_be_chosen(layout):
    assert len(SPairPairs(str(layout), categories=["cat"])) == 3
    with pytest.raises(ConfigError, match="did you mean 'cat'"):
        SPairPairs(str(layout), n_pairs=1, categories=["cta"])


def test_a_malformed_line_of_the_layout_is_named(layout):
    (layout / "Layout" / "large" / "test.txt").write_text(NAMES[0] + "\nnonsense\n")
    with pytest.raises(DataError, match="number-source-target:category in .*test.txt but got 'nonsense'"):
        SPairPairs(str(layout))


def test_labelling_takes_the_pairs_of_one_source_together(layout):
    assert [source for source, _ in SPairPairs(str(layout)).pairs] == ["cat/2008_a", "cat/2008_b", "cat/2008_a"]


def test_more_pairs_than_there_are_give_all_of_them_and_a_note(layout):
    pairs = SPairPairs(str(layout), n_pairs=4)
    assert len(pairs) == 3 and pairs.notes == ["split test has 3 pairs, 4 were asked for"]


def test_a_repeated_line_of_the_layout_is_ignored_and_named(layout):
    (layout / "Layout" / "large" / "test.txt").write_text("\n".join([*NAMES, NAMES[0]]))
    pairs = SPairPairs(str(layout))
    assert len(pairs) == 3 and list(pairs.ignored.values()) == ["repeats the pair cat/2008_a -> cat/2008_b"]


def test_a_key_that_comes_twice_in_an_annotation_is_an_error(layout):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[0]}.json"
    file.write_text(file.read_text().replace('"kps_ids"', '"src_kps": [[1, 1], [2, 2]], "kps_ids"'))
    with pytest.raises(DataError, match="the key 'src_kps' comes twice"):
        SPairPairs(str(layout))[0]


@pytest.mark.parametrize(
    ("key", "value"), [("category", "dog"), ("src_imname", "2008_c.jpg"), ("trg_imname", "../x.jpg")]
)
def test_an_annotation_of_other_photographs_than_its_name_says_is_an_error(layout, key, value):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[0]}.json"
    named = {"category": "cat", "src_imname": "2008_a.jpg", "trg_imname": "2008_b.jpg"}
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | named))
    assert SPairPairs(str(layout))[0].category == ["cat"]
    file.write_text(json.dumps(content | named | {key: value}))
    with pytest.raises(DataError, match=f"{key} is \"{value}\" where the name of the pair says '{named[key]}'"):
        SPairPairs(str(layout))[0]


def test_a_flag_that_is_none_of_the_benchmarks_is_an_error(layout):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[0]}.json"
    content = json.loads(file.read_text())
    for value in (10**30, -1, 1.5, True, None):
        file.write_text(json.dumps(content | {"truncation": value}))
        with pytest.raises(DataError, match="truncation is .* where a whole number from 0 to 3 is expected"):
            SPairPairs(str(layout))[0]


def test_categories_are_a_name_or_some(layout):
    assert len(SPairPairs(str(layout), categories="cat")) == 3  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="categories to name some of cat but got none; null takes all"):
        SPairPairs(str(layout), categories=[])
    for count in (1.5, True):
        with pytest.raises(DataError, match="n_pairs as a whole number, or null for all pairs"):
            SPairPairs(str(layout), n_pairs=count)  # type: ignore[arg-type]


def test_a_box_far_outside_its_image_is_an_error_and_one_pixel_is_none(layout):
    file = layout / "PairAnnotation" / "test" / f"{NAMES[0]}.json"
    text = file.read_text()
    file.write_text(text.replace("[1, 4, 41, 34]", "[1, 4, 51, 34]"))
    SPairPairs(str(layout))[0]
    file.write_text(text.replace("[1, 4, 41, 34]", "[1, 4, 5000, 34]"))
    with pytest.raises(DataError, match=r"2008_b.jpg inside its 50 x 48 px but .* says \[1, 4, 5000, 34\]"):
        SPairPairs(str(layout))[0]
    assert len(SPairPairs(str(layout)).problems()) == 1


def test_spair_u_asks_for_other_points_of_the_same_pairs(layout):
    with pytest.raises(DataError, match="ExtraPairAnnotation/test but found none"):
        SPairUPairs(str(layout))
    (layout / "ExtraPairAnnotation" / "test").mkdir(parents=True)
    for name in NAMES[:2]:
        text = (layout / "PairAnnotation" / "test" / f"{name}.json").read_text()
        changed = text.replace('"kps_ids": ["4", "17"]', '"kps_ids": ["0", "1"]')
        (layout / "ExtraPairAnnotation" / "test" / f"{name.replace(':', '_')}.json").write_text(changed)
    (layout / "ExtraImageAnnotation" / "cat").mkdir(parents=True)
    slots = {str(k): None for k in range(30)} | {"0": [33, 25], "9": [3, 4]}
    (layout / "ExtraImageAnnotation" / "cat" / "2008_b.json").write_text(json.dumps({"kps": slots}))
    with pytest.raises(ConfigError, match="valid names: test"):
        SPairUPairs(str(layout), split="val")
    pairs = SPairUPairs(str(layout), size=64)
    assert len(pairs) == 2 and pairs.ignored == {NAMES[2]: "SPair-U has no annotation of it"}
    assert pairs[0].kps_id[0].tolist() == [0, 1] and pairs[0].trg_all_id[0].tolist() == [0, 1, 9]
    assert SPairPairs(str(layout))[0].kps_id[0].tolist() == [4, 17] and not pairs.symmetric_groups
    report = evaluate(Oracle(), pairs, "oracle", progress=False).report
    assert report["pck"]["image"]["0.10"] == 100 and "geometry_aware" not in report
