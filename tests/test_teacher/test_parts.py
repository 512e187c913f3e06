"""Parts of prompt optimisation against plain, slow versions of the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor

from distill.core.errors import ConfigError
from teacher.attention import choose_layers, cross_attention_layers, read_tokens
from teacher.crop_sampling import choose_crops, crop_boxes
from teacher.crops import crop, into_crop, paste
from teacher.pipeline import weights_digest
from teacher.settings import Settings
from teacher.source_image import attention_loss
from teacher.unet import PromptedUNet


def load_unet(folder) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval().requires_grad_(False)


class Watch(AttnProcessor):
    """diffusers' plain attention, which keeps its probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.probabilities: torch.Tensor | None = None

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        scores = attn.get_attention_scores

        def watched(query, key, mask=None):
            self.probabilities = scores(query, key, mask)
            return self.probabilities

        attn.get_attention_scores = watched  # type: ignore[method-assign]
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        finally:
            attn.get_attention_scores = scores  # type: ignore[method-assign]


def plain_maps(unet: UNet2DConditionModel, names: list[str], latents, timestep: int, prompt) -> list[np.ndarray]:
    """Runs the whole UNet and reads the maps of token 1 where they are made, averaged over heads."""
    watches = {layer.attention: Watch() for layer in choose_layers(unet, names)}
    for attention, watch in watches.items():
        attention.set_processor(watch)
    unet(latents, timestep, prompt)
    maps = []
    for watch in watches.values():
        assert watch.probabilities is not None
        seen = watch.probabilities[:, :, 1].mean(0)
        side = round(len(seen) ** 0.5)
        maps.append(seen.view(side, side))
    return maps


def test_layers_are_named_by_block_and_share_of_the_latents_side(sd1_folder):
    places = [layer.place for layer in cross_attention_layers(load_unet(sd1_folder))]
    up = ["up@1/4"] * 2 + ["up@1/2"] * 2 + ["up@1/1"] * 2
    assert places == ["down@1/1", "down@1/2", "down@1/4", "mid@1/8", *up]


@pytest.mark.parametrize("name", ["up@1/16", "up", "up@1/4:3", "sideways@1/2"])
def test_a_choice_that_captures_no_layer_says_what_there_is(sd1_folder, name):
    with pytest.raises(ConfigError, match=r"up@1/4 \(2 layers\)"):
        choose_layers(load_unet(sd1_folder), [name])


def test_the_truncated_unet_records_the_maps_of_the_whole_one_and_their_gradients(sd1_folder):
    torch.manual_seed(0)
    names, timestep = ["up@1/4", "up@1/2:0"], 200
    latents, prompts = torch.randn(2, 4, 8, 8), torch.randn(3, 7, 24)
    crop_of = torch.tensor([1, 0, 1])
    reference = load_unet(sd1_folder)
    expected, gradients = [], []
    for prompt, row in zip(prompts, crop_of, strict=True):
        prompt = prompt[None].clone().requires_grad_()
        maps = plain_maps(reference, names, latents[row][None], timestep, prompt)
        sum(m.square().sum() for m in maps).backward()
        expected.append([m.detach() for m in maps])
        gradients.append(prompt.grad[0])
    unet = load_unet(sd1_folder)
    prompted = PromptedUNet(unet, choose_layers(unet, names), image_size=64)
    free = prompts.clone().requires_grad_()
    recorded = prompted.record(prompted.prefix(latents, timestep), crop_of, free)
    layers = zip(recorded, prompted.layers, strict=True)
    maps = [read_tokens(r.query, r.key, layer.attention.scale)[:, 0] for r, layer in layers]
    for row in range(3):
        for found, wanted in zip(maps, expected[row], strict=True):
            torch.testing.assert_close(found[row].detach(), wanted, atol=1e-5, rtol=0)
    sum(m.square().sum() for m in maps).backward()
    torch.testing.assert_close(free.grad, torch.stack(gradients), rtol=1e-3, atol=1e-6)


def test_a_crop_shows_what_lies_in_its_box():
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).contiguous()
    left, right = crop(ramp, torch.tensor([[0.0, 0.0, 0.5], [0.5, 0.5, 0.5]]))
    assert float(left.max()) < 0.51 and float(right.min()) > 0.49
    assert float(right[0, 5].diff().mean()) == pytest.approx(0.5 / 63, rel=0.05)


def test_pasting_puts_a_crops_peak_back_where_it_was():
    boxes = crop_boxes(3, 0.8, torch.Generator().manual_seed(0))
    image = torch.zeros(3, 64, 64)
    image[:, 40, 25] = 1
    pasted, seen = paste(crop(image, boxes)[:, 0], boxes, 64)
    for row, shown in zip(pasted, seen, strict=True):
        peak = int(row.argmax())
        assert (abs(peak // 64 - 40) <= 1 and abs(peak % 64 - 25) <= 1) or not shown[40, 25]


def test_the_four_corners_show_every_pixel():
    boxes = crop_boxes(0, 0.93, torch.Generator())
    _, seen = paste(torch.ones(5, 8, 8), boxes, 32)
    assert seen[1:].sum(0).min() >= 1 and seen[0].all()


def test_the_chosen_crop_keeps_the_point_off_its_border_where_one_can():
    boxes = crop_boxes(4, 0.7, torch.Generator().manual_seed(1))
    points = torch.tensor([[0.5, 0.5], [0.05, 0.95]])
    priority = torch.zeros(2, len(boxes))
    priority[:, 0] = -torch.inf
    chosen = choose_crops(points[:, None], boxes, priority, margin=0.15)
    inside = into_crop(points, boxes[chosen])
    assert float(inside[0].min()) >= 0.15 and float(inside[0].max()) <= 0.85
    assert chosen[1] == 3  # only the lower left corner shows a point at (0.05, 0.95)


def test_the_loss_is_the_mean_square_from_a_gaussian_of_peak_one():
    maps, points, sigma, side = torch.rand(1, 1, 4, 4), torch.tensor([[[0.3, 0.6]]]), 0.1, 4
    total = 0.0
    for row in range(4):
        for column in range(4):
            squared = ((column + 0.5) / 4 - 0.3) ** 2 + ((row + 0.5) / 4 - 0.6) ** 2
            total += (float(maps[0, 0, row, column]) - np.exp(-squared / (2 * sigma**2))) ** 2
    assert float(attention_loss([maps], points, Settings(sigma=sigma), side)) == pytest.approx(total / 16, rel=1e-5)


def test_where_weights_were_read_from_is_no_part_of_what_they_are(sd1_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(sd1_folder, moved)
    config = json.loads((moved / "vae" / "config.json").read_text())
    (moved / "vae" / "config.json").write_text(json.dumps({**config, "_name_or_path": "somewhere"}))
    assert weights_digest(moved, False) == weights_digest(sd1_folder, False)
    (moved / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    assert weights_digest(moved, False) != weights_digest(sd1_folder, False)
