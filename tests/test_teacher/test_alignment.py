"""Telling captions by the places that their words suit."""

import numpy as np
import torch

from teacher.pretrain import build_unet
from teacher.pretrain.alignment import AttentionTape, alignment_loss


def test_the_loss_is_that_of_a_loop_over_pictures_captions_heads_and_words():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(3, 5, 2, 4)), rng.normal(size=(3, 6, 2, 4))
    is_word = rng.random((3, 6)) < 0.6
    suits = np.zeros((3, 3))
    for b in range(3):
        for c in range(3):
            for word in np.flatnonzero(is_word[c]):
                best = [max(query[b, s, h] @ key[c, word, h] for s in range(5)) for h in range(2)]
                suits[b, c] += sum(best) / 2
    by_picture = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(suits)]
    by_caption = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(suits.T)]
    found = alignment_loss(torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(is_word))
    assert abs(float(found) - np.mean(by_picture + by_caption)) < 1e-9


def test_the_tape_keeps_the_latest_pass_and_changes_nothing():
    torch.manual_seed(0)
    unet = build_unet(8, 4, [16, 32], [False, True], 24).eval()
    latents, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    with torch.no_grad():
        before = unet(latents, 10, prompts).sample
        tape = AttentionTape(unet)
        for _ in range(2):
            tape.clear()
            after = unet(latents, 10, prompts).sample
    assert torch.equal(before, after)
    layers = list(tape)
    assert len(layers) == 4  # one down, one in the middle, two up
    assert all(query.shape == (2, 16, 4, 8) and key.shape == (2, 7, 4, 8) for query, key in layers)
