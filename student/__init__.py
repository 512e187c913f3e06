"""Fast matchers on timm backbones."""

from student.matcher import StudentMatcher
from student.nearest_neighbour import NearestNeighbour

__all__ = ["NearestNeighbour", "StudentMatcher"]
