"""Fast semantic matchers distilled from prompt optimisation in Stable Diffusion.

The names below are imported when they are first used: ``import distill`` alone does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from distill.core.version import __version__

if TYPE_CHECKING:
    from distill.core.protocols import Matcher
    from distill.core.types import Matches, PairBatch
    from distill.data.images import read_image
    from distill.export.student_file import load_student
    from distill.matchers.match_images import match_images

__all__ = ["Matcher", "Matches", "PairBatch", "__version__", "load_student", "match_images", "read_image"]

_MODULES = {
    "Matcher": "distill.core.protocols",
    "Matches": "distill.core.types",
    "PairBatch": "distill.core.types",
    "load_student": "distill.export.student_file",
    "match_images": "distill.matchers.match_images",
    "read_image": "distill.data.images",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
