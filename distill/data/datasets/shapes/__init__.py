"""Procedural objects with exact keypoints."""

from distill.data.datasets.shapes.images import SPLITS, CaptionedShapes
from distill.data.datasets.shapes.pairs import ShapesPairs
from distill.data.datasets.shapes.scene import sample_scene

__all__ = ["SPLITS", "CaptionedShapes", "ShapesPairs", "sample_scene"]
