"""Every option of the teacher does what its line of documentation says."""

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pipeline_files import edit

from distill.cli.config import compose, instantiate
from distill.core.consensus import NeighbourhoodConsensus
from distill.core.errors import ConfigError
from distill.data.pairs import collate_pairs
from teacher import DiffusionFeatures, PromptOptimization, ReferencePromptOptimization, frozen_model
from teacher.attention import Layer, read_tokens
from teacher.dift import DiffusionFeaturesSettings
from teacher.dit import TransformerFeaturesSettings
from teacher.feature_cache import KeyedImage
from teacher.pipeline import as_device
from teacher.prompts import grouped
from teacher.settings import COST_ONLY, Settings
from teacher.source_image import Convergence, attention_loss, token_for

QUICK = {"steps": 3, "embeddings": 2, "crop_pool": 5, "crops": 2, "layers": ["up@1/4", "up@1/2"], "prompt_length": 7}
QUICK |= {"queries": "conditioned", "noise_draws": None, "consensus": 0.0, "timestep": 200}


def build(folder, **settings) -> PromptOptimization:
    return PromptOptimization(str(folder), device="cpu", **{**QUICK, **settings})


def test_the_papers_variant_is_what_the_released_code_runs_with():
    for verb, group in (("label", "teacher"), ("evaluate", "matcher")):
        config = compose(verb, [f"{group}=prompt_optimization_paper"])[group]
        expected = {
            "embeddings": 5,
            "steps": 129,
            "timestep": 140,
            "locate_timestep": 40,
            "noise": "uniform",
            "crops": 20,
            "crop_source": "fresh",
            "crop_edges": "pixels",
            "heads": "upper",
            "target_cells": "corners",
            "readout": "argmax",
            "layer_temperature": 1.0,
            "layers": ["up@1/4", "up@1/2:0"],
            "map_side": "image",
            "consensus": 0.0,
            "queries": "conditioned",
        }
        assert {name: config[name] for name in expected} == expected
        assert config.lr == pytest.approx(0.0023755632) and 512 * config.sigma == pytest.approx(27.98, abs=0.01)
        assert int(512 * config.crop_ratio) == 477  # 93.165 % of the side


def test_the_class_and_its_configuration_have_the_same_settings_and_defaults():
    for group, settings in (
        ("prompt_optimization", Settings()),
        ("dift", DiffusionFeaturesSettings()),
        ("dit", TransformerFeaturesSettings()),
    ):
        config = OmegaConf.to_container(compose("label", [f"teacher={group}"]).teacher, resolve=True)
        others = {
            "_target_",
            "model",
            "variant",
            "unet_weights",
            "prompt_file",
            "image_size",
            "prompt_length",
            "device",
        }
        assert {
            name: value for name, value in config.items() if name not in others
        }.keys() == settings.model_fields_set | (type(settings).model_fields.keys())
        assert type(settings)(**{name: value for name, value in config.items() if name not in others}) == settings


def test_the_class_alone_is_the_default_teacher(root):
    alone = PromptOptimization(str(root / "checkpoints" / "sd-mini"), device="cpu")
    configured = instantiate(compose("label", ["device=cpu"]).teacher)
    assert alone.settings == configured.settings and alone.fingerprint() == configured.fingerprint()


def test_settings_that_only_cost_are_no_part_of_the_fingerprint(sd1_folder):
    costs = {"batch_size": 3, "prompt_cache_size": 0.0, "feature_cache_size": 0.1, "truncate_unet": False}
    first, second = build(sd1_folder).fingerprint(), build(sd1_folder, **costs, share_prefix=False).fingerprint()
    assert first == second and set(first) == {*Settings.model_fields} - COST_ONLY | {
        "method",
        "weights",
        "image_size",
        "prompt_length",
    }


def test_a_setting_on_the_command_line_overrides_the_papers():
    config = compose("fit", ["teacher=prompt_optimization_paper", "teacher.steps=7"]).teacher
    assert config.steps == 7 and config.embeddings == 5


def test_the_upper_half_of_the_heads_is_the_mean_of_the_last_ones():
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 9, 5), torch.randn(1, 4, 6, 5)
    every = torch.stack([read_tokens(query[:, [h]], key[:, [h]], 0.3, 2) for h in range(4)])
    torch.testing.assert_close(read_tokens(query, key, 0.3, 2), every.mean(0))
    torch.testing.assert_close(read_tokens(query, key, 0.3, 2, upper=True), every[2:].mean(0))


def test_target_cells_at_corners_are_half_a_cell_off():
    maps, side = [torch.zeros(1, 1, 8, 8)], 8
    points = torch.tensor([[[4 / 8, 4 / 8]]])
    corners = attention_loss(maps, points, Settings(target_cells="corners", sigma=0.1), side)
    centres = attention_loss(maps, points + 0.5 / 8, Settings(sigma=0.1), side)
    torch.testing.assert_close(corners, centres)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_source": "fresh"},
        {"crop_edges": "pixels"},
        {"start": "query"},
        {"start": "query", "queries": "frozen", "null_prompt": "zeros"},
        {"early_stop": 0.5, "steps": 22},
        {"symmetry": "flip_contrast"},
        {"symmetry": "negative_token"},
        {"confidence": ["peak", "entropy", "prompt_agreement"]},
        {"confidence": "cycle"},
        {"confidence": "flip_agreement"},
        {"confidence": "flip_consistency", "consensus": 2.0, "null_prompt": "zeros"},
        {"map_side": "image", "readout": "subpixel", "heads": "upper"},
        {"readout": "soft_argmax", "noise": "uniform", "layer_temperature": 1.0},
    ],
    ids=str,
)
def test_an_answer_under_any_option_is_sound_and_does_not_depend_on_its_company(sd1_folder, make_pairs, settings):
    pair = make_pairs(3, size=64)
    together = build(sd1_folder, **settings)(pair.src_img, pair.trg_img, pair.src_kps)
    assert ((together.trg_kps >= 0) & (together.trg_kps <= 64)).all()
    assert ((together.confidence >= 0) & (together.confidence <= 1)).all() and (together.heatmap >= 0).all()
    alone = build(sd1_folder, batch_size=1, **settings)(pair.src_img, pair.trg_img, pair.src_kps[:, 1:2])
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap[:, 0], atol=1e-4, rtol=1e-3)
    # Against a teacher that differs by what is tested alone: consensus changes an answer whatever judges it.
    shared = {name: value for name, value in settings.items() if "confidence" in settings and name != "confidence"}
    plain = build(sd1_folder, **shared)(pair.src_img, pair.trg_img, pair.src_kps)
    assert not all(torch.equal(a, b) for a, b in zip(together, plain, strict=True)), "the option does something"


@pytest.mark.parametrize("edges", ["exact", "pixels"])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("crops", [4, 5])
def test_every_cell_of_a_target_is_seen_whatever_the_crops(sd1_folder, make_pairs, crops, ratio, edges):
    pair = make_pairs(1, size=64)
    answer = build(sd1_folder, crops=crops, crop_ratio=ratio, crop_edges=edges, steps=1, embeddings=1).match_pairs(pair)
    assert all(bool(values.isfinite().all()) for values in answer)


def test_equal_points_of_a_call_are_one_point_of_a_prompt(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    once = build(sd1_folder, points_per_prompt=2)(pair.src_img, pair.trg_img, pair.src_kps)
    rows = [0, 1, 0, 0, 1]
    twice = build(sd1_folder, points_per_prompt=2)(pair.src_img, pair.trg_img, pair.src_kps[:, rows])
    torch.testing.assert_close(twice.trg_kps, once.trg_kps[:, rows])
    torch.testing.assert_close(twice.heatmap, once.heatmap[:, rows])


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"points_per_prompt": 7}, 6),
        ({"points_per_prompt": 2, "prompt_length": 2}, 1),
        ({"symmetry": "negative_token", "prompt_length": 2}, 1),
    ],
    ids=str,
)
def test_more_points_than_a_prompt_has_tokens_are_refused(sd1_folder, settings, most):
    with pytest.raises(ConfigError, match=f"at most {most} points in a prompt of {most + 1} tokens"):
        build(sd1_folder, **settings)


@pytest.mark.parametrize("size", [64, 128])
def test_maps_have_twice_the_latents_cells_at_every_size_of_images(sd1_folder, size):
    teacher = build(sd1_folder, image_size=size)
    latents = teacher.pipeline.encode(torch.zeros(1, 3, size, size))
    assert teacher.features.model.map_side == 2 * latents.shape[-1]
    assert teacher.fingerprint()["map_side"] != build(sd1_folder).fingerprint()["map_side"] == "None"


def test_a_unet_that_names_no_size_works_at_the_size_that_is_asked_for(folder, make_pairs):
    edit(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ConfigError, match="image_size because the UNet's config.json has no sample_size"):
        build(folder)
    answer = build(folder, image_size=64, steps=1).match_pairs(make_pairs(1, size=64))
    assert all(bool(values.isfinite().all()) for values in answer)


def test_flip_agreement_asks_for_the_orientation_that_was_not_taken(sd1_folder, make_pairs, monkeypatch):
    asked, pairs = [], collate_pairs([make_pairs(2, size=64, seed=seed) for seed in range(4)])
    teacher = build(sd1_folder, confidence="flip_agreement", consensus=1.0, null_prompt="zeros", steps=1)
    localize = teacher._localize
    monkeypatch.setattr(
        teacher,
        "_localize",
        lambda trg, prompts, flipped: asked.append(list(flipped)) or localize(trg, prompts, flipped),
    )
    for taken in (True, False):
        monkeypatch.setattr(NeighbourhoodConsensus, "prefers_flipped", lambda *_, taken=taken: torch.tensor([taken]))
        teacher.match_pairs(pairs)
    assert asked == [[True] * 4, [False] * 4, [False] * 4, [True] * 4]


def test_points_that_share_a_prompt_are_optimised_together(sd1_folder, make_pairs):
    pair, teacher = make_pairs(5, size=64), build(sd1_folder, points_per_prompt=2)
    prompts = teacher.prompts.at(KeyedImage(pair.src_img[0], "key"), pair.src_kps[0] / 64)
    embedding, token = prompts.embedding, prompts.token.tolist()
    shared = [(a, b) for a in range(5) for b in range(a) if torch.equal(embedding[a], embedding[b])]
    assert len(shared) == 2 and all({token[a], token[b]} == {0, 1} for a, b in shared)
    assert teacher.passes == 3 * 3 * 2  # prompts, steps, embeddings
    answer = teacher.match_pairs(pair)
    assert torch.isfinite(answer.trg_kps).all() and not torch.equal(answer.heatmap[0, 0], answer.heatmap[0, 1])


def test_groups_are_even_and_hold_every_row_once():
    groups = [g for same in grouped(list(range(10)), 4) for g in same]
    assert sorted(row for g in groups for row in g) == list(range(10)) and {len(g) for g in groups} <= {3, 4}
    assert grouped([], 4) == []


def test_a_prompt_stops_when_its_loss_no_longer_falls():
    converged, steps = Convergence(torch.zeros(2, 1, 1), threshold=0.1), torch.ones(2, 1, 1)
    for step in range(30):
        rows = torch.arange(2) if converged.rows is None else converged.rows
        assert not converged.update(steps * step, torch.tensor([0.9**step, 1.0])[rows])
    assert converged.rows.tolist() == [0] and converged.prompts[:, 0, 0].tolist() == [29.0, 19.0]
    done = [converged.update(steps * 30, torch.tensor([0.5])) for _ in range(10)]
    assert done == [False] * 9 + [True]


def test_early_stop_saves_passes_and_no_stop_spends_them_all(sd1_folder, make_pairs):
    pair = make_pairs(1, size=64)
    spent = {}
    for share in (None, 0.9):
        teacher = build(sd1_folder, steps=40, early_stop=share)
        teacher.prompts.at(KeyedImage(pair.src_img[0], "key"), pair.src_kps[0] / 64)
        spent[share] = teacher.passes
    assert spent == {None: 2 * 40, 0.9: 2 * 20}


def test_the_warm_start_has_the_keys_that_the_point_asks_for(sd1_folder):
    torch.manual_seed(0)
    attention = build(sd1_folder).features.model.unet.layers[0].attention
    queries = torch.randn(1, attention.heads, 16, attention.to_k.weight.shape[0] // attention.heads)
    points = torch.tensor([[[0.375, 0.625]]])  # the centre of cell (1, 2) of four by four
    token = token_for([queries], points, [Layer("up@1/4", 0, attention)])
    assert float(token.norm()) == pytest.approx(24**0.5, rel=1e-4)
    features = queries.transpose(1, 2).flatten(2)[0]
    wanted = features[2 * 4 + 1] - features.mean(0)
    key = attention.to_k(token)[0, 0]
    others = [float(torch.cosine_similarity(key, f - features.mean(0), dim=0)) for f in features]
    assert int(np.argmax(others)) == 9 and float(torch.cosine_similarity(key, wanted, dim=0)) > 0.5


def papers_settings() -> dict:
    config = compose("label", ["teacher=prompt_optimization_paper"]).teacher
    settings = OmegaConf.to_container(config, resolve=True)
    return {name: value for name, value in settings.items() if name in Settings.model_fields}


def test_the_reference_and_the_fast_implementation_give_the_same_answers(sd1_folder, make_pairs):
    paper = papers_settings() | {"steps": 3, "embeddings": 2, "crops": 6}
    pair, given = make_pairs(2, size=64), {"prompt_length": 7, "device": "cpu"}
    plain, fast = (
        ReferencePromptOptimization(str(sd1_folder), **given, **paper),
        PromptOptimization(str(sd1_folder), **given, **paper),
    )
    expected, answer = plain.match_pairs(pair), fast.match_pairs(pair)
    torch.testing.assert_close(answer.trg_kps, expected.trg_kps)
    assert plain.passes == fast.passes == 2 * 2 * (3 + 6)


def test_the_reference_says_what_it_cannot(sd1_folder):
    paper = papers_settings()
    with pytest.raises(ConfigError, match="crop_source=fresh, readout=argmax"):
        ReferencePromptOptimization(
            str(sd1_folder), **{**paper, "crop_source": "pool", "crop_pool": 30, "readout": "subpixel"}
        )
    for wrong in ({"crops": 3}, {"crop_ratio": 0.4}):
        with pytest.raises(ConfigError, match="crops of at least 4 and crop_ratio of at least 0.5"):
            ReferencePromptOptimization(str(sd1_folder), **{**paper, **wrong})


def test_increments_that_only_save_time_change_no_answer(sd1_folder, make_pairs):
    pair = make_pairs(2, size=64)
    answers = [
        build(sd1_folder, truncate_unet=truncate, share_prefix=share)(pair.src_img, pair.trg_img, pair.src_kps).heatmap
        for truncate, share in ((True, True), (False, True), (True, False))
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-5, rtol=1e-4)


def test_images_of_different_things_and_points_on_the_border_are_matched(sd1_folder, make_pairs):
    pair = make_pairs(1, size=64)
    corners = torch.tensor([[[0.0, 0.0], [64.0, 64.0], [0.0, 64.0], [31.0, 64.0]]])
    for matcher in (
        build(sd1_folder),
        build(sd1_folder, crop_source="fresh", crop_edges="pixels"),
        DiffusionFeatures(str(sd1_folder), device="cpu", prompt_length=7, null_prompt="zeros"),
    ):
        answer = matcher(pair.src_img, 1 - pair.trg_img, corners)
        assert torch.isfinite(answer.trg_kps).all() and torch.isfinite(answer.heatmap).all()


def test_an_image_smaller_than_a_crop_is_enlarged(sd1_folder):
    tiny, point = torch.rand(1, 3, 2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[[1.5, 1.0]]])
    answer = build(sd1_folder)(tiny, tiny, point)
    assert ((answer.trg_kps >= 0) & (answer.trg_kps <= torch.tensor([3.0, 2.0]))).all()


def test_fp16_on_a_processor_is_refused(sd1_folder):
    with pytest.raises(ConfigError, match="fp16, which it is slow at"):
        build(sd1_folder, precision="fp16")


def test_bf16_falls_back_to_fp32_on_a_processor_without_it_and_labels_say_so(sd1_folder, monkeypatch, caplog):
    monkeypatch.setattr(frozen_model, "has_bf16", lambda: False)
    with caplog.at_level(logging.WARNING):
        teacher = build(sd1_folder, precision="bf16")
    assert "no instructions for bf16" in caplog.text and teacher.fingerprint()["precision"] == "fp32"
    monkeypatch.setattr(frozen_model, "has_bf16", lambda: True)
    assert build(sd1_folder, precision="bf16").fingerprint()["precision"] == "bf16"


def test_bf16_answers_nearly_as_fp32_does(sd1_folder, make_pairs, monkeypatch):
    monkeypatch.setattr(frozen_model, "has_bf16", lambda: True)
    pair = make_pairs(2, size=64)
    full, half = (build(sd1_folder, precision=p).match_pairs(pair).heatmap for p in ("fp32", "bf16"))
    assert float((full - half).abs().max() / full.max()) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"confidence": ["peak", "luck"]},
            "confidence to be made of peak_mass, peak, .* or flip_consistency .got 'luck'",
        ),
        ({"confidence": []}, "confidence to be a list of at least one name"),
        ({"confidence": ["peak", "flip_consistency"]}, "consensus above 0 with the confidence flip_consistency"),
        ({"crop_source": "fresh", "queries": "frozen"}, "crop_source=pool with queries=frozen"),
        ({"symmetry": "negative_token", "points_per_prompt": 2}, "points_per_prompt to be 1"),
        ({"steps": 1.5, "consensus_flip": "x"}, "steps to be a whole number .*; consensus_flip to be true or false"),
        ({"steps": True}, "steps to be a whole number"),
        ({"map_side": "pixels"}, "map_side to be a whole number or image"),
        ({"lr": float("inf")}, "lr to be finite"),
        ({"layers": 3}, "layers to be a list of names"),
        ({"early_stop": 2.0}, r"early_stop to be at most 1 \(got 2.0\)"),
        ({"readout": "guess"}, "readout to be argmax, subpixel, soft_argmax or windowed_soft_argmax"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_named(sd1_folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(sd1_folder, **settings)


def test_the_configurations_build_what_they_name(sd1_folder):
    model = f"teacher.model={sd1_folder}"
    assert isinstance(
        instantiate(compose("label", [model, "teacher=prompt_optimization_paper"]).teacher), PromptOptimization
    )
    features = compose("evaluate", ["matcher=dift", f"matcher.model={sd1_folder}", "matcher.null_prompt=zeros"]).matcher
    assert isinstance(instantiate(features), DiffusionFeatures)


def matchers(folder) -> list:
    papers = papers_settings() | {"steps": 1, "embeddings": 1, "crops": 4}
    return [
        build(folder),
        DiffusionFeatures(str(folder), device="cpu", prompt_length=7, null_prompt="zeros"),
        ReferencePromptOptimization(str(folder), device="cpu", prompt_length=7, **papers),
    ]


def test_whole_number_points_are_answered_as_floats(sd1_folder, make_pairs):
    pair, points = make_pairs(1, size=64), torch.tensor([[[20, 30], [40, 50]]])
    for matcher in matchers(sd1_folder):
        expected, answer = (matcher(pair.src_img, pair.trg_img, kps) for kps in (points.float(), points))
        for found, wanted in zip(answer, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert not torch.equal(answer.confidence, answer.confidence.round())


def test_diffusion_features_answer_the_same_under_autocast(sd1_folder, make_pairs):
    pair = make_pairs(3, size=64)
    answers = []
    for enabled in (False, True):
        matcher = DiffusionFeatures(str(sd1_folder), device="cpu", prompt_length=7, null_prompt="zeros")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answers.append(matcher.match_pairs(pair))
    torch.testing.assert_close(answers[1], answers[0])


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "Expected device to name a device but got 'gpu'"),
        ("meta", "a device but got 'meta'"),
        ("cuda", "device=cuda names but torch finds 0"),
    ],
)
def test_a_device_that_there_is_not_is_named(device, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=message):
        as_device(device)
