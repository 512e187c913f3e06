"""What comes with the project: it is whole, small, and of a piece."""

import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from distill.cli.config import compose, instantiate
from distill.cli.datasets import pairs_of
from distill.data.datasets.shapes import ShapesPairs
from distill.data.datasets.shapes.captions import facing
from distill.labels import LabelStore
from distill.labels.generate import query_of
from distill.labels.shard import open_shard
from teacher.feature_cache import KeyedImage
from teacher.neighbourhood_consensus import consensus_maps

MIB = 2**20


@pytest.fixture(scope="module")
def model(root):
    return root / "checkpoints" / "sd-mini"


def test_the_small_stable_diffusion_is_half_precision_and_small(model):
    files = list(model.rglob("*.safetensors"))
    assert len(files) == 3 and sum(path.stat().st_size for path in model.rglob("*")) <= 24 * MIB
    for file in files:
        with safe_open(file, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} <= {torch.float16, torch.int64}  # noqa: SIM118


def test_diffusers_loads_it_and_draws_different_pictures_for_different_captions(model):
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(caption, num_inference_steps=6, guidance_scale=3.0, generator=torch.Generator().manual_seed(0)).images[
            0
        ]
        for caption in ("a red car on grass", "a blue car on grass")
    ]
    red, blue = (torch.from_numpy(np.array(picture, dtype=np.float32)).mean((0, 1)) for picture in pictures)
    assert pictures[0].size == (128, 128) and red[0] - red[2] > blue[0] - blue[2]


def test_diffusers_loads_it_without_further_arguments_or_warnings(model):
    code = (
        "from diffusers import StableDiffusionPipeline\n"
        f"pipeline = StableDiffusionPipeline.from_pretrained({str(model)!r})\n"
        "print(pipeline('a red car on grass', num_inference_steps=1).images[0].size)"
    )
    # Other tests call the command line in this process, which quiets the libraries by variables that a child inherits.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(128, 128)"
    # diffusers says of every pipeline with an AutoencoderTiny that its annotation names AutoencoderKL.
    told = re.sub(r"[^\r\n]*\|[^\r\n]*(s/it|it/s)\]", "", done.stderr)  # progress bars
    told = re.sub(r".*autocast_mode.py:.*\n *warnings.warn\(", "", told)  # torch 2.8, where there is no GPU
    lines = [line.removeprefix("\x1b[A").strip() for line in told.splitlines()]
    assert [line[:21] for line in lines if line] == ["Expected types for va"]


def test_the_card_names_the_weights_that_are_there(model):
    card = (model / "README.md").read_text(encoding="utf-8")
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        digest = hashlib.sha256((model / part / f"{name}.safetensors").read_bytes()).hexdigest()
        assert digest in card, f"the card does not know the weights of {part}"
    assert re.search(r"PCK", card) and re.search(r"PSNR", card)


def test_the_default_teacher_answers_on_the_default_data(root):
    config = compose("fit", ["device=cpu", "teacher.steps=2"])
    pair = ShapesPairs("val", 8, 0, 128)[0]
    answer = instantiate(config.teacher).match_pairs(pair)
    assert ((answer.trg_kps >= 0) & (answer.trg_kps <= 128)).all() and answer.heatmap.std() > 0


@pytest.mark.slow
def test_the_default_teacher_tells_which_way_objects_face():
    teacher, pairs = instantiate(compose("fit", ["device=cpu"]).teacher), ShapesPairs("val", 30, 0, 128)
    right = 0
    for number in range(30):
        pair, (src, trg) = pairs[number], pairs.pairs[number]
        images = KeyedImage(pair.src_img[0], pair.src_hash[0]), KeyedImage(pair.trg_img[0], pair.trg_hash[0])
        found = consensus_maps(teacher.features, *images, torch.full((1, 2), 0.5))
        right += found.flipped == (facing(pairs.scene(src).yaw) != facing(pairs.scene(trg).yaw))
    assert right >= 27


def test_the_shipped_labels_are_the_default_teachers_and_cover_the_default_fit():
    config = compose("fit", ["device=cpu"])
    store = LabelStore(config.labels.fallbacks[0], instantiate(config.teacher).fingerprint())
    for split in ("train", "val", "test"):
        pairs = pairs_of(config.data, split, config[split])
        for number in range(0, len(pairs), 40):
            assert store.lookup(pairs[number])[1].all(), f"no labels for pair {number} of {split}"


def test_the_shipped_labels_are_in_the_present_format_and_serve_other_sizes():
    config = compose("fit", ["device=cpu", "data.size=96"])
    store = LabelStore(config.labels.fallbacks[0])
    assert [open_shard(path).converted for path in store.files] == [False]
    pairs = pairs_of(config.data, "val", config.val)
    for number in range(0, len(pairs), 10):
        assert store.lookup(pairs[number])[1].all() and store.known(query_of(pairs, number)).all()


@pytest.mark.slow
def test_a_shipped_label_is_what_the_teacher_answers():
    config = compose("fit", ["device=cpu"])
    teacher = instantiate(config.teacher)
    store = LabelStore(config.labels.fallbacks[0], teacher.fingerprint())
    pair = pairs_of(config.data, "test", config.test)[0]
    one = pair._replace(src_kps=pair.src_kps[:, :2], kps_mask=pair.kps_mask[:, :2])
    stored, answer = store.lookup(one)[0], teacher.match_pairs(one)
    # Rounding differs between machines and grows over the steps; the answer must not.
    assert float((stored.trg_kps - answer.trg_kps).norm(dim=-1).min()) < 2
