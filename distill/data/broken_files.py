"""What is wrong with the photographs of a data set and with their annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from distill.core.errors import DataError
from distill.data.annotations import ImageAnnotation

if TYPE_CHECKING:
    from distill.data.photograph_pairs import PhotographPairs

T = TypeVar("T")


class BrokenFiles:
    """Reads the photographs of a data set and tells which are broken; what is read once is not read again.

    Args:
        pairs: the data set.
    """

    def __init__(self, pairs: PhotographPairs) -> None:
        self._pairs = pairs
        self._by_name: dict[str, str | None] = {}
        self._by_annotation: dict[bytes, str | None] = {}

    def everywhere(self) -> dict[str, str]:
        """Reads everything and returns what is wrong, by the name of the pair or the photograph."""
        if self._pairs.names is not None:
            return self._of_photographs(self._pairs.names)
        found: dict[str, str] = {}
        for annotation in self._pairs.sides(found):
            problem = self._of_annotation(annotation)
            if problem is not None:
                found.setdefault(annotation.name, problem)
        return found

    def of_pair(self, index: int) -> str | None:
        """Returns what is wrong with pair number ``index``; None where it can be read."""
        if self._pairs.names is not None:
            return next(iter(self._of_photographs(self._pairs.pairs[index]).values()), None)
        own: dict[str, str] = {}
        name = self._pairs.pair_name(index)
        pair = record(own, name, self._pairs.pair_annotation, index)
        if pair is None:
            return own[name]
        return self._of_annotation(pair.src) or self._of_annotation(pair.trg)

    def _of_photographs(self, names: Iterable[str]) -> dict[str, str]:
        """Returns what is wrong with photographs that are annotated once for all pairs, by their name."""
        found: dict[str, str] = {}
        for name in names:
            if name not in self._by_name:
                own: dict[str, str] = {}
                annotation = record(own, name, self._pairs.image_annotation, name)
                if annotation is not None:
                    record(own, name, self._pairs.image, annotation)
                self._by_name[name] = own.get(name)
            message = self._by_name[name]
            if message is not None:
                found[name] = message
        return found

    def _of_annotation(self, annotation: ImageAnnotation) -> str | None:
        """Returns what is wrong with a photograph that pairs annotate, each of which may say something else of it."""
        key = (annotation.path, annotation.points.tobytes(), annotation.bbox.tobytes())
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        if digest not in self._by_annotation:
            own: dict[str, str] = {}
            record(own, annotation.name, self._pairs.image, annotation)
            self._by_annotation[digest] = own.get(annotation.name)
        return self._by_annotation[digest]


def record(found: dict[str, str], name: str, read: Callable[..., T], *arguments: object) -> T | None:
    """Returns what ``read`` returns, or None after writing down its error."""
    try:
        return read(*arguments)
    except DataError as error:
        found.setdefault(name, str(error))
        return None
