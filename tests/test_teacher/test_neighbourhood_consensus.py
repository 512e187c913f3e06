import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap
from teacher import PromptOptimization
from teacher.neighbourhood_consensus import NeighbourhoodConsensus
from teacher.prompt_optimization import content_hashes

QUICK = {
    "steps": 3,
    "embeddings": 2,
    "crop_pool": 5,
    "crops": 2,
    "layers": ["up@1/4", "up@1/2"],
    "prompt_length": 7,
    "null_prompt": "zeros",
}


class Colours:
    """Stands in for the frozen model: an image's colours, exactly known, and the same from either side."""

    def __init__(self):
        self.asked = []

    def full_image_queries(self, image, key, mirrored=False):
        self.asked.append((key, mirrored))
        return [F.adaptive_avg_pool2d(image.flip(-1) if mirrored else image, side) for side in (16, 8)]


def blobs(places):
    """A picture (3, 64, 64) of a red, a green and a blue blob at places (3, 2), px."""
    return gaussian_heatmap(torch.tensor(places)[None], (64, 64), (64, 64), 6.0)[0]


HERE = [[20.0, 22.0], [40.0, 26.0], [30.0, 44.0]]
THERE = [[x + 4, y + 8] for x, y in HERE]


def found(maps):
    """Returns the highest cells' centres (N, 2), px of 64."""
    side = maps.shape[-1]
    best = maps.flatten(1).argmax(1)
    return torch.stack([best % side + 0.5, best // side + 0.5], -1) * 64 / side


@pytest.mark.parametrize("mirrored", [False, True])
def test_votes_peak_where_the_surroundings_went_and_say_whether_in_the_mirror(mirrored):
    target = blobs(THERE)
    expected = torch.tensor(THERE)
    if mirrored:
        target = target.flip(-1)
        expected[:, 0] = 64 - expected[:, 0]
    votes = NeighbourhoodConsensus(Colours(), 0.1, True, 8).vote(
        (blobs(HERE), "a"), (target, "b"), torch.tensor(HERE) / 64
    )
    assert votes.mirrored is mirrored
    assert (votes.maps > 0).all()
    assert (found(votes.maps) - expected).norm(dim=-1).max() < 5


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_second_look_says_the_same_where_left_and_right_are_alike(mirrored):
    target = blobs(THERE).flip(-1) if mirrored else blobs(THERE)
    neighbours = NeighbourhoodConsensus(Colours(), 0.1, True, 8)
    query = (blobs(HERE), "a"), (target, "b"), torch.tensor(HERE) / 64
    votes = neighbours.vote(*query)
    torch.testing.assert_close(neighbours.vote_again(*query, votes.mirrored), votes.maps, atol=1e-6, rtol=1e-4)


def test_a_second_look_asks_a_network_that_knows_left_from_right_anew():
    class Sided(Colours):
        def full_image_queries(self, image, key, mirrored=False):
            return [super().full_image_queries(image, key, mirrored)[0] * torch.linspace(0.5, 1.5, 16)]

    neighbours = NeighbourhoodConsensus(Sided(), 0.1, False, 8)
    query = (blobs(HERE), "a"), (blobs(THERE), "b"), torch.tensor(HERE) / 64
    first, second = neighbours.vote(*query).maps, neighbours.vote_again(*query, False)
    assert (found(second) - torch.tensor(THERE)).norm(dim=-1).max() < 5 and not torch.allclose(first, second, rtol=0.05)


def test_without_the_mirror_the_target_is_looked_at_as_it_is():
    scenes = Colours()
    votes = NeighbourhoodConsensus(scenes, 0.1, False, 8).vote(
        (blobs(HERE), "a"), (blobs(THERE).flip(-1), "b"), torch.tensor(HERE) / 64
    )
    assert not votes.mirrored and scenes.asked == [("a", False), ("b", False)]


def test_an_image_is_described_once():
    scenes = Colours()
    neighbours = NeighbourhoodConsensus(scenes, 0.1, True, 8)
    for target in ("b", "c", "b"):
        neighbours.vote((blobs(HERE), "a"), (blobs(THERE), target), torch.tensor(HERE) / 64)
    assert sorted(scenes.asked) == [("a", False), ("b", False), ("b", True), ("c", False), ("c", True)]


def test_queries_of_the_whole_are_those_that_the_untouched_unet_computes(sd1_folder, make_pairs):
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK, noise_draws=1, consensus=1.0)
    image = make_pairs(1, size=64).src_img[0]
    noisy, queries, unet = [], [], teacher.pipeline.unet
    handle = unet.conv_in.register_forward_pre_hook(lambda m, given: noisy.append(given[0]))
    ours = teacher.feature_cache.full_image_queries(image, "key")
    handle.remove()
    handles = [
        layer.attention.to_q.register_forward_hook(lambda m, i, out: queries.append(out))
        for layer in teacher.feature_cache.unet.layers
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
def test_an_answer_with_votes_does_not_depend_on_its_company(sd1_folder, make_pairs, queries):
    pair = make_pairs(3, size=64)
    settings = {**QUICK, "queries": queries, "consensus": 2.0}
    together = PromptOptimization(str(sd1_folder), device="cpu", **settings)(pair.src_img, pair.trg_img, pair.src_kps)
    alone = PromptOptimization(str(sd1_folder), device="cpu", chunk=1, **settings)(
        pair.src_img, pair.trg_img, pair.src_kps[:, 1:2]
    )
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap[:, 0], atol=1e-4, rtol=1e-3)
    assert ((together.confidence >= 0) & (together.confidence <= 1)).all()


def test_the_answer_is_the_prompts_map_times_the_power_of_the_votes(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK, consensus=2.0)
    answer = teacher(pair.src_img, pair.trg_img, pair.src_kps)
    source, target = ((images[0], content_hashes(images)[0]) for images in (pair.src_img, pair.trg_img))
    points = pair.src_kps[0] / 64
    votes = teacher.neighbourhood_consensus.vote(source, target, points)
    alone = teacher.find(*target, teacher.maker.prompts_for(*source, points), votes.mirrored).heatmap
    maps = F.interpolate(votes.maps[None], alone.shape[-2:], mode="bilinear")
    expected = F.adaptive_avg_pool2d(alone * maps**2, answer.heatmap.shape[-1])
    expected, got = (m / m.amax((-2, -1), keepdim=True) for m in (expected, answer.heatmap))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"consensus": -1.0}, {"consensus_reach": 0.0}])
def test_settings_that_cannot_work_are_refused(sd1_folder, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PromptOptimization(str(sd1_folder), **settings)
