"""From trained parts to a pipeline folder that diffusers loads, and pictures drawn with it."""

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ConfigMixin, StableDiffusionPipeline
from PIL import Image
from torch import nn

from teacher.pretrain.diffusion import DiffusionTraining


def assemble(module: DiffusionTraining) -> StableDiffusionPipeline:
    """Returns a pipeline of the module's parts as they are now; nothing is copied."""
    return StableDiffusionPipeline(
        vae=module.autoencoder,
        text_encoder=module.text_encoder,
        tokenizer=module.tokenizer,
        unet=module.unet,
        scheduler=module.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(module: DiffusionTraining, folder: Path) -> None:
    """Writes the parts as a diffusers pipeline folder in half precision; an older one is replaced once the new one is whole.

    diffusers loads it in single precision without further arguments.
    """
    pipeline = assemble(module)
    for name in ("vae", "text_encoder", "unet"):
        part: nn.Module = getattr(pipeline, name)
        kept = copy.deepcopy(part).half()
        if isinstance(kept, ConfigMixin):
            kept.register_to_config(_name_or_path="")  # a path of this machine does not belong in the file
        setattr(pipeline, name, kept)
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline.save_pretrained(draft, safe_serialization=True)
    # transformers loads weights in the precision that is named here, diffusers in single precision whatever the file's.
    _edit(draft / "text_encoder" / "config.json", dtype="float32")
    _edit(draft / "vae" / "config.json", block_out_channels=None)
    _replace(folder, draft)


def _replace(folder: Path, draft: Path) -> None:
    """Puts ``draft`` in the place of ``folder``, which is removed last: a whole one is there at any time but between two renamings."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_autoencoder(autoencoder: AutoencoderTiny, folder: Path) -> None:
    """Writes an autoencoder as diffusers does; the folder appears whole or not at all."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    autoencoder.save_pretrained(draft, safe_serialization=True)
    _edit(draft / "config.json", block_out_channels=None)
    draft.rename(folder)


def _edit(file: Path, **changes: str | None) -> None:
    """Changes entries of a configuration; None removes one, such as those that diffusers writes and then warns about."""
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    told = {key: value for key, value in config.items() if not (key in changes and value is None)}
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def draw_grid(pipeline: StableDiffusionPipeline, captions: list[str], seed: int, steps: int = 20) -> Image.Image:
    """Draws one picture a caption and lays them out in rows of four."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    pictures = pipeline(captions, num_inference_steps=steps, guidance_scale=3.0, generator=generator).images
    width, height = pictures[0].size
    rows = -(-len(pictures) // 4)
    grid = Image.new("RGB", (4 * width, rows * height))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % 4 * width, i // 4 * height))
    return grid
