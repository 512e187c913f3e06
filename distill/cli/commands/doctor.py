"""Check versions, devices, weights and data sets; each problem comes with its remedy.

The exit code is 2 when there is a problem. Which data set lies in data_root is recognised by its files.

Examples:
  python -m distill doctor
  python -m distill doctor model=stable-diffusion-v1-5 data_root=CUB_200_2011
"""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from distill.cli.config import compose, instantiate, shipped
from distill.core.errors import DataError, DistillError, in_one_line
from distill.data.download import licence_of
from distill.export.licences import UNKNOWN, weights_licence
from distill.system.environment import describe

PARTS = ("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "torchmetrics", "onnxruntime")


LAYOUTS = {
    "cub": ("images.txt",),
    "spair71k": ("PairAnnotation", "Layout"),
    "ap10k": ("PairAnnotation", "ImageAnnotation"),
    "soco": ("PairAnnotations", "Images"),
    "pf_pascal": ("Annotations", "JPEGImages"),
    "pf_willow": ("duck(S)",),
}
"""What lies in the folder of a data set, or in a folder in it, and so tells which one it is. Any other is a folder."""


def run(cfg: DictConfig) -> None:
    """Prints what was found.

    Raises:
        DataError: when there are problems; each is printed.
    """
    for name, value in describe().items():
        print(f"{name:<14} {value}")
    problems = [problem for name in PARTS if (problem := _import_problem(name))]
    problems += _problems("teacher's model", _teacher(str(cfg.model)))
    print(f"{'licence':<14} of the teacher's model: {weights_licence(str(cfg.model))}")
    if cfg.backbone is not None:
        print(f"{'licence':<14} of backbone={cfg.backbone}: {weights_licence(str(cfg.backbone))}")
    if cfg.data_root is not None:
        problems += _data_problems(Path(cfg.data_root))
    labels = sorted(shipped("checkpoints/labels").glob("*/*.safetensors"))
    print(f"{'labels':<14} {len(labels)} files come with the project")
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        raise DataError(f"Expected nothing wrong but found {len(problems)} problems, which are named above; mend them.")
    print("no problems")


def _teacher(model: str) -> dict[str, object]:
    """Returns the teacher that checks a pipeline folder without reading its weights: one with a transformer is of SD3 or FLUX."""
    if (Path(model).expanduser() / "transformer").is_dir():
        return {"_target_": "teacher.TransformerFeatures", "model": model, "block": 0, "discard": []}
    return {"_target_": "teacher.PromptOptimization", "model": model}


def layout(root: Path) -> str:
    """Returns the name of the data set that lies in ``root``, as ``data=`` takes it."""
    folders = [root, *(path for path in root.glob("*") if path.is_dir())]
    found = (name for name, parts in LAYOUTS.items() if any(all((f / p).exists() for p in parts) for f in folders))
    return next(found, "folder")


def _data_problems(root: Path) -> list[str]:
    """Opens the data set in ``root`` and reads its first pair."""
    if not root.is_dir():
        return [f"data set: Expected a folder in data_root but there is none at {root}; correct it."]
    name = layout(root)
    try:
        benchmark = instantiate(compose("data", [f"data={name}", f"data.root={root}", "data.n_pairs=1"]).data)
        benchmark[0]
    except DistillError as error:
        return [f"data set: {error}"]
    print(f"{'data set':<14} data={name} in {root}; python -m distill data check reads all of it")
    print(f"{'licence':<14} of data={name}: {licence_of(name) or UNKNOWN}")
    return []


def _problems(what: str, config: dict) -> list[str]:
    try:
        instantiate(config)
    except Exception as error:  # a broken installation raises whatever its parts do
        return [f"{what}: {in_one_line(error, None)}"]
    return []


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # such as a RuntimeError of torchvision beside another torch
        return f"{name}: {in_one_line(error)}; pip install --upgrade {name}"
    return None
