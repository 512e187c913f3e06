"""Fast semantic matchers distilled from prompt optimisation in Stable Diffusion."""

from distill.core.protocols import Matcher
from distill.core.types import Matches, PairBatch

__version__ = "0.1.0"
__all__ = ["Matcher", "Matches", "PairBatch", "__version__"]
