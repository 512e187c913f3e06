"""Mining pairs of images with similar global features, which are easier for a teacher than random pairs of a category."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError
from distill.data.pair_sampling import check_pairs_per_image


def nearest_pairs(features: NDArray, categories: Sequence[str], per_image: int) -> list[tuple[int, int]]:
    """Returns for each image its ``per_image`` most similar others of the same category, the most similar first.

    Args:
        features: (N, D), one global feature an image, of any length.
        categories: N names.
        per_image: how many; an image of a smaller category gets all others of it.

    Returns:
        Pairs (image, its neighbour) of numbers, image by image.

    Raises:
        ConfigError: for a ``per_image`` below 1.
        DataError: when no category has two images.
    """
    check_pairs_per_image(per_image, "pairs_per_image")
    directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    names = np.asarray(categories)
    members = {category: np.flatnonzero(names == category) for category in dict.fromkeys(categories)}
    pairs = []
    for image, category in enumerate(categories):
        others = members[category][members[category] != image]
        similarity = directions[others] @ directions[image]
        nearest = others[np.argsort(-similarity, kind="stable")[:per_image]]
        pairs += [(image, int(other)) for other in nearest]
    if not pairs:
        raise DataError(f"Expected a category with two images but the {len(names)} images have none; add photographs.")
    return pairs
