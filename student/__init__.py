"""Fast matchers on timm backbones."""

from student.feature_teacher import FeatureTeacher
from student.fused_features import FusedFeatures
from student.matcher import StudentMatcher
from student.nearest_neighbour import NearestNeighbour

__all__ = ["FeatureTeacher", "FusedFeatures", "NearestNeighbour", "StudentMatcher"]
