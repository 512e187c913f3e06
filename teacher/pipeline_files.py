"""The files of a Stable Diffusion pipeline folder: where they lie, which of them are read, and their digest.

Only JSON and safetensors files are read: nothing in a folder can run code. Weights may come in variants, such as the half-precision
files ``*.fp16.safetensors`` that ``variant="fp16"`` of diffusers downloads, and in several pieces with an index.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open

from distill.core.errors import WeightsError, in_one_line

CONFIGS = {
    "unet": "config.json",
    "transformer": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
}
_PIECE = r"(?:-\d+-of-\d+)"
_WEIGHTS = re.compile(rf"(?:diffusion_pytorch_)?model{_PIECE}?(?:\.(?P<variant>\w+))?{_PIECE}?\.safetensors")
_INDEX = re.compile(r"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_DTYPES = {"F16": "float16", "F32": "float32", "BF16": "bfloat16"}


PARTS = ("unet", "vae", "text_encoder")
"""Parts with weights that the teachers on UNets read."""


def locate_folder(model: str, variant: str | None = None, parts: tuple[str, ...] = PARTS) -> Path:
    """Returns the local folder of ``model``, downloading what is needed of a hub id.

    Args:
        model: a pipeline folder, a folder of the hub's cache (``models--org--name``), or a hub id.
        variant: of the weights to download.
        parts: whose weights are downloaded.

    Raises:
        WeightsError: when there is no such folder, and when ``model`` is a single file.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _snapshot(path) if re.match("models--", path.name) else path
    if path.is_file():
        raise WeightsError(_single_file(path))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise WeightsError(f"Expected a pipeline folder or a hub id as model but found no folder {model!r}; check it.")
    try:
        return Path(snapshot_download(model, allow_patterns=_hub_files(variant, parts)))
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected a pipeline folder or a hub id as model but {model!r} is no folder here and could not be "
            f"downloaded ({reason}); check the name, or download it first."
        ) from error


def _hub_files(variant: str | None, parts: tuple[str, ...]) -> list[str]:
    """Returns patterns of the files to download of a repository: weights of one variant only, and no pickles."""
    name = f".{variant}" if variant else ""
    weights = (f"*model{name}.safetensors", f"*model-*-of-*{name}.safetensors", f"*model{name}-*-of-*.safetensors")
    return [
        "*/*.json",
        "tokenizer/merges.txt",
        *(f"{part}/{file}" for part in parts for file in dict.fromkeys(weights)),
    ]


def _snapshot(cache: Path) -> Path:
    """Returns the revision of a folder of the hub's cache that "main" names, or the only one."""
    main = cache / "refs" / "main"
    revisions = sorted(path for path in (cache / "snapshots").glob("*") if path.is_dir())
    if (
        main.is_file()
        and (named := cache / "snapshots" / main.read_bytes().decode("ascii", "replace").strip()) in revisions
    ):
        return named
    if len(revisions) == 1:
        return revisions[0]
    found = "several snapshots" if revisions else "no snapshot"
    hub_id = cache.name.removeprefix("models--").replace("--", "/")
    raise WeightsError(
        f"Expected a pipeline folder as model but {cache} is a cache folder of the hub with {found}; name "
        f"{hub_id}, or one of the folders in {cache / 'snapshots'}."
    )


def _single_file(file: Path) -> str:
    folder = file.parent.parent
    if (folder / "model_index.json").is_file():
        return f"Expected a pipeline folder as model but {file} is one of a pipeline's files; name {folder}."
    return (
        f"Expected a pipeline folder as model but {file} is a single file; convert it once: python -c "
        f"\"from diffusers import StableDiffusionPipeline as P; P.from_single_file('{file}').save_pretrained('{file.with_suffix('')}')\""
        f" and name {file.with_suffix('')}. A .ckpt file is a pickle: convert only one that you trust."
    )


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Returns a part's configuration.

    Raises:
        WeightsError: when the file is missing, cut, or not a JSON object.
    """
    return _read_json(folder / part / CONFIGS[part])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"Expected a JSON object in {file} but got: {in_one_line(error)}; copy it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"Expected a JSON object in {file} but got a {type(content).__name__}; copy it again.")
    return content


def variants(folder: Path, part: str) -> dict[str, list[Path]]:
    """Returns the weight files of each variant of a part, the pieces that an index names included; "" is the plain one."""
    found: dict[str, set[Path]] = {}
    for file in (folder / part).glob("*"):
        if match := _WEIGHTS.fullmatch(file.name):
            found.setdefault(match["variant"] or "", set()).add(file)
        elif match := _INDEX.fullmatch(file.name):
            found.setdefault(match["variant"] or "", set()).update(_pieces(file))
    return {variant: sorted(files) for variant, files in found.items()}


def _pieces(index: Path) -> list[Path]:
    pieces = _read_json(index).get("weight_map")
    names = set(pieces.values()) if isinstance(pieces, dict) and all(map(_is_name, pieces.values())) else set()
    if not names:
        raise WeightsError(f"Expected names of safetensors files beside it in {index} but got none; copy it again.")
    return [index.with_name(name) for name in names]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_WEIGHTS.fullmatch(name))


def part_variant(folder: Path, part: str, asked: str | None) -> str:
    """Returns which variant of a part is read: the one asked for, else the plain files, else the only one there is.

    Raises:
        WeightsError: when there are only others than the one asked for, or several and none was asked for.
    """
    there = variants(folder, part)
    if asked and asked in there:
        return asked
    if "" in there or not there:
        return ""
    names = ", ".join(sorted(there))
    if asked:
        raise WeightsError(f"Expected weights of variant {asked!r} in {folder / part} but there are {names}; name one.")
    if len(there) > 1:
        raise WeightsError(
            f"Expected one kind of weights in {folder / part} but there are several variants ({names}) and no plain "
            f"files; choose with variant=, such as teacher.variant={sorted(there)[0]}."
        )
    return names


def weight_files(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """Returns the files that a part's weights are read from, whether or not all of them are there."""
    return variants(folder, part).get(part_variant(folder, part, variant), [])


def missing_files(folder: Path, parts: tuple[str, ...], variant: str | None = None) -> list[str]:
    """Returns what ``folder`` lacks of its parts: configurations, weights, pieces of weights and their index."""
    missing = [f"{part}/{CONFIGS[part]}" for part in parts if not (folder / part / CONFIGS[part]).is_file()]
    for part in (part for part in parts if part not in ("scheduler", "tokenizer")):
        files = weight_files(folder, part, variant)
        missing += [f"{part}/{file.name}" for file in files if not file.is_file()]
        if not files:
            missing.append(f"{part}/*.safetensors")
        elif any(re.search(_PIECE, file.name) for file in files):
            kind, chosen = files[0].name.split("model")[0], part_variant(folder, part, variant)
            index = f"{kind}model.safetensors.index{'.' * bool(chosen)}{chosen}.json"
            missing += [] if (folder / part / index).is_file() else [f"{part}/{index}"]
    return missing


def weights_digest(folder: Path, with_text: bool, variant: str | None = None) -> str:
    """Returns a hash of UNet, VAE and noise schedule, and of the text encoder where it decides answers too."""
    return parts_digest(folder, ("scheduler", "unet", "vae", *(("text_encoder",) if with_text else ())), variant)


def parts_digest(folder: Path, parts: Sequence[str], variant: str | None = None) -> str:
    """Returns a hash of the configurations and weights of a pipeline's parts.

    Where a part was read from and by which version it was written, which diffusers keeps in a part's configuration, make
    no difference.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = {part: weight_files(folder, part, variant) for part in parts if part != "scheduler"}
    for part in parts:
        config = _as_written(read_config(folder, part), files.get(part, []))
        digest.update(json.dumps(config, sort_keys=True).encode())
    for file in (file for some in files.values() for file in some):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """Returns a hash of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _as_written(config: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """Returns a part's configuration without differences that do not change its answers.

    Left out are the place and the version that a part was read from. Two entries that only repeat others are set as the
    libraries write them: ``block_out_channels`` of an ``AutoencoderTiny``, which repeats the decoder's and which diffusers
    warns about; and the ``dtype`` of a text encoder, which is that of the first of its weight ``files``.
    """
    told = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version")}
    if told.get("_class_name") == "AutoencoderTiny" and "decoder_block_out_channels" in told:
        told["block_out_channels"] = told["decoder_block_out_channels"]
    if "dtype" in told and files:
        with safe_open(files[0], "pt") as weights:
            kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        told["dtype"] = next((name for kind, name in _DTYPES.items() if kind in kinds), told["dtype"])
    return told
