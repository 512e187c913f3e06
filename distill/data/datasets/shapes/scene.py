"""One scene, drawn from (seed, index) alone: an individual, where it is seen from, its colours, light and background.

Camera frame: u to the right, v down, d away from the viewer; the square image spans [-1, 1] in u and v. The
projection is orthographic. All of this is NumPy in float64, so that a scene is the same on every machine.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ConfigError, nearest
from distill.data.datasets.shapes.anatomy import Anatomy, rotation
from distill.data.datasets.shapes.captions import Description
from distill.data.datasets.shapes.categories import CATEGORIES, PALETTES

Array = NDArray[np.float64]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.13, 0.12),
    "orange": (0.93, 0.52, 0.12),
    "yellow": (0.93, 0.82, 0.20),
    "green": (0.20, 0.60, 0.22),
    "cyan": (0.25, 0.75, 0.80),
    "blue": (0.16, 0.30, 0.78),
    "purple": (0.50, 0.22, 0.62),
    "pink": (0.93, 0.55, 0.70),
    "brown": (0.45, 0.27, 0.14),
    "black": (0.12, 0.12, 0.13),
    "grey": (0.52, 0.53, 0.55),
    "white": (0.93, 0.93, 0.90),
}

# Colours above and below the horizon.
BACKGROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "grass": ((0.62, 0.78, 0.92), (0.35, 0.58, 0.26)),
    "sand": ((0.70, 0.84, 0.94), (0.84, 0.75, 0.53)),
    "snow": ((0.68, 0.74, 0.82), (0.90, 0.92, 0.95)),
    "water": ((0.75, 0.85, 0.93), (0.22, 0.45, 0.62)),
    "street": ((0.70, 0.70, 0.72), (0.40, 0.40, 0.42)),
    "carpet": ((0.86, 0.80, 0.70), (0.60, 0.36, 0.32)),
    "night": ((0.10, 0.11, 0.22), (0.16, 0.19, 0.20)),
}


@dataclass(frozen=True)
class Difficulty:
    """How varied the scenes are.

    Attributes:
        yaw: degrees that the view may turn away from a pure side view; 180 is every direction.
        elevation: degrees (lowest, highest) from which the camera looks down.
        roll: degrees of tilt to either side.
        size: (smallest, largest) share of the image's side that the object's longer side takes.
        main_colour: the chance that a colour group takes the first colour of its category's palette. Parts of real
            things have usual colours (tyres are black); matchers may learn them and must not rely on them.
        any_colour: the chance that a colour group leaves its category's palette.
        jitter: standard deviation of a colour around its name's.
        occluders: the chance that something stands in front.
        clutter: the most things that stand behind.
        off_centre: how much of the free margin the position uses; above 1 the border may cut the object.
    """

    yaw: float
    elevation: tuple[float, float]
    roll: float
    size: tuple[float, float]
    main_colour: float
    any_colour: float
    jitter: float
    occluders: float
    clutter: int
    off_centre: float


MEDIUM = Difficulty(25, (0, 18), 6, (0.6, 0.9), 0.75, 0.05, 0.05, 0.1, 2, 1.0)

DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(10, (0, 10), 3, (0.75, 0.9), 1.0, 0.0, 0.02, 0.0, 0, 0.8),
    "medium": MEDIUM,
    "colourful": replace(MEDIUM, main_colour=0.3, any_colour=0.5),
    "varied": Difficulty(50, (-4, 28), 10, (0.5, 0.92), 0.4, 0.5, 0.065, 0.25, 3, 1.15),  # between medium and hard
    "hard": Difficulty(180, (-10, 40), 15, (0.45, 0.95), 0.0, 1.0, 0.08, 0.4, 5, 1.3),
}


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn, and its keypoints; P primitives (the object's first), K keypoints.

    Attributes:
        category: its name.
        box_shaped: (P,) bool, box or else ellipsoid.
        centre: (P, 3) in the camera frame.
        half: (P, 3) half axes.
        axes: (P, 3, 3) whose columns are the primitives' axes in the camera frame.
        colour: (P, 3) in [0, 1].
        n_object: how many primitives belong to the object.
        keypoint_names: K names.
        keypoints: (K, 3) in the camera frame.
        yaw: degrees; 0 faces right, 180 left, 90 towards the viewer.
        elevation: degrees.
        bbox: (4,) u0, v0, u1, v1 of the object, clipped to the image.
        truncated: whether the border cuts the object.
        light: (3,) unit vector towards the light.
        ground: (2, 3) colours above and below the horizon.
        horizon: v of the horizon.
        texture_seed: seeds the background's texture.
        description: what its caption says.
    """

    category: str
    box_shaped: NDArray[np.bool_]
    centre: Array
    half: Array
    axes: Array
    colour: Array
    n_object: int
    keypoint_names: tuple[str, ...]
    keypoints: Array
    yaw: float
    elevation: float
    bbox: Array
    truncated: bool
    light: Array
    ground: Array
    horizon: float
    texture_seed: int
    description: Description

    @property
    def caption(self) -> str:
        """Names category, facing, colours and background."""
        return self.description.caption()

    def without_extras(self) -> "Scene":
        """Returns the scene with nothing but the object."""
        n = self.n_object
        return replace(
            self,
            box_shaped=self.box_shaped[:n],
            centre=self.centre[:n],
            half=self.half[:n],
            axes=self.axes[:n],
            colour=self.colour[:n],
        )


def sample_scene(seed: int, index: int, difficulty: str) -> Scene:
    """Draws scene number ``index``; the categories take turns.

    Raises:
        ConfigError: for an unknown difficulty.
    """
    world = find_difficulty(difficulty)
    rng = np.random.default_rng([seed, index])
    category = list(CATEGORIES)[index % len(CATEGORIES)]
    anatomy = Anatomy()
    CATEGORIES[category](anatomy, lambda low, high: float(rng.uniform(low, high)))
    turn, yaw, elevation = _view(rng, world)
    axes = turn @ np.stack([_rotation(tilt) for tilt in anatomy.tilt])
    centre = np.asarray(anatomy.centre) @ turn.T
    half = np.asarray(anatomy.half)
    points = np.stack([position for position, _ in anatomy.keypoints.values()]) @ turn.T
    box_shaped = np.array([kind == "box" for kind in anatomy.kind])
    bounds = _bounds(box_shaped, centre, half, axes)
    scale, shift = _placement(rng, world, bounds)
    centre, half, points = (centre * scale) + shift, half * scale, points * scale + shift
    bounds = bounds * scale + np.concatenate([shift[:2], shift[:2]])
    clipped = bounds.clip(-1, 1)
    names, colour = _paint(rng, world, category, anatomy.group)
    extras = _extras(rng, world, clipped)
    background = str(rng.choice(list(BACKGROUNDS)))
    light = np.array([rng.uniform(-0.7, 0.7), -rng.uniform(0.5, 1.0), -rng.uniform(0.5, 1.0)])
    return Scene(
        category=category,
        box_shaped=np.concatenate([box_shaped, extras[0]]),
        centre=np.concatenate([centre, extras[1]]),
        half=np.concatenate([half, extras[2]]),
        axes=np.concatenate([axes, extras[3]]),
        colour=np.concatenate([colour, extras[4]]),
        n_object=len(half),
        keypoint_names=tuple(anatomy.keypoints),
        keypoints=points,
        yaw=yaw,
        elevation=elevation,
        bbox=clipped,
        truncated=bool((np.abs(bounds - clipped) > 0.02).any()),
        light=light / np.linalg.norm(light),
        ground=np.clip(np.asarray(BACKGROUNDS[background]) + rng.normal(0, 0.05, (2, 3)), 0, 1),
        horizon=float(rng.uniform(-0.3, 0.4)),
        texture_seed=int(rng.integers(2**31)),
        description=Description(category, yaw, names, background),
    )


def find_difficulty(name: str) -> Difficulty:
    """Returns the difficulty of that name; raises a :class:`ConfigError` that lists the names otherwise."""
    if name not in DIFFICULTIES:
        raise ConfigError(f"Expected data.difficulty to name a world but got {name!r}; {nearest(name, DIFFICULTIES)}.")
    return DIFFICULTIES[name]


@cache
def _fixed_rotation(tilt: tuple[float, float, float]) -> Array:
    return rotation(tilt)


def _rotation(tilt: tuple[float, float, float]) -> Array:
    """Most primitives are upright: their rotation need not be computed again for each."""
    return _fixed_rotation(tilt) if tilt == (0.0, 0.0, 0.0) else rotation(tilt)


def _view(rng: np.random.Generator, world: Difficulty) -> tuple[Array, float, float]:
    """Draws a view; returns the matrix from object to camera frame, yaw and elevation."""
    yaw = float(rng.integers(2) * 180 + rng.uniform(-world.yaw, world.yaw))
    elevation = float(rng.uniform(*world.elevation))
    roll = float(rng.uniform(-world.roll, world.roll))
    # Object (x forward, y left, z up) seen from its right side: u = x, v = -z, d = y. A yaw of 90 faces the viewer.
    side = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    tilt = rotation((roll, 0, elevation))
    return tilt @ side @ rotation((-yaw, 0, 0)), yaw % 360, elevation


def _bounds(box_shaped: NDArray[np.bool_], centre: Array, half: Array, axes: Array) -> Array:
    """Returns (4,) u0, v0, u1, v1 of the smallest box around primitives."""
    spokes = np.abs(axes[:, :2] * half[:, None])
    reach = np.where(box_shaped[:, None], spokes.sum(-1), np.sqrt((spokes**2).sum(-1)))
    return np.concatenate([(centre[:, :2] - reach).min(0), (centre[:, :2] + reach).max(0)])


def _placement(rng: np.random.Generator, world: Difficulty, bounds: Array) -> tuple[float, Array]:
    """Draws a scale and a (3,) shift that bring ``bounds`` into the image."""
    extent = bounds[2:] - bounds[:2]
    scale = float(2 * rng.uniform(*world.size) / extent.max())
    margin = 1 - scale * extent / 2
    target = rng.uniform(-1, 1, 2) * margin * world.off_centre
    shift = target - scale * (bounds[:2] + bounds[2:]) / 2
    return scale, np.array([*shift, 0.0])


def _paint(
    rng: np.random.Generator, world: Difficulty, category: str, groups: list[str]
) -> tuple[dict[str, str], Array]:
    """Draws a named colour for each group; returns the names and (P, 3) colours."""
    names, shades = {}, {}
    for group, palette in PALETTES[category].items():
        draw = rng.random()
        if draw < world.main_colour:
            palette = palette[:1]
        elif draw < world.main_colour + world.any_colour:
            palette = tuple(COLOURS)
        names[group] = palette[rng.integers(len(palette))]
        shades[group] = np.asarray(COLOURS[names[group]]) + rng.normal(0, world.jitter, 3)
    return names, np.clip(np.stack([shades[group] for group in groups]), 0.02, 1)


def _extras(
    rng: np.random.Generator, world: Difficulty, bbox: Array
) -> tuple[NDArray[np.bool_], Array, Array, Array, Array]:
    """Draws clutter behind the object and occluders in front, as primitives."""
    behind = int(rng.integers(world.clutter + 1))
    front = int(rng.random() < world.occluders)
    n = behind + front
    centre = rng.uniform(-1, 1, (n, 3))
    centre[:behind, 2] = 4.0
    half = rng.uniform(0.06, 0.22, (n, 3))
    if front:
        # In front of some part of the object, small enough to leave most of it in sight.
        centre[-1] = [*rng.uniform(bbox[:2], bbox[2:]), -4.0]
        half[-1] = rng.uniform(0.06, 0.14, 3)
    axes = np.stack([rotation(tuple(rng.uniform(0, 360, 3))) for _ in range(n)]) if n else np.zeros((0, 3, 3))
    names = list(COLOURS)
    colour = np.array([COLOURS[names[i]] for i in rng.integers(len(names), size=n)]).reshape(n, 3)
    return rng.random(n) < 0.5, centre, half, axes, colour
