"""Captions of the procedural world."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Description:
    """What a caption says.

    Attributes:
        category: its name.
        yaw: degrees; 0 faces right, 180 left, 90 towards the viewer.
        colours: by colour group.
        background: its name.
    """

    category: str
    yaw: float
    colours: dict[str, str]
    background: str

    def caption(self) -> str:
        """Returns for example "a photo of a dog facing left with brown head white body black legs on grass"."""
        painted = " ".join(f"{colour} {group}" for group, colour in self.colours.items())
        return f"a photo of a {self.category} facing {facing(self.yaw)} with {painted} on {self.background}"


def facing(yaw: float) -> str:
    """Returns "right", "left", "forward" (towards the viewer) or "away" for a yaw in degrees."""
    across, towards = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    if abs(across) >= abs(towards):
        return "right" if across > 0 else "left"
    return "forward" if towards > 0 else "away"
