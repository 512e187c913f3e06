"""Fast matchers on timm backbones."""

from student.feature_teacher import FeatureTeacher
from student.matcher import StudentMatcher
from student.nearest_neighbour import NearestNeighbour

__all__ = ["FeatureTeacher", "NearestNeighbour", "StudentMatcher"]
