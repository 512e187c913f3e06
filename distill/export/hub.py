"""Students of the Hugging Face hub: one file of a repository, read as data like any other."""

import os
import re
from pathlib import Path

from distill.core.errors import WeightsError, in_one_line

_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_hub_id(path: str | Path) -> bool:
    """Says whether ``path`` is "owner/name" or "owner/name@revision", and no path of this machine.

    Where a folder "owner" is there, the name is taken for a path in it that is missing, and the hub is not asked.
    """
    match = _HUB_ID.fullmatch(str(path))
    if match is None or not isinstance(path, str) or Path(path).suffix in (".safetensors", ".ckpt", ".pt", ".onnx"):
        return False
    return not os.path.exists(path) and not os.path.isdir(Path(path).parent)


def hub_file(name: str, file: str) -> Path:
    """Returns where ``file`` of the repository ``name`` lies on this machine, fetched where the hub's cache lacks it.

    Raises:
        WeightsError: when the hub does not give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _HUB_ID.fullmatch(name)
    assert match is not None, name
    try:
        return Path(hf_hub_download(match["repository"], file, revision=match["revision"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected a student's file, a bundle's folder or a repository of the Hugging Face hub but {name} is no path here "
            f"and the hub does not give its {file} ({reason}); check the name, or HF_HUB_OFFLINE."
        ) from error
