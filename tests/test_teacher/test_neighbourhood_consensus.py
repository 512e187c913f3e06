import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap
from teacher import PromptOptimization
from teacher.feature_cache import KeyedImage, _descriptors
from teacher.neighbourhood_consensus import consensus_maps, flipped_consensus_maps
from teacher.prompt_optimization import content_hashes
from teacher.settings import Settings

QUICK = {
    "steps": 3,
    "embeddings": 2,
    "crop_pool": 5,
    "crops": 2,
    "layers": ["up@1/4", "up@1/2"],
    "prompt_length": 7,
    "null_prompt": "zeros",
    "queries": "conditioned",
    "noise_draws": None,
    "timestep": 200,
}


class Colours:
    """Stands in for the frozen model: an image's colours, exactly known, and the same from either side."""

    def __init__(self, flip=True):
        self.asked = []
        self.settings = Settings(consensus=1.0, consensus_sigma=0.1, consensus_flip=flip)

    def descriptors(self, image):
        self.asked.append(image.key)
        return _descriptors(self.full_image_queries(image))

    def full_image_queries(self, image):
        return [F.adaptive_avg_pool2d(image.pixels, side) for side in (16, 8)]


def blobs(places):
    """A picture (3, 64, 64) of a red, a green and a blue blob at places (3, 2), px."""
    return gaussian_heatmap(torch.tensor(places)[None], (64, 64), (64, 64), 6.0)[0]


SRC = [[20.0, 22.0], [40.0, 26.0], [30.0, 44.0]]
TRG = [[x + 4, y + 8] for x, y in SRC]


def found(maps):
    """Returns the highest cells' centres (N, 2), px of 64."""
    side = maps.shape[-1]
    best = maps.flatten(1).argmax(1)
    return torch.stack([best % side + 0.5, best // side + 0.5], -1) * 64 / side


def query(target):
    return KeyedImage(blobs(SRC), "a"), KeyedImage(target, "b"), torch.tensor(SRC) / 64


@pytest.mark.parametrize("flipped", [False, True])
def test_consensus_peaks_where_the_surroundings_went_and_says_whether_in_the_flipped_image(flipped):
    target = blobs(TRG)
    expected = torch.tensor(TRG)
    if flipped:
        target = target.flip(-1)
        expected[:, 0] = 64 - expected[:, 0]
    consensus = consensus_maps(Colours(), *query(target))
    assert consensus.flipped is flipped
    assert (consensus.maps > 0).all()
    assert (found(consensus.maps[0]) - expected).norm(dim=-1).max() < 5


@pytest.mark.parametrize("flipped", [False, True])
def test_flipping_both_images_changes_nothing_where_left_and_right_are_alike(flipped):
    arguments = query(blobs(TRG).flip(-1) if flipped else blobs(TRG))
    consensus = consensus_maps(Colours(), *arguments)
    again = flipped_consensus_maps(Colours(), *arguments, consensus.flipped)
    torch.testing.assert_close(again, consensus.maps, atol=1e-6, rtol=1e-4)


def test_flipping_both_images_asks_a_network_that_knows_left_from_right_anew():
    class Sided(Colours):
        def full_image_queries(self, image):
            return [super().full_image_queries(image)[0] * torch.linspace(0.5, 1.5, 16)]

    features, arguments = Sided(flip=False), query(blobs(TRG))
    first, second = consensus_maps(features, *arguments).maps, flipped_consensus_maps(features, *arguments, False)
    near = (found(second[0]) - torch.tensor(TRG)).norm(dim=-1).max() < 5
    assert near and not torch.allclose(first, second, rtol=0.05)


def test_without_the_flip_the_target_is_compared_as_it_is():
    features = Colours(flip=False)
    assert not consensus_maps(features, *query(blobs(TRG).flip(-1))).flipped and features.asked == ["a", "b"]


def test_an_image_is_described_once(sd1_folder, make_pairs):
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK | {"noise_draws": 1, "consensus": 1.0})
    image, encoded = KeyedImage(make_pairs(1, size=64).src_img[0], "a"), []
    handle = teacher.pipeline.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    first, again, flipped = (teacher.features.descriptors(i) for i in (image, image, image.flipped()))
    handle.remove()
    assert again is first and len(encoded) == 2 and not torch.equal(flipped, first)


def test_queries_of_the_whole_are_those_that_the_untouched_unet_computes(sd1_folder, make_pairs):
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK | {"noise_draws": 1, "consensus": 1.0})
    image = make_pairs(1, size=64).src_img[0]
    noisy, queries, unet = [], [], teacher.pipeline.unet
    handle = unet.conv_in.register_forward_pre_hook(lambda m, given: noisy.append(given[0]))
    ours = teacher.features.full_image_queries(KeyedImage(image, "key"))
    handle.remove()
    handles = [
        layer.attention.to_q.register_forward_hook(lambda m, i, out: queries.append(out))
        for layer in teacher.features.model.unet.layers
    ]
    with torch.no_grad():
        unet.set_attn_processor(AttnProcessor2_0())
        unet(noisy[0], teacher.settings.timestep, torch.zeros(1, 7, 24))
    for handle in handles:
        handle.remove()
    assert len(ours) == len(queries)
    for mine, theirs in zip(ours, queries, strict=True):
        torch.testing.assert_close(mine.flatten(1), theirs[0].T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_an_answer_with_consensus_does_not_depend_on_its_company(sd1_folder, make_pairs, queries):
    pair = make_pairs(3, size=64)
    settings = {**QUICK, "queries": queries, "consensus": 2.0}
    together = PromptOptimization(str(sd1_folder), device="cpu", **settings)(pair.src_img, pair.trg_img, pair.src_kps)
    alone = PromptOptimization(str(sd1_folder), device="cpu", batch_size=1, **settings)(
        pair.src_img, pair.trg_img, pair.src_kps[:, 1:2]
    )
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap[:, 0], atol=1e-4, rtol=1e-3)
    assert ((together.confidence >= 0) & (together.confidence <= 1)).all()


def test_the_answer_is_the_prompts_map_times_the_power_of_the_consensus(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK, consensus=2.0)
    answer = teacher(pair.src_img, pair.trg_img, pair.src_kps)
    src, trg = (KeyedImage(images[0], content_hashes(images)[0]) for images in (pair.src_img, pair.trg_img))
    points = pair.src_kps[0] / 64
    consensus = consensus_maps(teacher.features, src, trg, points)
    alone = teacher.localize(trg, teacher.prompts.at(src, points), consensus.flipped).heatmap
    maps = F.interpolate(consensus.maps, alone.shape[-2:], mode="bilinear")
    expected = F.adaptive_avg_pool2d(alone * maps**2, answer.heatmap.shape[-1])
    expected, got = (m / m.amax((-2, -1), keepdim=True) for m in (expected, answer.heatmap))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"consensus": -1.0}, {"consensus_sigma": 0.0}])
def test_settings_that_cannot_work_are_refused(sd1_folder, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PromptOptimization(str(sd1_folder), **settings)
