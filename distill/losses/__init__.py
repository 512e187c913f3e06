"""What a student is trained to minimise; one loss a file, combined and weighted in the configuration."""

from distill.losses.base import DenseStudent, Example, Loss, weighted_mean
from distill.losses.contrastive import Contrastive
from distill.losses.cycle import RelaxedCycle
from distill.losses.equivariance import Equivariance
from distill.losses.heatmap import HeatmapKL
from distill.losses.points import CoordinateHuber
from distill.losses.similarity import SimilarityDistillation

__all__ = [
    "Contrastive",
    "CoordinateHuber",
    "DenseStudent",
    "Equivariance",
    "Example",
    "HeatmapKL",
    "Loss",
    "RelaxedCycle",
    "SimilarityDistillation",
    "weighted_mean",
]
