"""The renderer against a slow, obvious one."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch

from distill.core.errors import ConfigError
from distill.data.datasets.shapes import images
from distill.data.datasets.shapes.images import SPLITS, CaptionedShapes
from distill.data.datasets.shapes.render import NOTHING, cast, render
from distill.data.datasets.shapes.scene import Scene, sample_scene


def march(scene: Scene, u: float, v: float) -> float:
    """Walks along one ray in small steps until it is inside some primitive; returns the depth."""
    depths = np.arange(-6, 6, 1 / 400)
    rays = np.stack([np.full_like(depths, u), np.full_like(depths, v), depths], axis=1)
    first = NOTHING
    for number in range(len(scene.half)):
        local = (rays - scene.centre[number]) @ scene.axes[number] / scene.half[number]
        inside = np.abs(local).max(1) <= 1 if scene.box_shaped[number] else (local**2).sum(1) <= 1
        if inside.any():
            first = min(first, float(depths[inside.argmax()]))
    return first


@pytest.mark.parametrize("index", [0, 2, 4])
def test_depths_agree_with_marching_along_rays(index: int):
    size = 7
    scene = sample_scene(0, index, "medium")
    depth = render([scene], size).depth[0].numpy()
    for row in range(size):
        for column in range(size):
            expected = march(scene, (column + 0.5) * 2 / size - 1, (row + 0.5) * 2 / size - 1)
            assert depth[row, column] == pytest.approx(expected, abs=4e-3)


def test_a_ball_lit_from_the_front_is_brightest_in_its_middle():
    scene = sample_scene(0, 0, "easy")
    ball = dataclasses.replace(
        scene,
        box_shaped=np.array([False]),
        centre=np.zeros((1, 3)),
        half=np.full((1, 3), 0.79),
        axes=np.eye(3)[None],
        colour=np.full((1, 3), 0.5),
        n_object=1,
        light=np.array([0.0, 0.0, -1.0]),
    )
    rendering = render([ball], 65)
    row = rendering.image[0, 0, 32, 8:57]
    assert row.argmax() == 24
    # A flat front shows ambient 0.45, diffuse 0.6 and specular 0.25 in full.
    assert float(row[24]) == pytest.approx(0.5 * 1.05 + 0.25, abs=1e-3)
    radius = (torch.arange(65) + 0.5) * 2 / 65 - 1
    inside = (radius[:, None] ** 2 + radius[None] ** 2) < 0.79**2
    assert torch.equal(rendering.mask[0], inside)


def test_a_batch_renders_like_its_scenes_alone():
    scenes = [sample_scene(3, i, "hard") for i in range(5)]
    together = render(scenes, 32)
    for i, scene in enumerate(scenes):
        alone = render([scene], 32)
        # CPUs round differently; half a grey level is 2e-3.
        torch.testing.assert_close(together.image[i], alone.image[0], atol=1e-4, rtol=0)
        assert torch.equal(together.mask[i], alone.mask[0])


def test_images_are_in_range_and_show_the_object_within_its_box():
    scenes = [sample_scene(0, i, "easy") for i in range(8)]
    image, _, mask = render(scenes, 64)
    assert image.shape == (8, 3, 64, 64) and image.min() >= 0 and image.max() <= 1
    for scene, seen in zip(scenes, mask, strict=True):
        rows, columns = seen.nonzero(as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, (scene.bbox + 1) * 32, atol=1.5)


def test_pretraining_pictures_start_where_an_interrupted_run_stopped():
    def first(start: int) -> dict:
        return next(iter(CaptionedShapes(32, 0, "medium", batch_size=4, start=start)))

    whole = next(iter(CaptionedShapes(32, 0, "medium", batch_size=8)))
    resumed = first(4)
    assert resumed["caption"] == whole["caption"][4:]
    torch.testing.assert_close(resumed["image"], whole["image"][4:], atol=1e-5, rtol=0)


def test_captions_are_told_without_their_pictures(monkeypatch):
    pictures = CaptionedShapes(32, 0, ["colourful", "hard"], batch_size=3, start=5)
    shown = [caption for batch in islice(pictures, 2) for caption in batch["caption"]]
    monkeypatch.setattr(images, "render", lambda *_: pytest.fail("something was rendered"))
    assert list(pictures.captions(5, 6)) == shown and len(set(shown)) > 1


def test_no_scene_is_in_two_splits():
    ranges = sorted(SPLITS.values(), key=lambda r: r.start)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:], strict=False))


def test_pictures_and_depths_do_not_depend_on_autocast():
    scenes, places = [sample_scene(0, index, "hard") for index in range(2)], torch.linspace(-0.9, 0.9, 9)
    expected, rays = render(scenes, 24), cast(scenes, places, places.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        found, again = render(scenes, 24), cast(scenes, places, places.flip(0))
    for before, after in zip((*expected, *rays), (*found, *again), strict=True):
        assert torch.equal(before, after)


def test_a_batch_of_pictures_has_one_at_least():
    with pytest.raises(ConfigError, match="batch_size, of pictures, as a whole number of at least 1 but got 0"):
        CaptionedShapes(32, 0, "easy", batch_size=0)
