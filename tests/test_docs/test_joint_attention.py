"""The experiment on joint attention, whose figures the documentation states."""

import argparse
import importlib
import math

import numpy as np
import pytest
import torch

from teacher.pretrain import build_autoencoder


@pytest.fixture(scope="module")
def docs(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "docs"))
        yield


@pytest.fixture(scope="module")
def experiment(docs):
    return importlib.import_module("joint_attention")


@pytest.fixture(scope="module")
def model(experiment):
    return experiment.build(8, 4, 3, 0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def noisy():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def masked_states(model, noisy, text, concepts, block):
    """Runs all tokens together by diffusers' arithmetic but for attention, in which nothing sees a concept but itself.

    Attention is written in loops over rows, heads and queries: the independent truth.
    """
    n_image, n_text = 16, text.shape[1]
    states = model.pos_embed(noisy)
    emb = model.time_text_embed(torch.full((len(noisy),), 50.0), noisy.new_zeros(len(noisy), 8))
    context = model.context_embedder(torch.cat([text, concepts.expand(len(noisy), -1, -1)], dim=1))
    kept = {}

    class Loops:
        def __call__(self, attn, hidden_states, encoder_hidden_states, **_):
            rows, heads = len(hidden_states), attn.heads
            image, text = hidden_states, encoder_hidden_states
            q_image, k_image, v_image = (
                layer(image).unflatten(-1, (heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
            )
            text_layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            q_text, k_text, v_text = (layer(text).unflatten(-1, (heads, -1)) for layer in text_layers)
            q = torch.cat([attn.norm_q(q_image), attn.norm_added_q(q_text)], 1)
            k = torch.cat([attn.norm_k(k_image), attn.norm_added_k(k_text)], 1)
            v = torch.cat([v_image, v_text], 1)
            out = torch.zeros_like(v)
            for row in range(rows):
                for head in range(heads):
                    for query in range(q.shape[1]):
                        seen = list(range(n_image + n_text)) + ([query] if query >= n_image + n_text else [])
                        logits = torch.stack([q[row, query, head] @ k[row, key, head] for key in seen])
                        weights = (logits / math.sqrt(q.shape[-1])).softmax(0)
                        out[row, query, head] = sum(w * v[row, key, head] for w, key in zip(weights, seen, strict=True))
            kept["out"], kept["q"], kept["k"] = out, q, k
            joined = out.flatten(2)
            image, rest = joined[:, :n_image], joined[:, n_image:]
            return attn.to_out[0](image), rest if attn.context_pre_only else attn.to_add_out(rest)

    before = model.transformer_blocks[0].attn.processor
    for one in model.transformer_blocks[: block + 1]:
        one.attn.processor = Loops()
        context, states = one(hidden_states=states, encoder_hidden_states=context, temb=emb)
        one.attn.processor = before
    return kept


def test_the_written_attention_is_that_of_diffusers(experiment, model, noisy):
    text = torch.randn(2, 5, experiment.WIDTH, generator=torch.Generator().manual_seed(1))
    found = {}
    handle = model.transformer_blocks[1].register_forward_hook(lambda *given: found.update(out=given[-1]))
    pooled, times = noisy.new_zeros(2, 8), noisy.new_full((2,), 50.0)
    given = {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": times}
    model(noisy, **given, return_dict=False)
    expected = found["out"]
    experiment.run(model, noisy, text, 50, [experiment.Joint(), experiment.Joint()])
    handle.remove()
    for ours, theirs in zip(found["out"], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2])
def test_concepts_alone_are_what_they_are_among_all_tokens_that_do_not_see_them(experiment, model, noisy, block):
    text = noisy.new_zeros(2, 2, experiment.WIDTH)
    concepts = torch.randn(3, experiment.WIDTH, generator=torch.Generator().manual_seed(2))
    seen = [experiment.Joint() for _ in range(block + 1)]
    experiment.run(model, noisy, text, 50, seen)
    for draw in range(2):
        attending = [experiment.Attending(one, draw) for one in seen]
        experiment.run(model, None, concepts[None], 50, attending)
        kept = masked_states(model, noisy, text, concepts, block)
        torch.testing.assert_close(
            attending[-1].outputs[0].transpose(0, 1), kept["out"][draw, 18:], atol=1e-5, rtol=1e-4
        )
        q, k = kept["q"][draw], kept["k"][draw]
        by_query = torch.einsum("nhd,shd->hns", q[18:], k[:16]).div(math.sqrt(32)).softmax(-1).mean(0)
        maps = experiment.attention_map("query", seen[-1], attending[-1], slice(None), slice(draw, draw + 1))
        torch.testing.assert_close(maps.flatten(1), by_query / by_query.amax(-1, keepdim=True), atol=1e-5, rtol=1e-4)
        for number in range(3):  # the share that each would have of the image's attention, if it alone were added
            keys = torch.cat([k[:18], k[18 + number : 19 + number]])
            shares = torch.einsum("shd,khd->hsk", q[:16], keys).div(math.sqrt(32)).softmax(-1)[..., -1].mean(0)
            maps = experiment.attention_map("key", seen[-1], attending[-1], slice(None), slice(draw, draw + 1))
            torch.testing.assert_close(maps[number].flatten(), shares, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("score", ["key", "query", "output"])
def test_optimisation_makes_a_map_peak_nearer_to_the_point(experiment, model, monkeypatch, score, joint):
    monkeypatch.setattr(
        experiment, "noisy_latents", lambda *_: torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    )
    points = torch.tensor([[0.25, 0.75]])
    loss = {}
    for steps in (0, 30):
        matcher = experiment.Concepts(model, None, 1, 50, score, joint, steps=steps, draws=1)
        image = torch.zeros(3, 32, 32)
        concept = matcher.optimise(image, points)
        with torch.no_grad():
            maps = matcher.maps_of(image)(concept, 0)
        loss[steps] = experiment.attention_loss([maps[:, None]], points[:, None], matcher.settings, 8).item()
    assert loss[30] < 0.97 * loss[0]


def test_training_lowers_its_losses_and_writes_a_model(experiment, tmp_path, capsys, monkeypatch):
    training = importlib.import_module("train_joint_attention")
    build_autoencoder(8, 4, 3).save_pretrained(tmp_path / "autoencoder")
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).normal(size=(64, 4, 16, 16)).astype(np.float16))
    np.save(tmp_path / "tokens.npy", np.tile(np.arange(24, dtype=np.int32), (64, 1)))
    np.save(tmp_path / "made.npy", np.array([True, False]))  # of blocks of 32
    clock = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))  # 40 steps, whatever they take
    given = {
        "latents": tmp_path,
        "autoencoder": tmp_path / "autoencoder",
        "model": tmp_path / "model",
        "minutes": 41 / 60,
    }
    training.train(argparse.Namespace(**given, batch_size=2, pairs=1, lr=1e-3, layers=2, seed=0))
    lines = [line for line in capsys.readouterr().out.splitlines() if "losses [" in line]
    first, last = ([float(value) for value in line.split("[")[1].rstrip("]").split()] for line in lines[:2])
    assert "32 captioned pictures" in lines[-1] and sum(last) < sum(first)
    assert experiment.SD3Transformer2DModel.from_pretrained(tmp_path / "model").config.num_layers == 2
