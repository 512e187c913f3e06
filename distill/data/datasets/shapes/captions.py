"""What is said of a picture: the truth, and truths with one detail changed."""

from dataclasses import dataclass, replace

import numpy as np

DECOYS = 3
"""Wrong captions of a picture."""


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

    def decoys(self, rng: np.random.Generator) -> list[str]:
        """Returns captions that hold much the same words and are wrong in one detail: the facing, or where two colours are.

        Who tells these from the truth has to know the parts, where a list of words would not do.
        """
        turned = replace(self, yaw=self.yaw + 180)
        return [turned.caption(), *(self._exchanged(rng).caption() for _ in range(DECOYS - 1))]

    def _exchanged(self, rng: np.random.Generator) -> "Description":
        one, other = rng.choice(list(self.colours), 2, replace=False)
        exchanged = self.colours | {one: self.colours[other], other: self.colours[one]}
        return replace(self, colours=exchanged)


def facing(yaw: float) -> str:
    """Returns "right", "left", "forward" (towards the viewer) or "away" for a yaw in degrees."""
    across, towards = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    if abs(across) >= abs(towards):
        return "right" if across > 0 else "left"
    return "forward" if towards > 0 else "away"
