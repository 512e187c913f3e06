"""A student as a folder for sharing, in the layout of the Hugging Face hub.

``model.safetensors`` is the student's file, which ``load_student(folder)`` reads; ``config.json`` holds its configuration for
people and tools, and is not read back; ``README.md`` is the model card.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import ConfigError, WeightsError
from distill.core.files import replacing
from distill.core.squares import PADDING_GREY
from distill.export.student_file import BUNDLED, read_about, read_student_file, save_tensors

LIBRARY = "distill"


def write_bundle(ckpt: str | Path, folder: str | Path) -> Path:
    """Writes the bundle of the student in ``ckpt``; an older bundle in ``folder`` is replaced, and other files are left.

    Returns:
        The folder.

    Raises:
        ConfigError: when ``folder`` holds a file of a bundle's names but no bundle.
        WeightsError: when ``ckpt`` is missing, damaged or no student.
        DataError: when the folder cannot be written to.
    """
    folder = Path(folder)
    config, tensors = read_student_file(ckpt)
    _check_folder(folder)
    about = read_about(ckpt)
    save_tensors(tensors, config, folder / BUNDLED, about)
    texts = {
        "config.json": json.dumps({"library_name": LIBRARY, **config}, indent=2) + "\n",
        "README.md": model_card(config, about, sum(value.numel() for value in tensors.values())),
    }
    for name, text in texts.items():
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return folder


def _check_folder(folder: Path) -> None:
    """Refuses a folder of another project or network, whose README.md, configuration or weights would be replaced."""
    held = [name for name in (BUNDLED, "config.json", "README.md") if (folder / name).exists()]
    try:
        if held and BUNDLED not in held:
            raise WeightsError(f"there is no {BUNDLED}")
        if held:
            read_student_file(folder / BUNDLED)
    except WeightsError as error:
        raise ConfigError(
            f"Expected a new folder or an older bundle in bundle={folder} but it holds {held[0]} of something else; name another."
        ) from error


def model_card(config: Mapping[str, Any], about: Mapping[str, Any], n_values: int) -> str:
    """Returns a model card: front matter of the hub, use, origin, figures with their conventions, limits, licences."""
    licence = about.get("licences", {}).get("student", "other")
    backbone = config.get("backbone", "see config.json")
    head = f"---\nlibrary_name: {LIBRARY}\nlicense: {json.dumps(licence)}\ntags: [semantic-correspondence, keypoint-matching]\n---\n"
    parts = [
        head,
        "# Semantic matcher",
        f"Finds where points of one image lie in another. Backbone {backbone}, {n_values} values, images of {config['size']} x "
        f"{config['size']} px.",
        '```python\nimport distill\n\nstudent = distill.load_student("this-folder")\nanswer = distill.match_images(\n    student, '
        'distill.read_image("a.jpg"), distill.read_image("b.jpg"), [[120, 80]]\n)\n```',
        "## Origin",
        _listed(about, ("teacher", "data")),
        "## Figures",
        _listed(about, ("figures",)),
        "## Conventions",
        "- Points are x, y in pixels of the image they lie on; the centre of the top-left pixel is (0.5, 0.5).\n"
        "- A figure pck@A is the share of points, in percent, within A times the longer side of what its convention names: the "
        "object's box (bbox), the image (img) or the box of its points (kps_bbox); averaged over images where it says per image.\n"
        f"- Images are RGB in [0, 1], {_resized(config)}.",
        "## Limits",
        "- Every point gets an answer, also one that is hidden in the target; the confidence says how sure it is.\n"
        "- Objects unlike those of the data above, and the two sides of symmetric objects, are matched worse.",
        "## Licences",
        _listed(about, ("licences",)),
    ]
    return "\n\n".join(parts) + "\n"


def _resized(config: Mapping[str, Any]) -> str:
    """Returns how a student of ``config`` wants its images to be brought to its square."""
    square = f"{config['size']} x {config['size']} px"
    if config.get("resize", "squash") == "letterbox":
        grey = f"grey of {PADDING_GREY}/255"
        return f"resized so that the longer side fills {square}, centred there, and padded with {grey}; match_images does it"
    return f"resized to {square} without keeping the ratio of their sides; match_images does it"


def _listed(about: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Returns what is known under ``keys`` as a list, or that it was not recorded."""
    lines = []
    for key in keys:
        told = ", ".join(f"{name} {_plain(inner)}" for name, inner in about.get(key, {}).items())
        lines.append(f"- {key}: {told or 'not recorded in the file'}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
