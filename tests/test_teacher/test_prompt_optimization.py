import json
import shutil
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from distill.core.errors import ConfigError, DataError, WeightsError
from distill.core.protocols import Fingerprinted, PairMatcher
from distill.data.pairs import collate_pairs
from teacher import PromptOptimization, frozen_model, prompt_optimization, source_image
from teacher.crop_attention import CropAttention
from teacher.crop_sampling import CropPlan
from teacher.feature_cache import KeyedImage
from teacher.prompt_optimization import PointQuery
from teacher.settings import Settings
from teacher.source_image import attention_loss, random_prompts

QUICK = {"steps": 3, "embeddings": 2, "crop_pool": 5, "crops": 2, "layers": ["up@1/4", "up@1/2"], "prompt_length": 7}
QUICK |= {"queries": "conditioned", "noise_draws": None, "consensus": 0.0, "timestep": 200}


def build(folder, **settings) -> PromptOptimization:
    return PromptOptimization(str(folder), device="cpu", **{**QUICK, **settings})


def test_it_satisfies_the_contracts(sd1_folder, make_pairs):
    teacher = build(sd1_folder)
    assert isinstance(teacher, PairMatcher) and isinstance(teacher, Fingerprinted)
    pair = make_pairs(3, size=64)
    answer = teacher(pair.src_img, pair.trg_img, pair.src_kps)
    assert answer.trg_kps.shape == (1, 3, 2) and answer.heatmap.shape == (1, 3, 4, 4)
    assert ((answer.trg_kps >= 0) & (answer.trg_kps <= 64)).all() and (answer.heatmap >= 0).all()
    assert ((answer.confidence >= 0) & (answer.confidence <= 1)).all()


def test_a_heatmap_keeps_its_precision_in_half_floats(sd1_folder, make_pairs):
    """A strong consensus makes the products small, below what half floats can hold."""
    pair = make_pairs(3, size=64)
    heatmap = build(sd1_folder, consensus=30.0, null_prompt="zeros").match_pairs(pair).heatmap
    torch.testing.assert_close(heatmap.amax((-2, -1)), torch.ones(1, 3))
    torch.testing.assert_close(heatmap.half().float(), heatmap, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_optimising_lowers_the_loss_on_the_source(sd1_folder, make_pairs, queries):
    teacher = build(sd1_folder, queries=queries, null_prompt="zeros", steps=25, lr=0.05)
    pair = make_pairs(2, size=64)
    points = pair.src_kps[0] / 64
    image = KeyedImage(pair.src_img[0], "key")
    attention = CropAttention(teacher.features, [image] * 4, 200)
    starts = random_prompts(points, "key", (7, 24), teacher.settings).flatten(0, 1)
    prompts = teacher.prompts.at(image, points).embedding.flatten(0, 1)
    rows = points.repeat_interleave(2, 0)[:, None]
    whole = attention.sampler([("any",)] * 4, 1, replace=False).numbered(0)
    shown, draw = attention.prepare(CropPlan.of([whole]), first=99), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        before, after = (
            attention_loss(shown.attend(p, draw), rows, teacher.settings, 16).mean() for p in (starts, prompts)
        )
    assert after < before


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_an_answer_does_not_depend_on_its_company_nor_on_the_batch_size(sd1_folder, make_pairs, queries):
    pair = make_pairs(3, size=64)
    settings = {"queries": queries, "null_prompt": "zeros"}
    together = build(sd1_folder, **settings)(pair.src_img, pair.trg_img, pair.src_kps)
    alone = build(sd1_folder, batch_size=1, **settings)(pair.src_img, pair.trg_img, pair.src_kps[:, 1:2])
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap[:, 0], atol=1e-4, rtol=1e-3)


def test_the_prompts_of_a_point_serve_all_targets(sd1_folder, make_pairs, monkeypatch):
    teacher, pair = build(sd1_folder), make_pairs(2, size=64)
    calls = []
    optimise = teacher.prompts._optimise
    monkeypatch.setattr(teacher.prompts, "_optimise", lambda groups: calls.append(len(groups)) or optimise(groups))
    teacher.match_pairs(pair)
    teacher.match_pairs(pair._replace(trg_img=pair.src_img, trg_hash=["other"]))
    assert calls == [2]


def test_the_fingerprint_names_settings_and_weights(sd1_folder, tmp_path):
    first = build(sd1_folder).fingerprint()
    assert first["steps"] == "3" and first == build(sd1_folder).fingerprint()
    assert build(sd1_folder, lr=0.1).fingerprint()["lr"] != first["lr"]
    other = tmp_path / "other"
    shutil.copytree(sd1_folder, other)
    (file,) = (other / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert build(other).fingerprint()["weights"] != first["weights"]


def test_it_can_be_asked_where_gradients_are_off(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    expected = build(sd1_folder).match_pairs(pair)
    with torch.inference_mode():
        inside = build(sd1_folder).match_pairs(pair)
    with torch.no_grad():
        without = build(sd1_folder).match_pairs(pair)
    torch.testing.assert_close(inside.heatmap, expected.heatmap)
    torch.testing.assert_close(without.heatmap, expected.heatmap)


def test_a_pair_without_points_is_passed_over(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    empty = pair._replace(kps_mask=torch.zeros(1, 2, dtype=torch.bool))
    assert not build(sd1_folder).match_pairs(empty).trg_kps.any()
    batch = collate_pairs([empty, pair])
    assert build(sd1_folder).match_pairs(batch).heatmap[1].any()


def test_padding_is_left_alone(sd1_folder, make_pairs):
    pair = make_pairs(3, size=64)
    mask = torch.tensor([[True, False, True]])
    answer = build(sd1_folder).match_pairs(pair._replace(kps_mask=mask))
    assert not answer.trg_kps[0, 1].any() and answer.heatmap[0, 2].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stesp": 3}, "did you mean 'steps'"),
        ({"queries": "free"}, "queries to be conditioned or frozen"),
        ({"steps": 0, "lr": -1.0}, r"steps to be at least 1 \(got 0\); lr to be above 0 \(got -1.0\)"),
        ({"crops": 9}, "crops to be at most crop_pool"),
        ({"batch_size": 0}, "batch_size to be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_named_before_weights_are_read(sd1_folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(sd1_folder, **settings)


def test_layers_that_are_not_there_are_named(sd1_folder, make_pairs):
    pair = make_pairs(1, size=64)
    with pytest.raises(ConfigError, match=r"there are: down@1/1"):
        build(sd1_folder, layers=["up@1/32"])(pair.src_img, pair.trg_img, pair.src_kps)


def test_a_folder_that_is_no_whole_pipeline_is_refused(sd1_folder, tmp_path):
    with pytest.raises(WeightsError, match="no folder"):
        build(tmp_path / "none here")
    broken = tmp_path / "broken"
    shutil.copytree(sd1_folder, broken)
    (file,) = (broken / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        build(broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(WeightsError, match=r"lacks vae/config.json.*vae/\*.safetensors"):
        build(broken)


def test_a_prompt_length_that_nobody_knows_is_asked_for(sd1_folder, make_pairs):
    pair = make_pairs(1, size=64)
    with pytest.raises(ConfigError, match="prompt_length"):
        build(sd1_folder, prompt_length=None)(pair.src_img, pair.trg_img, pair.src_kps)


def test_bad_images_and_points_are_refused(sd1_folder, make_pairs):
    pair, teacher = make_pairs(1, size=64), build(sd1_folder)
    with pytest.raises(DataError, match="NaN"):
        teacher(pair.src_img * float("nan"), pair.trg_img, pair.src_kps)
    with pytest.raises(DataError, match="inside its image"):
        teacher(pair.src_img, pair.trg_img, pair.src_kps + 64)


def test_starts_depend_on_seed_image_and_point_only():
    points = torch.tensor([[0.2, 0.3], [0.4, 0.5]])
    settings = Settings(embeddings=2)
    both, one = random_prompts(points, "a", (3, 4), settings), random_prompts(points[1:], "a", (3, 4), settings)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])
    assert not torch.equal(one, random_prompts(points[1:], "b", (3, 4), settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 72}, "multiple of 64"),  # the UNet cannot halve it
        ({"prompt_length": -5}, "whole number from 2 to 9999 but got -5"),
        ({"timestep": 1000}, "timestep to be below 1000"),
        ({"locate_timestep": 1200}, "timestep to be below 1000"),
    ],
)
def test_amounts_that_do_not_suit_the_model_are_refused_when_it_is_built(sd1_folder, settings, message):
    assert json.loads((sd1_folder / "unet" / "config.json").read_text())["sample_size"] == 8
    with pytest.raises(ConfigError, match=message):
        build(sd1_folder, **settings)


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_an_answer_does_not_depend_on_autocast_around_it(sd1_folder, make_pairs, queries):
    pair, settings = make_pairs(2, size=64), {"queries": queries, "null_prompt": "zeros", "consensus": 2.0}
    expected = build(sd1_folder, **settings).match_pairs(pair)
    with torch.autocast("cpu", torch.bfloat16):
        answer = build(sd1_folder, **settings).match_pairs(pair)
    torch.testing.assert_close(answer.trg_kps, expected.trg_kps, rtol=0, atol=1e-4)
    torch.testing.assert_close(answer.heatmap, expected.heatmap)


def test_nothing_is_kept_where_the_caches_are_of_size_zero_and_answers_are_the_same(sd1_folder, make_pairs):
    pair, settings = make_pairs(2, size=64), {"queries": "frozen", "null_prompt": "zeros", "consensus": 2.0}
    kept = build(sd1_folder, **settings)
    bare = build(sd1_folder, prompt_cache_size=0.0, feature_cache_size=0.0, **settings)
    torch.testing.assert_close(bare.match_pairs(pair).heatmap, kept.match_pairs(pair).heatmap, rtol=1e-4, atol=1e-5)
    assert not bare.features.cache and not bare.prompts.cache and kept.features.cache and kept.prompts.cache


def test_a_target_with_frozen_queries_is_encoded_at_the_crops_that_are_shown_only(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    teacher = build(sd1_folder, queries="frozen", null_prompt="zeros", crops=4, noise_draws=4)
    teacher.match_pairs(pair)
    shown = [name[-2:] for name in teacher.features.cache if name[0] == "queries" and name[1] == pair.trg_hash[0]]
    assert sorted(shown) == [(0, 1), (1, 2), (2, 3), (3, 4)]  # number of the noise, corner


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class HostCalls(TorchFunctionMode):
    """Counts what brings values to the host, which is no operation where the tensor is on the CPU already."""

    NAMES = ("cpu", "cuda", "tolist", "numpy", "item", "__bool__", "__float__", "__int__", "__index__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.counts[func.__name__] += func.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


def test_host_calls_are_seen_on_a_cpu_as_well():
    with HostCalls() as calls:
        values = torch.arange(3.0)
        assert values.cpu().tolist() == [0, 1, 2] and bool(values.sum() > 2) and values.numpy().max() == 2
    assert +calls.counts == {"cpu": 1, "tolist": 1, "__bool__": 1, "numpy": 1}


STEP_COUNTS = {  # draws of random numbers, and what copies between host and device or waits for the device
    *("rand", "randn", "uniform_", "normal_", "bernoulli_"),
    *("_local_scalar_dense", "item", "nonzero", "_unique2", "unique_dim", "masked_select", "lift_fresh", "_to_copy"),
}
EVERY_OPTION = [
    {"queries": "frozen", "noise_draws": 2},
    {"queries": "frozen", "crops_per_step": 2, "points_per_prompt": 2},
    {"queries": "conditioned", "noise_draws": 2},
    {"queries": "conditioned", "noise_draws": None},
    {"queries": "conditioned", "crop_source": "fresh", "crop_edges": "pixels"},
]


@pytest.mark.parametrize("settings", EVERY_OPTION, ids=str)
def test_a_step_draws_nothing_and_copies_nothing_between_host_and_device(sd1_folder, make_pairs, settings, monkeypatch):
    pairs, steps = collate_pairs([make_pairs(3, size=64), make_pairs(2, size=64, seed=1)]), []
    to_host: Counter[str] = Counter()
    teacher = build(sd1_folder, null_prompt="zeros", steps=5, **settings)
    step = source_image.Descent.step

    def counted(self):
        with HostCalls() as calls, Operations() as operations:
            loss = step(self)
        steps.append(operations.counts)
        to_host.update(calls.counts)
        return loss

    monkeypatch.setattr(source_image.Descent, "step", counted)
    teacher.match_pairs(pairs)
    assert len(steps) >= 5 and all(counts == steps[1] for counts in steps[2:5]), "no step does more than another"
    assert all(not STEP_COUNTS & {name for name, count in counts.items() if count} for counts in steps[1:])
    assert not +to_host
    assert steps[0]["index_select"] > 0 and steps[0]["_fused_adam_"] == 1


def test_the_work_of_a_step_does_not_grow_with_the_number_of_prompts(sd1_folder, make_pairs):
    calls = {}
    for points in (1, 6):
        teacher = build(sd1_folder, queries="frozen", null_prompt="zeros", steps=4, noise_draws=2)
        longer = build(sd1_folder, queries="frozen", null_prompt="zeros", steps=10, noise_draws=2)
        pair, counts = make_pairs(points, size=64), []
        for one in (teacher, longer):
            with Operations() as operations:
                one.prompts.at(KeyedImage(pair.src_img[0], "key"), pair.src_kps[0] / 64)
            counts.append(operations.counts)
        calls[points] = (counts[1].total() - counts[0].total()) / 6
    assert calls[1] == calls[6] < 500, "operations a step and six layers, of one point and of six"


@pytest.mark.parametrize(
    "settings", [*EVERY_OPTION, {"symmetry": "negative_token"}, {"early_stop": 0.5, "steps": 22}], ids=str
)
def test_pairs_asked_together_are_answered_as_one_by_one(sd1_folder, make_pairs, settings):
    """Other pairs, other numbers of points, and one source image in two pairs."""
    first, second = make_pairs(3, size=64), make_pairs(2, size=64, seed=1)
    third = first._replace(trg_img=second.trg_img, trg_hash=second.trg_hash)
    pairs, settings = [first, second, third], {"null_prompt": "zeros", "consensus": 2.0, "crops": 5, **settings}
    alone = [build(sd1_folder, **settings).match_pairs(pair) for pair in pairs]
    together = build(sd1_folder, batch_size=7, **settings).match_pairs(collate_pairs(pairs))
    for row, answer in enumerate(alone):
        found = [values[row, : answer.trg_kps.shape[1]] for values in together]
        torch.testing.assert_close(found[0], answer.trg_kps[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(found[1], answer.confidence[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[2], answer.heatmap[0], atol=1e-5, rtol=1e-3)


def test_attention_maps_of_many_pairs_are_held_in_bounded_memory(sd1_folder, make_pairs, monkeypatch):
    pairs = collate_pairs([make_pairs(3, size=64, seed=seed) for seed in range(4)])
    teacher, held = build(sd1_folder), []
    match = teacher._match_queries
    monkeypatch.setattr(teacher, "_match_queries", lambda queries: held.append(len(queries)) or match(queries))
    expected = teacher.match_pairs(pairs)
    of_a_pair = 3 * teacher.settings.embeddings * len(teacher.features.model.unet.layers) * 4 * 16**2
    monkeypatch.setattr(prompt_optimization, "MAPS_GIB", 2.5 * of_a_pair / 2**30)
    torch.testing.assert_close(teacher.match_pairs(pairs).trg_kps, expected.trg_kps, atol=1e-3, rtol=0)
    monkeypatch.setattr(prompt_optimization, "MAPS_GIB", 1e-9)
    teacher.match_pairs(pairs)
    assert held == [4, 2, 2, 1, 1, 1, 1]


def test_maps_points_and_consensus_are_in_single_precision_where_the_model_is_in_half(
    sd1_folder, make_pairs, monkeypatch
):
    monkeypatch.setattr(frozen_model, "has_bf16", lambda: True)
    teacher = build(sd1_folder, precision="bf16", queries="frozen", null_prompt="zeros", consensus=2.0)
    pair = make_pairs(2, size=64)
    src, trg = (KeyedImage(image[0], key) for image, key in ((pair.src_img, "a"), (pair.trg_img, "b")))
    prompts = teacher.prompts.at(src, pair.src_kps[0] / 64)
    with torch.no_grad():
        (found,) = teacher._localize_with_consensus([PointQuery(src, trg, pair.src_kps[0] / 64)], [prompts])
    assert teacher.pipeline.unet.dtype == torch.bfloat16
    for values in (prompts.embedding, found.points, found.heatmap, found.maps, found.consensus.maps):
        assert values.dtype == torch.float32
    cells = found.points * 64
    assert not torch.equal(cells, cells.bfloat16().float()), "not on the grid of bfloat16"
