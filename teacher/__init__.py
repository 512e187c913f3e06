"""Slow matchers on diffusion models."""

from teacher.prompt_optimization import PromptOptimization

__all__ = ["PromptOptimization"]
