"""Labels belong to original images: one store serves every size and both ways to resize."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from distill.__main__ import main
from distill.core.errors import LabelError
from distill.core.geometry import gaussian_heatmap
from distill.core.types import Matches
from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.shapes.pairs import ShapesPairs
from distill.data.grid_points import GridPoints
from distill.data.pairs import Query, collate_pairs, to_original
from distill.labels.audit import audit
from distill.labels.cached import Cached
from distill.labels.generate import coverage, label
from distill.labels.merge import merge
from distill.labels.records import Columns
from distill.labels.shard import open_shard
from distill.labels.store import LabelStore
from distill.matchers.oracle import Oracle

SIDES = {"a": (60, 40), "b": (50, 80), "c": (64, 64)}  # width, height


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Three photographs of different shapes with two points each; "a" is stored on its side."""
    root, random = tmp_path / "photographs", np.random.default_rng(0)
    (root / "thing").mkdir(parents=True)
    points = {}
    for name, (width, height) in SIDES.items():
        picture = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).resize((width * 4, height * 4))
        exif = Image.Exif()
        if name == "a":
            picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
        picture.save(root / "thing" / f"{name}.jpg", quality=95, exif=exif)
        places = random.uniform(0.1, 0.9, (2, 2)) * (width * 4, height * 4)
        points[f"thing/{name}.jpg"] = {"points": dict(zip(["eye", "nose"], places.tolist(), strict=True))}
    rows = ["image,part,x,y"]
    rows += [f"{n},{part},{x},{y}" for n, p in points.items() for part, (x, y) in p["points"].items()]
    (root / "points.csv").write_text("\n".join(rows))
    return root


class Sized(Oracle):
    """An oracle that says at which size it wants images, and keeps what it is given."""

    def __init__(self, size: int) -> None:
        super().__init__(heatmap_side=8)
        self.size, self.given = size, []

    def match_pairs(self, pairs):
        self.given.append(pairs)
        return super().match_pairs(pairs)


def relative(pairs, points):
    x0, y0, x1, y1 = pairs.trg_content[:, None].unbind(-1)
    return (points - torch.stack([x0, y0], -1)) / torch.stack([x1 - x0, y1 - y0], -1)


def test_labels_of_scenes_serve_every_size(tmp_path):
    label(Cached(tmp_path, Oracle(heatmap_side=8)), ShapesPairs("val", 6), progress=False)
    at = {}
    for size in (64, 128, 224):
        pairs = ShapesPairs("val", 6, size=size)
        batch = collate_pairs([pairs[n] for n in range(6)])
        labels, found = LabelStore(tmp_path).lookup(batch)
        assert torch.equal(found, batch.kps_mask)
        at[size] = labels.trg_kps[found] / size, labels.confidence[found], labels.heatmap[found]
        assert label(Cached(tmp_path, Oracle(heatmap_side=8)), pairs, progress=False) == 0
    for size in (64, 224):
        torch.testing.assert_close(at[size], at[128], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "resize"), [(64, "squash"), (64, "letterbox"), (96, "letterbox"), (448, "squash")])
def test_labels_of_photographs_serve_every_size_squashed_and_letterboxed(tmp_path, photographs, size, resize):
    teacher = Sized(100)
    made = label(Cached(tmp_path, teacher), FolderPairs(photographs, size=32), progress=False)
    assert made == 12 and [len(given.src_id) for given in teacher.given] == [1, 2, 3]  # more and more together
    pairs = FolderPairs(photographs, size=size, resize=resize)
    batch = collate_pairs([pairs[n] for n in range(6)])
    labels, found = LabelStore(tmp_path).lookup(batch)
    assert found.all() and label(Cached(tmp_path, teacher), pairs, progress=False) == 0
    for number in range(6):
        truth = pairs.pair_annotation(number).trg.points
        mapped = to_original(labels.trg_kps, batch)[number].numpy()
        np.testing.assert_allclose(mapped, truth, atol=1e-3)
    # The maximum of the heatmap lies at the label, and nothing in the padding.
    grid = gaussian_heatmap(labels.trg_kps, (8, 8), (size, size), 0.2 * size)
    peak, near = (heatmap.flatten(2).argmax(-1) for heatmap in (labels.heatmap, grid))
    cells = torch.stack([peak % 8 - near % 8, peak // 8 - near // 8]).abs()
    assert cells.max() <= 1
    x0, y0, x1, y1 = (batch.trg_content / size * 8).unbind(1)
    centres = torch.arange(8) + 0.5
    outside_x = (centres < x0[:, None]) | (centres > x1[:, None])
    outside_y = (centres < y0[:, None]) | (centres > y1[:, None])
    padding = (outside_y[:, :, None] | outside_x[:, None])[:, None].expand_as(labels.heatmap)
    assert not labels.heatmap[padding].any() and (resize == "squash") == (not padding.any())


def test_a_teacher_of_letterboxed_images_is_given_the_originals_letterboxed(tmp_path, photographs):
    teacher = Sized(100)
    teacher.resize = "letterbox"
    pairs = FolderPairs(photographs, size=32)
    assert label(Cached(tmp_path, teacher), pairs, progress=False) == 12
    for given in teacher.given:
        widths, heights = torch.tensor([SIDES[Path(name).stem] for name in given.src_id]).unbind(-1)
        x0, y0, x1, y1 = given.src_content.unbind(-1)
        assert torch.equal(torch.maximum(x1 - x0, y1 - y0), torch.full_like(x0, 100.0))
        torch.testing.assert_close((x1 - x0) / (y1 - y0), widths / heights, rtol=0.02, atol=0)
        for image, (left, top, right, bottom) in zip(given.src_img, given.src_content.int().tolist(), strict=True):
            inside = torch.zeros(100, 100, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert (image[:, ~inside] == 124 / 255).all() and image[:, inside].std() > 0.05
    batch = collate_pairs([pairs[n] for n in range(6)])
    labels, found = LabelStore(tmp_path).lookup(batch)
    assert found.all()
    for number in range(6):
        mapped = to_original(labels.trg_kps, batch)[number].numpy()
        np.testing.assert_allclose(mapped, pairs.pair_annotation(number).trg.points, atol=1e-3)


def test_labels_made_of_letterboxed_images_are_kept_relative_to_the_photograph(tmp_path, photographs):
    boxed = FolderPairs(photographs, size=128, resize="letterbox")
    cached = Cached(tmp_path, Oracle(heatmap_side=16, sigma=0.1))
    batch = collate_pairs([boxed[n] for n in range(6)])
    answer = cached.match_pairs(batch)
    torch.testing.assert_close(answer.trg_kps, batch.trg_kps, rtol=0, atol=1e-4)
    plain = collate_pairs([FolderPairs(photographs, size=128)[n] for n in range(6)])
    squashed = cached.match_pairs(plain)
    torch.testing.assert_close(relative(plain, squashed.trg_kps), relative(batch, answer.trg_kps), rtol=0, atol=1e-5)
    nearest = gaussian_heatmap(squashed.trg_kps, (16, 16), (128, 128), 10.0).flatten(2).argmax(-1)
    peak = squashed.heatmap.flatten(2).argmax(-1)
    assert max((peak % 16 - nearest % 16).abs().max(), (peak // 16 - nearest // 16).abs().max()) <= 1


def test_the_teacher_is_given_the_originals_at_its_own_size(tmp_path, photographs):
    teacher = Sized(200)
    pairs = FolderPairs(photographs, size=32, resize="letterbox")
    label(Cached(tmp_path, teacher), pairs, progress=False, batch_size=1)
    given = {pair.src_id[0]: pair for pair in teacher.given}
    pair = given["thing/b.jpg"]
    with Image.open(photographs / "thing" / "b.jpg") as picture:
        expected = np.asarray(picture.convert("RGB").resize((200, 200), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(pair.src_img[0].permute(1, 2, 0).numpy() * 255, expected, atol=1e-3)
    assert pair.src_content.tolist() == pair.trg_content.tolist() == [[0, 0, 200, 200]]
    number = next(n for n in range(6) if pairs.pairs[n][0] == "thing/b.jpg")
    known = pairs.pair_annotation(number)
    np.testing.assert_allclose(pair.src_kps[0], known.src.points / (200, 320) * 200, atol=1e-3)


def test_a_scene_is_rendered_for_the_teacher_and_its_own_size_is_taken_as_it_is(tmp_path):
    teacher = Sized(128)
    label(Cached(tmp_path / "a", teacher), ShapesPairs("val", 3, size=48), progress=False)
    reference = Sized(128)
    label(Cached(tmp_path / "b", reference), ShapesPairs("val", 3, size=128), progress=False)
    for one, other in zip(teacher.given, reference.given, strict=True):
        assert torch.equal(one.src_img, other.src_img) and one.src_hash == other.src_hash
        assert one.src_hash[0].endswith("@128")
        torch.testing.assert_close(one.src_kps, other.src_kps, rtol=0, atol=1e-4)
    batch = ShapesPairs("val", 3, size=64)[0]
    for one, other in zip(*(LabelStore(tmp_path / n).lookup(batch)[0] for n in "ab"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_points_on_a_grid_are_the_same_at_every_size(tmp_path, photographs):
    made = label(Cached(tmp_path, Flat()), GridPoints(FolderPairs(photographs, size=32), side=2), progress=False)
    assert made == 24
    for size, resize in ((96, "letterbox"), (224, "squash")):
        grid = GridPoints(FolderPairs(photographs, size=size, resize=resize), side=2)
        assert label(Cached(tmp_path, Flat()), grid, progress=False) == 0


def test_points_on_a_grid_are_known_without_decoding_a_photograph(tmp_path, photographs, monkeypatch):
    pairs = FolderPairs(photographs, size=32)
    for within in ("image", "box"):
        grid = GridPoints(pairs, side=5, within=within)
        label(Cached(tmp_path / within, Flat()), grid, progress=False)
        expected, found = Query.of(grid[0]), grid.query(0)
        assert (expected.src, expected.trg) == (found.src, found.trg)
        np.testing.assert_allclose(found.points, expected.points, atol=1e-6)
    monkeypatch.setattr(FolderPairs, "image", lambda *_: pytest.fail("decoded"))
    for within in ("image", "box"):
        grid = GridPoints(FolderPairs(photographs, size=64), side=5, within=within)
        assert label(Cached(tmp_path / within, Flat()), grid, progress=False) == 0


class Flat:
    """Answers with the middle."""

    def fingerprint(self):
        return {"method": "flat"}

    def match_pairs(self, pairs):
        assert torch.isfinite(pairs.src_kps).all()
        middle = torch.full_like(pairs.src_kps, pairs.trg_img.shape[-1] / 2)
        return Matches(middle, torch.ones_like(middle[..., 0]), middle.new_ones(*middle.shape[:2], 4, 4))


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_what_is_asked_for_is_known_without_decoding(photographs, resize):
    pairs = FolderPairs(photographs, size=64, resize=resize)
    for number in range(6):
        quick, decoded = pairs.query(number), Query.of(pairs[number])
        assert (quick.src, quick.trg) == (decoded.src, decoded.trg)
        np.testing.assert_allclose(quick.points, decoded.points, atol=1e-6)


def test_finished_work_is_seen_in_the_index_alone(tmp_path, photographs, monkeypatch):
    pairs = FolderPairs(photographs, size=64)
    label(Cached(tmp_path, Oracle(heatmap_side=4), flush_seconds=0), pairs, progress=False)

    def never(*_):
        raise AssertionError("read")

    monkeypatch.setattr("distill.data.photographs.decode", never)
    monkeypatch.setattr("distill.labels.folder.open_shard", never)
    fresh = FolderPairs(photographs, size=64)
    assert label(Cached(tmp_path, Oracle(heatmap_side=4)), fresh, progress=False) == 0
    assert coverage(LabelStore(tmp_path), fresh) == (12, 12)


def test_a_label_is_verified_when_it_is_first_read_and_not_again(tmp_path, few, monkeypatch):
    label(Cached(tmp_path, Oracle(heatmap_side=4)), few, progress=False)
    batch, store, verified = collate_pairs(few.items), LabelStore(tmp_path), []
    checksums = Columns.checksums
    monkeypatch.setattr(Columns, "checksums", lambda self: verified.append(len(self)) or checksums(self))
    first, again = store.lookup(batch)[0], store.lookup(batch)[0]
    assert sum(verified) == 10 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    LabelStore(tmp_path).lookup(batch)
    assert sum(verified) == 20


def test_changed_bytes_are_another_photograph(tmp_path, photographs):
    label(Cached(tmp_path, Oracle(heatmap_side=4)), FolderPairs(photographs, size=64), progress=False)
    Image.new("RGB", (256, 256), "red").save(photographs / "thing" / "c.jpg")
    assert coverage(LabelStore(tmp_path), FolderPairs(photographs, size=64)) == (4, 12)


def by_pixels(folder: Path, store: Path, named: str = "{}@128", side: int = 128) -> Path:
    """Writes the labels of ``store`` as the format before did: points in px, images named by their resized content."""
    (path,) = store.glob("[!.]*.safetensors")
    new = open_shard(path)
    images = [[named.format(image.hash), image.name, [side, side]] for image in new.columns.images]
    columns = {
        "src": new.columns.src,
        "trg": new.columns.trg,
        "point": new.columns.src_point * np.float32(side),
        "trg_kps": new.columns.trg_point * np.float32(side),
        "confidence": new.columns.confidence,
        "heatmap": new.columns.heatmap,
    }
    sums = []
    for row in range(len(new.columns)):
        total = zlib.crc32(images[columns["src"][row]][0].encode())
        total = zlib.crc32(images[columns["trg"][row]][0].encode(), total)
        for name in ("point", "trg_kps", "confidence", "heatmap"):
            total = zlib.crc32(np.ascontiguousarray(columns[name][row]).tobytes(), total)
        sums.append(total)
    about = {"format": "distill-labels-2", "fingerprint": new.fingerprint, "images": images}
    folder.mkdir()
    columns["checksum"] = np.array(sums, np.uint32)
    save_file(
        {name: np.ascontiguousarray(c) for name, c in columns.items()},
        folder / "old.safetensors",
        {"distill": json.dumps(about)},
    )
    return folder


def test_labels_of_scenes_in_the_format_before_are_read_and_merging_converts_them(tmp_path):
    new, pairs = tmp_path / "new", ShapesPairs("val", 4)
    label(Cached(new, Oracle(heatmap_side=8)), pairs, progress=False)
    old = by_pixels(tmp_path / "old", new)
    batch = collate_pairs([pairs[n] for n in range(4)])
    (expected, _), (labels, found) = LabelStore(new).lookup(batch), LabelStore(old).lookup(batch)
    assert torch.equal(found, batch.kps_mask)
    assert all(torch.equal(one, other) for one, other in zip(labels, expected, strict=True))
    assert merge([old], tmp_path / "merged") == int(batch.kps_mask.sum())
    LabelStore(tmp_path / "merged").compact()
    files = {folder: [p.name for p in (tmp_path / folder).glob("[!.]*.safetensors")] for folder in ("new", "merged")}
    assert files["new"] == files["merged"] and audit(tmp_path / "merged").problems == []


def test_a_damaged_label_in_the_format_before_is_found(tmp_path):
    label(Cached(tmp_path / "new", Oracle(heatmap_side=8)), ShapesPairs("val", 4), progress=False)
    old = by_pixels(tmp_path / "old", tmp_path / "new")
    content = bytearray((old / "old.safetensors").read_bytes())
    content[-3] ^= 4
    (old / "old.safetensors").write_bytes(content)
    with pytest.raises(LabelError, match="1 are damaged"):
        LabelStore(old).lookup(collate_pairs([ShapesPairs("val", 4)[n] for n in range(4)]))


def test_labels_of_photographs_in_the_format_before_are_refused_in_words(tmp_path, photographs):
    label(Cached(tmp_path / "new", Oracle(heatmap_side=8)), FolderPairs(photographs, size=64), progress=False)
    old = by_pixels(tmp_path / "old", tmp_path / "new", "{}")
    with pytest.raises(LabelError, match="names photographs by their resized content; make them again"):
        LabelStore(old)


def test_labels_of_a_teacher_without_a_size_are_of_the_size_that_it_was_shown(
    photographs, tmp_path, capsys, monkeypatch
):
    """Its answers depend on that size; those of a teacher with a size do not, nor does the annotation."""
    monkeypatch.setattr(Oracle, "depends_on_images", True)
    data = ["data=folder", f"data.root={photographs}", "data.points=" + str(photographs / "points.csv"), "device=cpu"]
    small = ["splits=[train]", "train.n_pairs=2", f"labels.dir={tmp_path}/labels"]
    settings = ["label", "teacher=oracle", *data, *small]
    assert main([*settings, "data.size=64"]) == 0
    assert main([*settings, "data.size=64"]) == 0
    assert "0 points labelled" in capsys.readouterr().out
    for other in (["data.size=96"], ["data.size=64", "data.resize=letterbox"]):
        assert main([*settings, *other]) == 2
        assert f"images.{other[-1].partition('=')[0].removeprefix('data.')}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*settings, "data.size=64", f"labels.dir={tmp_path}/truth"]) == 0
    assert main([*settings, "data.size=96", f"labels.dir={tmp_path}/truth"]) == 0
    assert "0 points labelled" in capsys.readouterr().out
