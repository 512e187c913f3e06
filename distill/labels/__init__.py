"""Labels: a teacher's answers, stored so that they are made once and never mistaken for another teacher's."""

from distill.labels.folder import mismatch
from distill.labels.store import LabelStore

__all__ = ["LabelStore", "mismatch"]
