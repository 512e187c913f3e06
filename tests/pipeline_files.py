"""Reading and changing the files of a pipeline's folder."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from teacher.pipeline import load_pipeline

QUICK = {"steps": 2, "embeddings": 1, "crop_pool": 4, "crops": 2, "prompt_length": 7, "device": "cpu"}
CONDITIONED = {**QUICK, "queries": "conditioned", "consensus": 0.0, "layers": ["up@1/4"], "confidence": ["peak_mass"]}


def load(folder, **options):
    return load_pipeline(str(folder), prompt_length=7, **options)


def rename_to_variant(folder: Path, variant: str, parts: tuple[str, ...] = ("unet", "vae")) -> None:
    for part in parts:
        file = folder / part / "diffusion_pytorch_model.safetensors"
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file.with_suffix(f".{variant}.safetensors"), metadata={"format": "pt"})
        file.unlink()


def edit(file: Path, **changes) -> None:
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes}))


def set_scheduler(folder: Path, **config) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def write_shards(part: Path, name: str, index: str) -> list[Path]:
    file = part / "diffusion_pytorch_model.safetensors"
    weights = list(load_file(file).items())
    file.unlink()
    half, files, where = len(weights) // 2, [], {}
    for i, some in enumerate((weights[:half], weights[half:])):
        files.append(part / f"{name.format(f'-0000{i + 1}-of-00002')}.safetensors")
        save_file(dict(some), files[-1], metadata={"format": "pt"})
        where |= {key: files[-1].name for key, _ in some}
    (part / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return files
