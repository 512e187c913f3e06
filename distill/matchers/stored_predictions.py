"""Answers kept in a file, so that they are scored again without the matcher that gave them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.errors import ConfigError, DataError
from distill.core.files import replacing
from distill.core.geometry import relative_points
from distill.core.types import Matches, Original, PairBatch
from distill.data.npz import UNREADABLE
from distill.matchers.kept_heatmaps import Heatmaps
from distill.matchers.predictions_file import FORMAT, read_arrays

TOLERANCE = 1e-5
"""Points count as the same within this fraction of the image's sides."""


@dataclass
class Predictions:
    """A matcher's answers to P pairs with K points together, relative to the original images.

    Attributes:
        matcher: its name.
        seconds: that it took.
        src: P fingerprints of original source images.
        trg: P fingerprints of original target images.
        src_point: for each pair (n, 2) x / W, y / H in the source.
        trg_point: for each pair (n, 2) x / W, y / H in the target.
        confidence: for each pair (n,) in [0, 1].
        choice: for each pair (n, 2) which annotated part of the target the heatmap prefers, of all and of the point's
            symmetric group, see :mod:`distill.metrics.given_candidates`; -1 where that is not known.
        heatmap: for each pair (n, h, w) uint8, see :class:`distill.matchers.kept_heatmaps.Heatmaps`; no cells where none are kept.
            They are for pictures; nothing is scored by them.
        frame: for each pair (4,) where its heatmaps lie in the target, see there.
    """

    matcher: str = ""
    seconds: float = 0.0
    src: list[str] = field(default_factory=list)
    trg: list[str] = field(default_factory=list)
    src_point: list[NDArray[np.float64]] = field(default_factory=list)
    trg_point: list[NDArray[np.float64]] = field(default_factory=list)
    confidence: list[NDArray[np.float64]] = field(default_factory=list)
    choice: list[NDArray[np.int64]] = field(default_factory=list)
    heatmap: list[NDArray[np.uint8]] = field(default_factory=list)
    frame: list[NDArray[np.float64]] = field(default_factory=list)

    def add(
        self,
        pairs: PairBatch,
        points: Tensor,
        confidence: Tensor,
        choice: Tensor | None = None,
        heatmaps: Sequence[Heatmaps] | None = None,
    ) -> None:
        """Adds the answers to the points in ``kps_mask``.

        Args:
            pairs: that were asked.
            points: (B, N, 2) x, y in px of ``pairs.trg_img``.
            confidence: (B, N).
            choice: (B, N, 2) preferred parts; without it they are not known.
            heatmaps: of each pair; without it none are kept.
        """
        choice = torch.full((*confidence.shape, 2), -1) if choice is None else choice
        for row in pairs.kps_mask.any(1).nonzero()[:, 0].tolist():
            mask = pairs.kps_mask[row]
            self.src.append(pairs.src_original[row].hash)
            self.trg.append(pairs.trg_original[row].hash)
            self.src_point.append(_relative(pairs.src_kps[row, mask], pairs.src_content[row]))
            self.trg_point.append(_relative(points[row, mask], pairs.trg_content[row]))
            self.confidence.append(confidence[row, mask].cpu().double().numpy())
            self.choice.append(choice[row, mask].cpu().numpy())
            kept = Heatmaps.none(len(mask)) if heatmaps is None else heatmaps[row]
            of_points = kept.of_points(mask.cpu().numpy())
            self.heatmap.append(of_points.cells)
            self.frame.append(of_points.frame)

    def write(self, path: str | Path, heatmaps: bool = True) -> None:
        """Writes all, with or without ``heatmaps``, to an ``.npz`` file of arrays, none pickled, whole or not at all."""
        lists = (self.src_point, self.trg_point, self.confidence, self.choice)
        src_point, trg_point, confidence, choice = (np.concatenate(values) for values in lists)
        maps = self.heatmap if heatmaps else [cells[:, :0, :0] for cells in self.heatmap]
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                format=np.array(FORMAT),
                matcher=np.array(self.matcher),
                seconds=np.array(self.seconds),
                src=np.array(self.src),
                trg=np.array(self.trg),
                count=np.array([len(values) for values in self.confidence], np.int64),
                src_point=src_point,
                trg_point=trg_point,
                confidence=confidence,
                choice=choice,
                cells=np.array([cells.shape[1:] for cells in maps], np.int64),
                heatmap=np.concatenate([cells.ravel() for cells in maps]),
                frame=np.stack(self.frame),
            )

    @classmethod
    def read(cls, path: str | Path) -> "Predictions":
        """Returns what :meth:`write` wrote.

        Raises:
            DataError: when the file is missing, damaged or something else.
        """
        try:
            arrays = read_arrays(path)
            ends = np.cumsum(arrays["count"])[:-1]
            of_points = ("src_point", "trg_point", "confidence", "choice")
            return cls(
                matcher=str(arrays["matcher"]),
                seconds=float(arrays["seconds"]),
                src=arrays["src"].tolist(),
                trg=arrays["trg"].tolist(),
                heatmap=_split_heatmaps(arrays),
                frame=list(arrays["frame"]),
                **{name: np.split(arrays[name], ends) for name in of_points},
            )
        except UNREADABLE as error:
            raise DataError(
                f"Expected predictions in {path} but it cannot be read ({error}); python -m distill evaluate writes a "
                "predictions.npz."
            ) from error


class StoredPredictions:
    """Answers from a file of predictions. The images may have another size than when the matcher was asked.

    Args:
        file: ``predictions.npz`` of an evaluation.

    Raises:
        ConfigError: without a file.
        DataError: when the file is missing, damaged or something else.
    """

    def __init__(self, file: str | Path | None) -> None:
        if file is None:
            raise ConfigError("Expected a file of predictions but got none; add file=runs/evaluate/predictions.npz.")
        self.file, self.predictions = Path(file), Predictions.read(file)
        self._rows: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, pair in enumerate(zip(self.predictions.src, self.predictions.trg, strict=True)):
            self._rows[pair].append(row)

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Raises a :class:`ConfigError`: two images and points alone do not say which answers are theirs."""
        raise ConfigError(
            "Expected pairs of a data set for stored predictions but got images and points alone; predictions are found by "
            "the fingerprints of a data set's images: use python -m distill evaluate matcher=predictions"
        )

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`; the heatmaps have one empty cell.

        Raises:
            DataError: when the file has no answer to a point.
        """
        points, confidence = torch.zeros_like(pairs.src_kps), torch.zeros_like(pairs.src_kps[..., 0])
        for row, mask, kept, which in self._found(pairs):
            x0, y0, x1, y1 = pairs.trg_content[row].tolist()
            pixels = self.predictions.trg_point[kept][which] * (x1 - x0, y1 - y0) + (x0, y0)
            points[row, mask] = torch.from_numpy(pixels).to(points)
            confidence[row, mask] = torch.from_numpy(self.predictions.confidence[kept][which]).to(confidence)
        return Matches(points, confidence, points.new_zeros(*confidence.shape, 1, 1))

    def choice(self, pairs: PairBatch) -> Tensor:
        """Returns (B, N, 2) the preferred parts, see :class:`Predictions`; -1 outside ``kps_mask``."""
        choice = torch.full((*pairs.kps_mask.shape, 2), -1)
        for row, mask, kept, which in self._found(pairs):
            choice[row, mask] = torch.from_numpy(self.predictions.choice[kept][which])
        return choice

    def heatmaps(self, pairs: PairBatch) -> list[Heatmaps]:
        """Returns those of each pair; without cells where none are kept."""
        found = [Heatmaps.none(mask.shape[0]) for mask in pairs.kps_mask]
        for row, mask, kept, which in self._found(pairs):
            maps = self.predictions.heatmap[kept]
            cells = np.zeros((len(mask), *maps.shape[1:]), np.uint8)
            cells[mask.cpu().numpy()] = maps[which]
            found[row] = Heatmaps(cells, self.predictions.frame[kept])
        return found

    def _found(self, pairs: PairBatch) -> Iterator[tuple[int, Tensor, int, NDArray[np.intp]]]:
        """Yields each row of ``pairs`` that has points, their mask (N,), the pair in the file, and their places in it."""
        for row in pairs.kps_mask.any(1).nonzero()[:, 0].tolist():
            mask = pairs.kps_mask[row]
            asked = _relative(pairs.src_kps[row, mask], pairs.src_content[row])
            yield row, mask, *self._find(pairs.src_original[row], pairs.trg_original[row], asked, pairs.src_id[row])

    def _find(self, src: Original, trg: Original, asked: NDArray, name: str) -> tuple[int, NDArray[np.intp]]:
        for row in self._rows.get((src.hash, trg.hash), []):
            kept = self.predictions.src_point[row]
            apart = np.abs(kept - asked[:, None]).max(-1)
            if (apart.min(1) <= TOLERANCE).all():
                # Two parts may lie at one place, with an answer each.
                turns = np.abs(_turns(asked)[:, None] - _turns(kept))
                return row, np.lexsort((turns, apart))[:, 0]
        raise DataError(
            f"Expected predictions for all points in {self.file} but it has none for points of {name}; it is of other pairs "
            "or other photographs: give the data settings that they were made with, or evaluate the matcher again."
        )


def _turns(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Returns (n,) how many equal points of (n, 2) come before each."""
    return np.tril((points[:, None] == points).all(-1), -1).sum(1)


def _relative(points: Tensor, content: Tensor) -> NDArray[np.float64]:
    """Returns points (n, 2), x, y px, as fractions of the sides of ``content`` (4,) from its corner, on the CPU."""
    return relative_points(points.cpu().double(), content.cpu()).numpy()


def _split_heatmaps(arrays: Mapping[str, NDArray]) -> list[NDArray[np.uint8]]:
    """Returns the heatmaps (n, h, w) of each pair."""
    shapes = [(int(n), int(h), int(w)) for n, (h, w) in zip(arrays["count"], arrays["cells"], strict=True)]
    flat = np.split(arrays["heatmap"], np.cumsum([n * h * w for n, h, w in shapes])[:-1])
    return [maps.reshape(shape) for maps, shape in zip(flat, shapes, strict=True)]
