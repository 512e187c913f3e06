"""Telling captions by the places that their words suit."""

import numpy as np
import pytest
import torch

from distill.core.errors import ConfigError
from teacher.pretrain import build_unet
from teacher.pretrain.alignment import QueryRecorder, alignment_loss, coverage_loss


def small_unet(decoder=(False, True), **options):
    return build_unet(8, 4, [16, 32], [False, True], decoder, 24, **options).eval()


def test_the_loss_is_that_of_a_loop_over_pictures_captions_heads_and_words():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(3, 5, 2, 4)), rng.normal(size=(5, 6, 2, 4))
    tokens = np.arange(30).reshape(5, 6)
    tokens[4] = tokens[1]  # a decoy that says what the second caption says
    is_word = rng.random((5, 6)) < 0.6
    suits = np.zeros((3, 5))
    for b in range(3):
        for c in range(5):
            for word in np.flatnonzero(is_word[c]):
                for h in range(2):
                    suits[b, c] += np.log(np.mean([np.exp(query[b, s, h] @ key[c, word, h]) for s in range(5)])) / 2
    suits[1, 4] = -np.inf
    by_picture = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(suits)]
    by_caption = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(suits[:, :3].T)]
    found = alignment_loss(*(torch.from_numpy(array) for array in (query, key, tokens, is_word)))
    assert abs(float(found) - np.mean(by_picture + by_caption)) < 1e-6


def test_words_cover_as_a_loop_over_places_says():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 32, 2, 4)), rng.normal(size=(2, 5, 2, 4))
    is_word = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    found = []
    for b in range(2):
        attention = np.zeros((32, 5))
        for s in range(32):
            for h in range(2):
                weight = np.exp([query[b, s, h] @ key[b, word, h] for word in range(5)])
                attention[s] += weight / weight.sum() / 2
        found += [-np.log(np.sort(attention[:, word])[-2:].mean()) for word in np.flatnonzero(is_word[b])]
    loss = coverage_loss(*(torch.from_numpy(array) for array in (query, key, is_word)))
    assert abs(float(loss) - np.mean(found)) < 1e-6


def test_where_no_word_needs_a_place_nothing_is_lost():
    loss = coverage_loss(torch.randn(1, 16, 2, 4), torch.randn(1, 5, 2, 4), torch.zeros(1, 5, dtype=torch.bool))
    assert float(loss) == 0


def test_the_tape_keeps_the_latest_pass_and_changes_nothing():
    torch.manual_seed(0)
    unet = small_unet()
    latents, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    with torch.no_grad():
        before = unet(latents, 10, prompts).sample
        tape = QueryRecorder(unet)
        for _ in range(2):
            tape.clear()
            after = unet(latents, 10, prompts).sample
    assert torch.equal(before, after)
    layers = list(tape.against(torch.randn(3, 7, 24)))
    assert len(layers) == 4  # one down, one in the middle, two up
    assert all(query.shape == (2, 16, 4, 8) and key.shape == (3, 7, 4, 8) for query, key in layers)


def test_a_unet_grows_from_a_smaller_one_and_answers_as_it_did(tmp_path):
    torch.manual_seed(0)
    smaller = small_unet()
    smaller.save_pretrained(tmp_path / "unet")
    larger = small_unet(decoder=(True, True), start=str(tmp_path))
    latents, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    with torch.no_grad():
        torch.testing.assert_close(larger(latents, 10, prompts).sample, smaller(latents, 10, prompts).sample)


def test_a_unet_that_does_not_fit_is_refused(tmp_path):
    small_unet(decoder=(True, True)).save_pretrained(tmp_path / "unet")
    with pytest.raises(ConfigError, match=r"no place there, such as up_blocks\.1"):
        small_unet(start=str(tmp_path))
