"""The kinds of objects. Each function samples one individual with its own proportions.

``stretch(low, high)`` draws a length. A category's palette names the colours that its groups usually have, the
most usual one first.
"""

from collections.abc import Callable

from distill.data.datasets.shapes.anatomy import Anatomy

Stretch = Callable[[float, float], float]

PALETTES: dict[str, dict[str, tuple[str, ...]]] = {
    "dog": {
        "head": ("brown", "black", "orange"),
        "body": ("white", "brown", "grey"),
        "legs": ("black", "white", "yellow"),
        "tail": ("orange", "red", "black"),
    },
    "bird": {
        "head": ("red", "yellow", "blue"),
        "body": ("blue", "green", "white"),
        "wings": ("purple", "black", "cyan"),
        "beak": ("orange", "yellow", "black"),
        "legs": ("orange", "red", "grey"),
    },
    "car": {
        "body": ("red", "blue", "yellow"),
        "cabin": ("cyan", "white", "grey"),
        "wheels": ("black", "brown", "grey"),
        "lights": ("yellow", "white", "orange"),
    },
    "aeroplane": {
        "hull": ("white", "grey", "yellow"),
        "wings": ("blue", "red", "grey"),
        "fin": ("red", "green", "purple"),
        "engines": ("black", "orange", "brown"),
    },
    "chair": {
        "seat": ("red", "green", "purple"),
        "back": ("brown", "yellow", "blue"),
        "legs": ("black", "white", "brown"),
    },
    "fish": {
        "head": ("yellow", "orange", "green"),
        "body": ("orange", "blue", "pink"),
        "tail": ("red", "purple", "white"),
        "fins": ("yellow", "pink", "black"),
    },
    "boat": {
        "hull": ("brown", "blue", "red"),
        "cabin": ("white", "yellow", "green"),
        "mast": ("black", "brown", "grey"),
        "sail": ("white", "pink", "orange"),
    },
    "bicycle": {
        "wheels": ("black", "grey", "brown"),
        "frame": ("red", "green", "blue"),
        "saddle": ("brown", "purple", "black"),
        "handlebar": ("white", "yellow", "orange"),
    },
}


def dog(body: Anatomy, stretch: Stretch) -> None:
    """A four-legged animal: facing +x, standing on z = 0."""
    leg, length, girth = stretch(0.28, 0.45), stretch(0.42, 0.58), stretch(0.16, 0.22)
    z = 2 * leg + 0.6 * girth
    trunk = body.add("ellipsoid", "body", (0, 0, z), (length, 0.8 * girth, girth))
    head_size = stretch(0.15, 0.2)
    head_x, head_z = length + 0.5 * head_size, z + stretch(0.18, 0.34)
    body.add("ellipsoid", "body", (length * 0.86, 0, (z + head_z) / 2), (0.1, 0.09, 0.2), (0, 25, 0))
    head = body.add("ellipsoid", "head", (head_x, 0, head_z), (head_size, 0.8 * head_size, head_size))
    snout_length = stretch(0.1, 0.17)
    snout = body.add("ellipsoid", "head", (head_x + head_size, 0, head_z - 0.05), (snout_length, 0.07, 0.07))
    ears = body.both_sides(
        "ellipsoid", "head", (head_x - 0.05, 0.1, head_z + head_size), (0.06, 0.035, 0.12), (0, 0, -15)
    )
    tail = body.add("ellipsoid", "tail", (-length - 0.1, 0, z + 0.16), (0.045, 0.045, 0.24), (0, -stretch(25, 55), 0))
    front = body.both_sides("box", "legs", (0.66 * length, 0.65 * girth, leg), (0.055, 0.05, leg))
    hind = body.both_sides("box", "legs", (-0.66 * length, 0.65 * girth, leg), (0.06, 0.05, leg))
    body.mark("nose", snout, (1, 0, 0))
    body.mark_both("eye", (head, head), (0.5, 0.75, 0.45))
    body.mark_both("ear", ears, (0, 0, 1))
    body.mark("back", trunk, (0, 0, 1))
    body.mark("belly", trunk, (0, 0, -1))
    body.mark("tail_base", tail, (0, 0, -1))
    body.mark("tail_tip", tail, (0, 0, 1))
    body.mark_both("front_foot", front, (0, 0, -1))
    body.mark_both("hind_foot", hind, (0, 0, -1))


def bird(body: Anatomy, stretch: Stretch) -> None:
    """A standing bird with folded wings."""
    leg, length, girth = stretch(0.14, 0.24), stretch(0.36, 0.5), stretch(0.22, 0.28)
    z = 2 * leg + girth
    trunk = body.add("ellipsoid", "body", (0, 0, z), (length, girth * 0.85, girth), (0, -stretch(8, 25), 0))
    head_size = stretch(0.16, 0.22)
    x, top = length * 0.85, z + girth + 0.5 * head_size
    head = body.add("ellipsoid", "head", (x, 0, top), (head_size, head_size, head_size))
    bill = stretch(0.1, 0.2)
    beak = body.add("ellipsoid", "beak", (x + head_size + 0.6 * bill, 0, top - 0.02), (bill, 0.055, 0.05))
    tail = body.add("box", "wings", (-length - 0.14, 0, z - 0.12), (0.24, 0.1, 0.03), (0, -stretch(15, 35), 0))
    wing_length = stretch(0.26, 0.34)
    wings = body.both_sides(
        "ellipsoid", "wings", (-0.06, 0.8 * girth, z + 0.03), (wing_length, 0.06, 0.15), (0, -22, 0)
    )
    feet = body.both_sides("box", "legs", (0.02, 0.1, leg), (0.035, 0.03, leg))
    body.mark("beak_tip", beak, (1, 0, 0))
    body.mark_both("eye", (head, head), (0.45, 0.8, 0.3))
    body.mark("crown", head, (0, 0, 1))
    body.mark("breast", trunk, (0.9, 0, -0.45))
    body.mark("back", trunk, (-0.3, 0, 1))
    body.mark("belly", trunk, (-0.3, 0, -1))
    body.mark("tail_tip", tail, (-1, 0, 0))
    body.mark_both("wing_tip", wings, (-1, 0, 0))
    body.mark_both("shoulder", wings, (0.9, 0.4, 0))
    body.mark_both("foot", feet, (0, 0, -1))


def car(body: Anatomy, stretch: Stretch) -> None:
    """A car with a bonnet in front and a shorter boot behind."""
    length, width, height = stretch(0.62, 0.8), stretch(0.26, 0.32), stretch(0.12, 0.18)
    wheel = stretch(0.13, 0.18)
    z = wheel + height
    hull = body.add("box", "body", (0, 0, z), (length, width, height))
    roof, shift = stretch(0.26, 0.38), -stretch(0.08, 0.24)
    rise = stretch(0.12, 0.18)
    cabin = body.add("box", "cabin", (shift, 0, z + height + rise), (roof, 0.88 * width, rise))
    front = body.both_sides("ellipsoid", "wheels", (0.6 * length, width, wheel), (wheel, 0.06, wheel))
    rear = body.both_sides("ellipsoid", "wheels", (-0.62 * length, width, wheel), (wheel, 0.06, wheel))
    lamps = body.both_sides("ellipsoid", "lights", (length, 0.65 * width, z + 0.02), (0.05, 0.07, 0.06))
    body.mark_both("headlight", lamps, (1, 0, 0))
    body.mark("front_bumper", hull, (1, 0, -0.8))
    body.mark("rear_bumper", hull, (-1, 0, -0.8))
    body.mark("bonnet", hull, (0.75, 0, 1))
    body.mark_both("roof_front", (cabin, cabin), (1, 1, 1))
    body.mark_both("roof_rear", (cabin, cabin), (-1, 1, 1))
    body.mark_both("front_wheel", front, (0, 1, 0))
    body.mark_both("rear_wheel", rear, (0, 1, 0))


def aeroplane(body: Anatomy, stretch: Stretch) -> None:
    """An airliner in level flight."""
    length, girth = stretch(0.68, 0.85), stretch(0.1, 0.14)
    hull = body.add("ellipsoid", "hull", (0, 0, 0), (length, girth, girth))
    span, chord = stretch(0.4, 0.58), stretch(0.13, 0.18)
    wings = body.both_sides("box", "wings", (-0.02, span, -0.03), (chord, span, 0.025), (-stretch(14, 28), 0, 0))
    height = stretch(0.18, 0.26)
    fin = body.add("box", "fin", (-0.84 * length, 0, height), (0.1, 0.025, height), (0, -stretch(18, 30), 0))
    planes = body.both_sides("box", "fin", (-0.88 * length, 0.16, 0.04), (0.08, 0.16, 0.02), (-18, 0, 0))
    engines = body.both_sides("ellipsoid", "engines", (0.1, 0.45 * span, -0.14), (0.14, 0.07, 0.07))
    body.mark("nose", hull, (1, 0, 0))
    body.mark("tail", hull, (-1, 0, 0))
    body.mark("cockpit", hull, (0.85, 0, 0.5))
    body.mark("belly", hull, (0, 0, -1))
    body.mark("fin_top", fin, (0, 0, 1))
    body.mark_both("wing_tip", wings, (0, 1, 0))
    body.mark_both("tailplane_tip", planes, (0, 1, 0))
    body.mark_both("engine", engines, (1, 0, 0))


def chair(body: Anatomy, stretch: Stretch) -> None:
    """A chair that faces +x."""
    depth, width, leg = stretch(0.3, 0.4), stretch(0.28, 0.36), stretch(0.24, 0.34)
    z = 2 * leg
    seat = body.add("box", "seat", (0, 0, z), (depth, width, 0.05))
    height = stretch(0.3, 0.45)
    back = body.add("box", "back", (-depth - 0.04, 0, z + height), (0.045, width, height), (0, -stretch(0, 12), 0))
    front = body.both_sides("box", "legs", (depth - 0.05, width - 0.05, leg), (0.045, 0.045, leg))
    hind = body.both_sides("box", "legs", (-depth + 0.02, width - 0.05, leg), (0.045, 0.045, leg))
    body.mark_both("seat_front", (seat, seat), (1, 1, 1))
    body.mark_both("back_top", (back, back), (0, 1, 1))
    body.mark("back_middle", back, (1, 0, 0.1))
    body.mark("seat_middle", seat, (0.2, 0, 1))
    body.mark_both("front_foot", front, (0, 0, -1))
    body.mark_both("hind_foot", hind, (0, 0, -1))


def fish(body: Anatomy, stretch: Stretch) -> None:
    """A fish swimming along +x."""
    length, height, width = stretch(0.48, 0.62), stretch(0.2, 0.3), stretch(0.1, 0.15)
    trunk = body.add("ellipsoid", "body", (0, 0, 0), (length, width, height))
    face = stretch(0.2, 0.26)
    head = body.add("ellipsoid", "head", (length - 0.62 * face, 0, 0), (face, 0.9 * width, 0.72 * height))
    fork = stretch(0.16, 0.24)
    x = -length - 0.5 * fork
    upper = body.add("ellipsoid", "tail", (x, 0, 0.6 * fork), (0.08, 0.03, fork), (0, -35, 0))
    lower = body.add("ellipsoid", "tail", (x, 0, -0.6 * fork), (0.08, 0.03, fork), (0, 35, 0))
    sail = stretch(0.14, 0.2)
    dorsal = body.add("ellipsoid", "fins", (-0.06, 0, height), (0.2, 0.025, sail), (0, -20, 0))
    ventral = body.add("ellipsoid", "fins", (-0.16, 0, -height), (0.12, 0.025, 0.12), (0, 25, 0))
    pectoral = body.both_sides("ellipsoid", "fins", (0.12, 1.05 * width, -0.06), (0.13, 0.03, 0.06), (20, -30, 0))
    body.mark("mouth", head, (1, 0, 0))
    body.mark_both("eye", (head, head), (0.35, 0.85, 0.4))
    body.mark("back", trunk, (0.35, 0, 1))
    body.mark("belly", trunk, (0.2, 0, -1))
    body.mark("dorsal_tip", dorsal, (0, 0, 1))
    body.mark("ventral_tip", ventral, (0, 0, -1))
    body.mark("tail_upper", upper, (0, 0, 1))
    body.mark("tail_lower", lower, (0, 0, -1))
    body.mark("tail_base", trunk, (-1, 0, 0))
    body.mark_both("pectoral_tip", pectoral, (-1, 0, 0))


def boat(body: Anatomy, stretch: Stretch) -> None:
    """A sailing boat with its cabin behind the mast."""
    length, width, depth = stretch(0.56, 0.72), stretch(0.18, 0.24), stretch(0.1, 0.14)
    hull = body.add("box", "hull", (0, 0, depth), (length, width, depth))
    bow = body.add("ellipsoid", "hull", (length, 0, depth + 0.04), (stretch(0.16, 0.26), width, depth))
    cabin_size, rise = stretch(0.16, 0.22), stretch(0.1, 0.14)
    cabin = body.add(
        "box", "cabin", (-length + cabin_size + 0.1, 0, 2 * depth + rise), (cabin_size, 0.75 * width, rise)
    )
    tall, x = stretch(0.48, 0.62), stretch(0.0, 0.2)
    mast = body.add("box", "mast", (x, 0, 2 * depth + tall), (0.03, 0.03, tall))
    drop = 0.62 * tall
    sail = body.add("ellipsoid", "sail", (x + 0.17, 0, 2 * depth + 0.2 + drop), (0.15, 0.03, drop), (0, -10, 0))
    body.mark("bow", bow, (1, 0, 0))
    body.mark_both("stern", (hull, hull), (-1, 1, 1))
    body.mark("keel", hull, (0, 0, -1))
    body.mark("mast_top", mast, (0, 0, 1))
    body.mark("mast_foot", mast, (0, 0, -1))
    body.mark_both("cabin_front", (cabin, cabin), (1, 1, 1))
    body.mark_both("cabin_rear", (cabin, cabin), (-1, 1, 1))
    body.mark("sail_top", sail, (0, 0, 1))
    body.mark("sail_belly", sail, (1, 0, 0))


def bicycle(body: Anatomy, stretch: Stretch) -> None:
    """A bicycle, its wheels as discs."""
    wheel, base = stretch(0.24, 0.3), stretch(0.42, 0.52)
    front = body.add("ellipsoid", "wheels", (base, 0, wheel), (wheel, 0.045, wheel))
    rear = body.add("ellipsoid", "wheels", (-base, 0, wheel), (wheel, 0.045, wheel))
    crank_z, height = wheel + 0.02, stretch(0.3, 0.38)
    top = wheel + height
    body.add("box", "frame", (0.03, 0, top), (0.34, 0.06, 0.035), (0, -stretch(0, 8), 0))
    body.add("box", "frame", (0.2, 0, wheel + height / 2), (0.04, 0.06, 0.27), (0, 42, 0))
    body.add("box", "frame", (-0.18, 0, wheel + height / 2), (0.035, 0.06, 0.25), (0, -25, 0))
    fork = body.add("box", "frame", (base - 0.08, 0, wheel + 0.24), (0.035, 0.06, 0.28), (0, -18, 0))
    crank = body.add("ellipsoid", "frame", (0.02, 0, crank_z), (0.09, 0.055, 0.09))
    saddle = body.add("ellipsoid", "saddle", (-0.32, 0, top + 0.12), (0.17, 0.09, 0.06))
    post = body.add("box", "handlebar", (base - 0.16, 0, top + 0.17), (0.035, 0.035, 0.1), (0, -18, 0))
    bars = body.both_sides("ellipsoid", "handlebar", (base - 0.14, 0.16, top + 0.27), (0.06, 0.16, 0.05))
    body.mark("front_wheel_hub", front, (0, 0, 0))
    body.mark("front_wheel_tip", front, (1, 0, 0))
    body.mark("front_wheel_foot", front, (0, 0, -1))
    body.mark("rear_wheel_hub", rear, (0, 0, 0))
    body.mark("rear_wheel_tip", rear, (-1, 0, 0))
    body.mark("rear_wheel_foot", rear, (0, 0, -1))
    body.mark("crank", crank, (0, 0, 0))
    body.mark("saddle_front", saddle, (1, 0, 0))
    body.mark("saddle_rear", saddle, (-1, 0, 0))
    body.mark("handlebar_stem", post, (0, 0, 0))
    body.mark("fork_crown", fork, (0, 0, 0.8))
    body.mark_both("grip", bars, (0, 1, 0))


CATEGORIES: dict[str, Callable[[Anatomy, Stretch], None]] = {
    grow.__name__: grow for grow in (dog, bird, car, aeroplane, chair, fish, boat, bicycle)
}


def part_names(category: str) -> tuple[str, ...]:
    """Returns the names of the keypoints of a category, in the order of their numbers; all its individuals have them."""
    body = Anatomy()
    CATEGORIES[category](body, lambda low, high: (low + high) / 2)
    return tuple(body.keypoints)
