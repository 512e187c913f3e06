"""A folder of label files, found by the content of the images and the point."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import LabelError
from distill.labels.shard import Record, Shard, read_shard, write_shard
from distill.types import Matches, PairBatch

Key = tuple[str, str, int, int]


class LabelStore:
    """Labels of one teacher, read and appended to. Several processes may append to one folder.

    Args:
        folder: of the files; made when the first label is written.
        fingerprint: of the teacher whose labels are wanted; None accepts whatever the folder holds.
        offers: further folders to read from, such as labels that come with the project. One that another teacher made
            is left aside: it was offered, not asked for.

    Raises:
        LabelError: when a file is damaged, or made by something else than ``fingerprint`` says; it names the fields.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, str] | None = None, offers: Sequence[str | Path] = ()
    ) -> None:
        self.folder = Path(folder)
        self.fingerprint = dict(fingerprint) if fingerprint is not None else None
        self._shards: list[Shard] = []
        self._places: dict[Key, tuple[int, int]] = {}
        self._unwritten: dict[Key, Record] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._add(read_shard(path), path)
        for path in (path for offer in offers for path in sorted(Path(offer).glob("*.safetensors"))):
            shard = read_shard(path)
            if not mismatch(shard.fingerprint, self.fingerprint or {}):
                self._add(shard, path)

    def __len__(self) -> int:
        """How many labels there are, those included that are not written yet."""
        return len(self._places) + len(self._unwritten)

    def lookup(self, pairs: PairBatch) -> tuple[Matches, Tensor]:
        """Returns the labels of a batch, and (B, N) bool which of its points have one.

        Points count as the same within a hundredth of a pixel. What has no label is zero.
        """
        found = torch.zeros_like(pairs.kps_mask, device="cpu")
        rows: list[tuple[int, int, Tensor, float, Tensor]] = []
        for b, n, key in self._keys(pairs):
            for candidate in _neighbours(key):
                label = self._read(candidate)
                if label is not None:
                    found[b, n] = True
                    rows.append((b, n, *label))
                    break
        side = rows[0][-1].shape if rows else (1, 1)
        points, confidence = torch.zeros(*found.shape, 2), torch.zeros(found.shape)
        heatmap = torch.zeros(*found.shape, *side)
        for b, n, point, sure, scores in rows:
            points[b, n], confidence[b, n], heatmap[b, n] = point, sure, scores.float()
        like = pairs.src_kps
        return Matches(points.to(like), confidence.to(like), heatmap.to(like)), found.to(like.device)

    def add(self, pairs: PairBatch, labels: Matches, mask: Tensor) -> None:
        """Keeps the labels of the points where ``mask`` (B, N) is true, in memory until :meth:`flush`."""
        trg_kps, confidence, heatmap = (field.detach().cpu() for field in labels)
        for b, n, key in self._keys(pairs._replace(kps_mask=mask)):
            x, y = pairs.src_kps[b, n].tolist()
            self._unwritten[key] = Record(
                pairs.src_hash[b],
                pairs.trg_hash[b],
                (x, y),
                trg_kps[b, n].clone(),
                float(confidence[b, n]),
                heatmap[b, n].clone(),
            )

    def flush(self) -> None:
        """Writes what was added to a file of its own.

        Raises:
            LabelError: when the folder cannot be written to; the labels stay in memory.
        """
        if not self._unwritten:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = write_shard(self.folder, list(self._unwritten.values()), self.fingerprint or {})
        except OSError as error:
            raise LabelError(f"Expected to write labels to {self.folder} but got: {error}; set labels.dir.") from error
        self._unwritten.clear()
        self._add(read_shard(path), path)

    def compact(self) -> None:
        """Writes all labels to one file and removes the others. No other process may use the folder meanwhile."""
        self.flush()
        old = sorted(self.folder.glob("*.safetensors"))
        if len(old) < 2:
            return
        fingerprint = self._shards[0].fingerprint
        new = write_shard(self.folder, [self._record(key) for key in sorted(self._places)], fingerprint)
        for path in old:
            path.unlink()
        self._shards, self._places = [], {}
        self._add(read_shard(new), new)

    def _add(self, shard: Shard, path: Path) -> None:
        if self.fingerprint is None:
            self.fingerprint = shard.fingerprint
        differing = mismatch(shard.fingerprint, self.fingerprint)
        if differing:
            raise LabelError(
                f"Expected labels made by the present teacher in {self.folder} but {path.name} differs: {differing}; "
                "set these back, or choose another folder with labels.dir."
            )
        number = len(self._shards)
        self._shards.append(shard)
        columns = (shard.columns[name].tolist() for name in ("src", "trg", "point"))
        for row, (src, trg, (x, y)) in enumerate(zip(*columns, strict=True)):
            self._places[_key(shard.images[src], shard.images[trg], x, y)] = number, row

    def _keys(self, pairs: PairBatch) -> list[tuple[int, int, Key]]:
        points = pairs.src_kps.tolist()
        places = pairs.kps_mask.nonzero().tolist()
        return [(b, n, _key(pairs.src_hash[b], pairs.trg_hash[b], *points[b][n])) for b, n in places]

    def _read(self, key: Key) -> tuple[Tensor, float, Tensor] | None:
        if key in self._unwritten:
            record = self._unwritten[key]
            return record.trg_kps, record.confidence, record.heatmap
        if key not in self._places:
            return None
        number, row = self._places[key]
        columns = self._shards[number].columns
        return columns["trg_kps"][row], float(columns["confidence"][row]), columns["heatmap"][row]

    def _record(self, key: Key) -> Record:
        number, row = self._places[key]
        x, y = self._shards[number].columns["point"][row].tolist()
        label = self._read(key)
        assert label is not None
        return Record(key[0], key[1], (x, y), *label)


def mismatch(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Returns the fields in which two fingerprints differ, as text: "steps (50 in the store, 100 asked for)"."""
    fields = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    return ", ".join(f"{name} ({stored.get(name)} in the store, {wanted.get(name)} asked for)" for name in fields)


def _key(src: str, trg: str, x: float, y: float) -> Key:
    return src, trg, round(100 * x), round(100 * y)


def _neighbours(key: Key) -> list[Key]:
    """The key itself, then those next to it, which a rounding error may have led to."""
    src, trg, x, y = key
    around = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)]
    return [(src, trg, x + dx, y + dy) for dx, dy in around]
