"""Speed and memory that a card has to reach: the shipped small model against two cores, and a model of SD 1.4's shape."""

import time
from pathlib import Path

import pytest
import torch

from distill.core.types import PairBatch
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import collate_pairs, to_device
from distill.system.memory import PeakMemory
from teacher import PromptOptimization

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
DEVICE = "cuda"
SIZE = 512  # px, of the large model
UNET = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768}
VAE = {"block_out_channels": (128, 256, 512, 512)}
"""Of Stable Diffusion 1.4 (unet/config.json and vae/config.json of CompVis/stable-diffusion-v1-4)."""
SD14 = {"layers": ["up@1/4", "up@1/2:0"], "consensus": 0.0, "timestep": 140, "prompt_length": 77, "batch_size": 64} | {
    "null_prompt": "zeros"  # there is no text encoder
}
TIMES_TWO_CORES, FROZEN, CONDITIONED = 20.0, 20.0, 2.0  # the last two in points a second
CARD_GB = 24  # of the recipes in configs/experiment
FEW, MANY = 2, 16  # pairs that are timed on the processor, and on the card


def batch(number: int, size: int, seed: int) -> PairBatch:
    return collate_pairs([ShapesPairs("val", number, seed, size)[row] for row in range(number)])


def rate(teacher: PromptOptimization, size: int, number: int) -> float:
    """Returns the points a second of ``number`` pairs together, after a few of another seed."""
    device = str(teacher.device)
    first, pairs = to_device(batch(FEW, size, 1), device), to_device(batch(number, size, 2), device)
    teacher.match_pairs(first)
    start = time.perf_counter()
    answer = teacher.match_pairs(pairs).trg_kps.cpu()
    assert answer.dtype == torch.float32 and bool(answer.isfinite().all())
    return int(pairs.kps_mask.sum()) / (time.perf_counter() - start)


@pytest.fixture(scope="module")
def sd14(tmp_path_factory) -> str:
    """A pipeline of that shape with random weights, in half precision."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(DEVICE):
        unet = UNet2DConditionModel(sample_size=SIZE // 8, **UNET)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=SIZE,
            **VAE,
        )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    parts = {"unet": unet.half(), "vae": vae.half(), "scheduler": scheduler, "requires_safety_checker": False}
    empty = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    folder: Path = tmp_path_factory.mktemp("sd14")
    StableDiffusionPipeline(**parts, **empty).save_pretrained(folder)
    return str(folder)


def test_the_small_model_is_twenty_times_as_fast_as_on_two_cores(root):
    model = str(root / "checkpoints" / "sd-mini")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        slow = rate(PromptOptimization(model, device="cpu"), 128, FEW)
    finally:
        torch.set_num_threads(before)
    fast = rate(PromptOptimization(model, device=DEVICE, batch_size=256), 128, MANY)
    assert fast >= TIMES_TWO_CORES * slow, f"{fast:.1f} points/s, {slow:.1f} on two cores"


@pytest.mark.parametrize(("queries", "least"), [("frozen", FROZEN), ("conditioned", CONDITIONED)])
def test_a_model_of_the_large_shape_labels_fast_and_in_the_memory_that_its_recipes_name(sd14, queries, least):
    teacher = PromptOptimization(sd14, device=DEVICE, queries=queries, precision="bf16", **SD14)
    with PeakMemory(DEVICE) as memory:
        found = rate(teacher, SIZE, MANY)
    assert all(cache.currsize <= cache.maxsize for cache in teacher.batch.caches)
    assert memory.mib * 2**20 < CARD_GB * 1e9
    assert found >= least, f"{found:.1f} points/s"


@pytest.mark.parametrize("queries", ["frozen", "conditioned"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_faster_than_single(sd14, queries, precision):
    rates = {
        name: rate(PromptOptimization(sd14, device=DEVICE, queries=queries, precision=name, **SD14), SIZE, MANY)
        for name in ("fp32", precision)
    }
    assert rates[precision] > rates["fp32"], rates


def test_half_precision_answers_nearly_as_single(root):
    model, pairs = str(root / "checkpoints" / "sd-mini"), batch(FEW, 128, 2)
    answers = {
        name: PromptOptimization(model, device=DEVICE, precision=name).match_pairs(pairs)
        for name in ("fp32", "bf16", "fp16")
    }
    for answer in answers.values():
        assert {field.dtype for field in answer} == {torch.float32}
        distance = (answer.trg_kps - answers["fp32"].trg_kps).norm(dim=-1)[pairs.kps_mask]
        assert distance.median() < 2, "px of 128"
