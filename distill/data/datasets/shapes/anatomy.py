"""What an object is made of: ellipsoids and boxes, and named keypoints on or inside of them.

Object frame: x points where the object faces, y to its left, z up; lengths are relative, the scene scales the whole.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Kind = Literal["ellipsoid", "box"]


@dataclass
class Anatomy:
    """An object under construction: primitives and keypoints are added one after the other.

    Attributes:
        group: for each primitive the name of the colour group it is painted with ("head", "wheels").
        keypoints: (position in the object frame, primitive it sits on) by name; names that differ only in
            ``left_`` and ``right_`` form a pair.
    """

    kind: list[Kind] = field(default_factory=list)
    centre: list[Vector] = field(default_factory=list)
    half: list[Vector] = field(default_factory=list)
    tilt: list[Vector] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    keypoints: dict[str, tuple[NDArray[np.float64], int]] = field(default_factory=dict)

    def add(self, kind: Kind, group: str, centre: Vector, half: Vector, tilt: Vector = (0.0, 0.0, 0.0)) -> int:
        """Adds a primitive and returns its number.

        Args:
            kind: "ellipsoid" or "box".
            group: the colour group.
            centre: x, y, z.
            half: half axes along x, y, z before the tilt.
            tilt: degrees about z, then y, then x; a positive tilt about y lowers the front.
        """
        self.kind.append(kind)
        self.group.append(group)
        self.centre.append(centre)
        self.half.append(half)
        self.tilt.append(tilt)
        return len(self.kind) - 1

    def mark(self, name: str, primitive: int, direction: Vector) -> None:
        """Puts a keypoint on a primitive's surface, or inside of it.

        Args:
            name: for example "left_eye".
            primitive: the number that :meth:`add` returned.
            direction: in units of the half axes; an ellipsoid's point is where this direction leaves it, its centre
                for (0, 0, 0); a box's is this very point, so that (1, 1, 1) is a corner.
        """
        local = np.asarray(direction, dtype=np.float64)
        if self.kind[primitive] == "ellipsoid" and local.any():
            local = local / np.linalg.norm(local)
        turned = rotation(self.tilt[primitive]) @ (local * self.half[primitive])
        self.keypoints[name] = (turned + self.centre[primitive], primitive)

    def both_sides(
        self, kind: Kind, group: str, centre: Vector, half: Vector, tilt: Vector = (0.0, 0.0, 0.0)
    ) -> tuple[int, int]:
        """Adds a primitive and its mirror image; returns (left, right), the left one lying at +y."""
        x, y, z = centre
        about_z, about_y, about_x = tilt
        left = self.add(kind, group, (x, abs(y), z), half, tilt)
        right = self.add(kind, group, (x, -abs(y), z), half, (-about_z, about_y, -about_x))
        return left, right

    def mark_both(self, name: str, sides: tuple[int, int], direction: Vector) -> None:
        """Marks ``left_<name>`` and ``right_<name>`` on mirrored primitives; ``direction`` is given for the left."""
        x, y, z = direction
        self.mark(f"left_{name}", sides[0], (x, y, z))
        self.mark(f"right_{name}", sides[1], (x, -y, z))


def rotation(degrees: Vector) -> NDArray[np.float64]:
    """Returns the (3, 3) matrix that turns about x, then y, then z by (z, y, x) = ``degrees``."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )
