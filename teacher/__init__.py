"""Slow matchers on diffusion models."""

from teacher.dift import DiffusionFeatures
from teacher.dit import TransformerFeatures
from teacher.prompt_optimization import PromptOptimization
from teacher.reference import ReferencePromptOptimization

__all__ = ["DiffusionFeatures", "PromptOptimization", "ReferencePromptOptimization", "TransformerFeatures"]
