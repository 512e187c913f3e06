"""Names of features and hooks, on random miniatures with the true layout of each family's UNet."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from distill.core.errors import ConfigError
from teacher.dift import SDXL, SMALL, default_features
from teacher.feature_layers import choose_features, feature_layers, record
from teacher.unet_weights import meta_unet

SD1 = dict(
    sample_size=16,
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=2,
    norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    cross_attention_dim=12,
    attention_head_dim=2,
)
SD_XL = dict(
    sample_size=16,
    block_out_channels=(8, 8, 16),
    layers_per_block=2,
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=12,
    attention_head_dim=(2, 2, 2),
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=32,
)


@pytest.fixture(scope="module")
def sd1():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sdxl():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD_XL).eval().requires_grad_(False)


def run(unet: UNet2DConditionModel):
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    more = {"text_embeds": torch.zeros(2, 8), "time_ids": torch.zeros(2, 6)}
    return unet(latent, 50, torch.ones(2, 5, 12), added_cond_kwargs=more)


def hooks(unet: UNet2DConditionModel) -> int:
    return sum(len(module._forward_hooks) for module in unet.modules())


def test_layers_are_counted_as_the_architecture_says(sd1, sdxl):
    counts = {(kind, place): 0 for kind in ("cross_q", "transformer") for place in ("up@1/4", "up@1/2", "up@1/1")}
    for layer in feature_layers(sdxl):
        if (layer.kind, layer.place) in counts:
            counts[layer.kind, layer.place] += 1
    # Three attentions a block of the decoder, of ten and two inner blocks; none at full side.
    assert list(counts.values()) == [30, 6, 0] * 2
    places = {layer.place for layer in feature_layers(sd1) if layer.kind == "block"}
    assert places == {f"{part}@1/{n}" for part in ("down", "up") for n in (1, 2, 4, 8)} | {"mid@1/8"}


@pytest.mark.parametrize(
    ("name", "shape", "module"),
    [
        ("up@1/4", (16, 8, 8), "up_blocks.1"),  # with the enlargement at the block's end
        ("up@1/4:2.resnet", (16, 4, 4), "up_blocks.1.resnets.2"),
        ("up@1/2:1.transformer", (8, 8, 8), "up_blocks.2.attentions.1.transformer_blocks.0"),
        ("up@1/1:0.self_q", (8, 16, 16), "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("up@1/1:0.self_k", (8, 16, 16), "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k"),
        ("down@1/2:1.cross_q", (8, 8, 8), "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q"),
        ("mid@1/8", (16, 2, 2), "mid_block"),
        ("down@1/1", (8, 8, 8), "down_blocks.0"),
    ],
)
def test_a_name_reads_the_module_it_means(sd1, name, shape, module):
    (layer,) = choose_features(sd1, [name])
    assert layer.module is sd1.get_submodule(module)
    (found,) = record([layer], lambda: run(sd1))
    assert found.shape == (2, *shape)
    outputs = []
    handle = sd1.get_submodule(module).register_forward_hook(lambda _, __, output: outputs.append(output))
    run(sd1)
    handle.remove()
    whole = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    expected = whole if whole.ndim == 4 else whole.mT.reshape(found.shape)
    torch.testing.assert_close(found, expected)


def test_a_map_keeps_the_order_of_rows_and_columns(sd1):
    """The queries of a latent that is dark but for one corner differ most at that corner."""
    (layer,) = choose_features(sd1, ["down@1/1:0.self_q"])
    maps = []
    for value in (0.0, 5.0):
        latent = torch.zeros(1, 4, 16, 16)
        latent[..., 1, 13] = value
        maps.append(record([layer], lambda x=latent: sd1(x, 50, torch.ones(1, 5, 12)))[0][0])
    changed = (maps[1] - maps[0]).norm(dim=0)
    row, column = divmod(int(changed.argmax()), 16)
    assert row <= 3 and column >= 11


def test_sdxl_reads_four_inner_layers_by_default_and_leaves_the_pass_after_the_last(sdxl):
    assert default_features(sdxl) == SDXL
    layers, seen = choose_features(sdxl, SDXL.layers), []
    later = sdxl.up_blocks[1].attentions[0].transformer_blocks[1]
    handle = later.register_forward_hook(lambda *_: seen.append(1))
    before = hooks(sdxl)
    maps = record(layers, lambda: run(sdxl))
    handle.remove()
    assert [tuple(feature_map.shape[1:]) for feature_map in maps] == [(16, 4, 4), (16, 4, 4), (8, 8, 8), (8, 8, 8)]
    assert not seen and before == 1 and hooks(sdxl) == 0


def test_the_shipped_model_reads_a_block_and_an_inner_transformer_block_by_default(root):
    unet = meta_unet(root / "checkpoints" / "sd-mini")
    assert default_features(unet) == SMALL
    assert [layer.name for layer in choose_features(unet, SMALL.layers)] == ["up@1/4:0.block", "up@1/2:0.transformer"]


def test_hooks_are_removed_when_the_pass_fails(sd1):
    layers = choose_features(sd1, ["up@1/4", "up@1/2.cross_q"])
    with pytest.raises(ValueError, match="halted"):
        record(layers, lambda: (_ for _ in ()).throw(ValueError("halted")))
    assert hooks(sd1) == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["up@1/16"],
            r"'up@1/16' means none; there are: .*up@1/4 \(3 self_q, 3 self_k, 3 cross_q, 3 transformer, 3 resnet, 1 block",
        ),
        (["up@1/4:3.cross_q"], "'up@1/4:3.cross_q' means none"),
        (["up@1/8.cross_q"], "'up@1/8.cross_q' means none"),
        (["up@1/4.cross_k"], "keys of cross-attention belong to the prompt"),
        (["block1"], "named like up@1/4, .* but got 'block1'"),
        ([], "at least one layer"),
    ],
)
def test_a_choice_that_reads_nothing_is_refused_and_what_there_is_is_listed(sd1, names, message):
    with pytest.raises(ConfigError, match=message):
        choose_features(sd1, names)
