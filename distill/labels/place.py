"""Where a teacher's labels lie when several teachers are asked in one place."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from distill.core.errors import LabelError
from distill.labels.folder import LabelFolder, mismatch


def place_for(folder: str | Path, fingerprint: Mapping[str, str]) -> Path:
    """Returns the folder for the labels of one teacher.

    Args:
        folder: where they lie if it is empty, or holds that teacher's labels already.
        fingerprint: of the teacher.

    Returns:
        ``folder``; or where it holds labels of another teacher, the folder beside it whose name ends in eight digits of a
        digest of ``fingerprint``, the same every time.
    """
    path = Path(folder)
    try:
        held = LabelFolder(path).fingerprint
    except LabelError:  # damaged: whoever reads it says so
        return path
    if held is None or not mismatch(held, fingerprint):
        return path
    digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()
    return path.with_name(f"{path.name}-{digest[:8]}")
