"""SLEAP's ``.slp`` files and DeepLabCut's CSV files, read and written with sleap-io (https://io.sleap.ai).

Pixel convention: SLEAP counts pixels from 0, the centre of the top-left pixel being (0, 0); sleap-io brings files older than
format 1.1, whose origin was the corner, to it. DeepLabCut's points are clicked on matplotlib's or napari's axes, where pixel
centres are whole numbers too. Half a pixel is added when points are read and subtracted when they are written.

What is written: a ``.slp`` file has what a matcher set as predicted instances, with the confidence as the score of each
point, and the rest as instances of a person; an unsure point is marked not visible. DeepLabCut's file has neither scores nor
visibility: an unsure point is left out, as its labellers leave out what they do not see. sleap-io does not write
DeepLabCut's files, so that file is written here.

Files are opened with h5py and pandas' CSV reader, which run nothing that is in them. DeepLabCut's ``.h5`` and ``.pickle``
files could, and are not read.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import DataError
from distill.data.coco import PIXEL_CENTRE
from distill.data.keypoints import ImageKeypoints, NameFinder, category_of, parts_by_category

SCORER = "distill"  # DeepLabCut's name for whoever labelled
LARGEST_BYTES = 2**29
"""Bytes of a SLEAP file's tables, unpacked: those of several million points."""
EMBEDDED = re.compile(r"/video\d+/video")
"""Names of a SLEAP file's embedded images."""
MOST_OBJECTS = 100_000
"""Tables and groups of a SLEAP file, at most."""


def read_slp(file: Path, known: Iterable[str]) -> dict[str, ImageKeypoints]:
    """Returns what a SLEAP file says of each image, by the image's name in ``known``.

    Points of predicted instances have their scores as confidences; those marked not visible are unsure. A prediction that a person
    corrected is left out: SLEAP keeps it, hidden, beside the person's instance, which names it or has its track.

    Raises:
        DataError: when sleap-io is not installed, or the file cannot be read.
        ValueError: when it is of a video, an image is not known, or has several instances.
    """
    return _images(_load_slp(file), _sleap_io(file), known)


def read_deeplabcut(file: Path, known: Iterable[str]) -> dict[str, ImageKeypoints]:
    """Returns what DeepLabCut's CSV file of labels says of each image, by the image's name in ``known``.

    sleap-io looks for the images that the file names, beside it, in its folder, or in the folder above.

    Raises:
        DataError: when sleap-io is not installed, or the file or one of its images cannot be read.
        ValueError: when an image is not known, or has several individuals.
    """
    return _images(_load_deeplabcut(file), _sleap_io(file), known)


def labelled_images(file: Path) -> list[str]:
    """Returns the names that a SLEAP file or DeepLabCut's CSV file gives to its images, with slashes between folders.

    Raises:
        DataError: see :func:`read_slp` and :func:`read_deeplabcut`.
    """
    labels = _load_slp(file) if file.suffix.lower() == ".slp" else _load_deeplabcut(file)
    lists = [(frame.video.filename, frame.frame_idx) for frame in labels]
    return [files[index].replace("\\", "/") for files, index in lists if not isinstance(files, str)]


def _load_slp(file: Path) -> Any:
    sleap_io = _sleap_io(file)
    try:
        _check_hdf5(file)
        labels = sleap_io.load_slp(str(file), open_videos=False)
        _check_frames(labels)
        return labels
    except Exception as error:  # h5py and sleap-io raise exceptions of many types for damaged files
        raise DataError(
            f"Expected labels of SLEAP in {file} but they cannot be read ({error}); restore the file."
        ) from error


def _check_frames(labels: Any) -> None:
    """Raises a ValueError when a frame has a number that its list of images has no image for, counted from 0."""
    for frame in labels:
        files = frame.video.filename
        if not isinstance(files, str) and not 0 <= frame.frame_idx < len(files):
            raise ValueError(f"a frame has number {frame.frame_idx}, counted from 0, in a list of {len(files)} images")


def _load_deeplabcut(file: Path) -> Any:
    sleap_io = _sleap_io(file)
    try:
        labels = sleap_io.load_dlc(str(file))
    except Exception as error:  # as in _load_slp
        raise DataError(
            f"Expected labels of DeepLabCut in {file} but they cannot be read ({error}); restore the file."
        ) from error
    frames = Counter(id(frame.video) for frame in labels)
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = sum(
            bool(row) and row[0] not in ("scorer", "individuals", "bodyparts", "coords") for row in csv.reader(text)
        )
    # sleap-io numbers images by row and files by what it finds: with a file missing, points would go to another image.
    if sum(frames.values()) != rows or any(frames[id(video)] != len(video.filename) for video in labels.videos):
        raise DataError(
            f"Expected all {rows} images that {file} names beside it but some are missing; put the file into its project, "
            "in the folder that holds labeled-data or beside the images."
        )
    return labels


def write_slp(images: Mapping[str, ImageKeypoints], root: Path, file: Path) -> None:
    """Writes ``file`` for SLEAP; images are named by their path.

    Args:
        images: by name, relative to ``root``; their files have to be there.
        root: folder of the images.
        file: to write.
    """
    sleap_io = _sleap_io(file)
    skeletons = {
        name: sleap_io.Skeleton(parts, name=name) for name, parts in parts_by_category(images.values()).items()
    }
    frames = []
    for name, image in images.items():
        video = sleap_io.Video.from_filename([str((root / name).resolve())])
        instances = [_instance(sleap_io, image, skeletons[image.category], part) for part in (False, True)]
        frames.append(
            sleap_io.LabeledFrame(video=video, frame_idx=0, instances=[i for i in instances if i is not None])
        )
    sleap_io.save_slp(sleap_io.Labels(frames), str(file), embed=False, verbose=False)


def write_deeplabcut(images: Mapping[str, ImageKeypoints], file: Path) -> None:
    """Writes ``file`` for DeepLabCut, with the images' names as they are given."""
    parts = list(dict.fromkeys(part for found in parts_by_category(images.values()).values() for part in found))
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["scorer", *[SCORER] * (2 * len(parts))])
        table.writerow(["bodyparts", *(part for part in parts for _ in "xy")])
        table.writerow(["coords", *"xy" * len(parts)])
        for name, image in images.items():
            sure = {part: point for part, point in image.points.items() if part not in image.unsure}
            cells = [sure[part][axis] - PIXEL_CENTRE if part in sure else "" for part in parts for axis in (0, 1)]
            table.writerow([name, *cells])


def _instance(sleap_io: Any, image: ImageKeypoints, skeleton: Any, predicted: bool) -> Any:
    """Returns the instance with the points of a matcher, or of a person; None where there are none."""
    chosen = [part for part in image.points if (part in image.confidence) == predicted]
    if not chosen:
        return None
    places = [skeleton.node_names.index(part) for part in chosen]
    xy = np.full((len(skeleton.node_names), 2), np.nan)
    xy[places] = np.array([image.points[part] for part in chosen]) - PIXEL_CENTRE
    if predicted:
        scores = np.zeros(len(xy))
        scores[places] = [image.confidence[part] for part in chosen]
        mean = float(np.mean(scores[places]))
        found = sleap_io.PredictedInstance.from_numpy(xy, skeleton=skeleton, point_scores=scores, score=mean)
    else:
        found = sleap_io.Instance.from_numpy(xy, skeleton=skeleton)
    for place, part in zip(places, chosen, strict=True):
        found.points["visible"][place] = part not in image.unsure
    return found


def _images(labels: Any, sleap_io: Any, known: Iterable[str]) -> dict[str, ImageKeypoints]:
    find, found = NameFinder(known), {}
    for frame in labels:
        files = frame.video.filename
        if isinstance(files, str):
            raise ValueError(f"{files} is a video, and not a list of images; export the labelled frames")
        points: dict[str, tuple[float, float]] = {}
        image = ImageKeypoints(points)
        people = [i for i in frame.instances if not isinstance(i, sleap_io.PredictedInstance)]
        for instance in people + _uncorrected(frame.instances, people):
            # Where a person marked a node as not visible its place says nothing: SLEAP puts new nodes anywhere.
            places = instance.numpy(invisible_as_nan=instance in people).tolist()
            given = {
                str(part): (x + PIXEL_CENTRE, y + PIXEL_CENTRE)
                for part, (x, y) in zip(instance.skeleton.node_names, places, strict=True)
                if np.isfinite((x, y)).all()
            }
            if given.keys() & points.keys() or (instance in people and len(people) > 1):
                raise ValueError(f"{files[frame.frame_idx]} has two instances; crop one image for each object")
            points |= given
            image.category = str(instance.skeleton.name or "")
            if instance not in people:
                rows = {str(row["name"]): row for row in instance.points}
                image.confidence |= {part: min(1.0, max(0.0, float(rows[part]["score"]))) for part in given}
                image.unsure |= {part for part in given if not rows[part]["visible"]}
        if points:
            name = find(files[frame.frame_idx])
            if name in found:
                raise ValueError(f"{name} is labelled in two frames; crop one image for each object")
            image.category = image.category or category_of(name)
            found[name] = image
    if not found:
        raise ValueError("no frame has points")
    return found


def _uncorrected(instances: Iterable[Any], people: Iterable[Any]) -> list[Any]:
    """Returns those of a frame's ``instances`` that are predicted, and that none of ``people`` was made from."""
    done = {id(instance) for person in people for instance in (person, person.from_predicted)}
    tracks = {id(person.track) for person in people if person.track is not None}
    return [i for i in instances if id(i) not in done and id(i.track) not in tracks]


def _check_hdf5(file: Path) -> None:
    """Raises a ValueError when the tables of an HDF5 file grow too large, or lie in other files.

    They may be compressed to a few kilobytes, and sleap-io reads them whole. Embedded images are not read.
    """
    import h5py  # comes with sleap-io

    total, number = 0, 0
    with h5py.File(file, "r") as opened:
        groups = [opened]
        while groups:
            group = groups.pop()
            for name in group:
                number += 1
                if number > MOST_OBJECTS or not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"it holds links, or more than {MOST_OBJECTS} tables and groups")
                found = group[name]
                if isinstance(found, h5py.Group):
                    groups.append(found)
                elif isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
                    raise ValueError(f"its table {found.name} lies in other files")
                elif isinstance(found, h5py.Dataset) and not EMBEDDED.fullmatch(found.name):
                    total += _unpacked(found)
    if total > LARGEST_BYTES:
        raise ValueError(f"its tables grow to {total / 2**20:.0f} MiB, more than {LARGEST_BYTES / 2**20:.0f}")


def _unpacked(table: Any) -> int:
    """Returns the bytes that a table takes in memory.

    Texts lie outside of their table, uncompressed, and any number of rows may refer to the same one.

    Raises:
        ValueError: when it holds more than :data:`MOST_OBJECTS` texts, or something else that lies outside of it.
    """
    if not table.dtype.hasobject:
        return (table.size or 0) * table.dtype.itemsize
    if (table.size or 0) > MOST_OBJECTS or table.dtype.kind != "O":
        raise ValueError(f"its table {table.name} holds more than {MOST_OBJECTS} texts, or texts beside numbers")
    total = 0
    for place in np.ndindex(table.shape or ()):
        value = table[place]
        total += value.nbytes if isinstance(value, np.ndarray) else len(value)
        if total > LARGEST_BYTES:
            break
    return total


def _sleap_io(file: Path) -> Any:
    try:
        import sleap_io
    except ImportError as error:
        raise DataError(
            f"Expected sleap-io for {file} but it is not installed; install it with: pip install 'distill[sleap]'"
        ) from error
    return sleap_io
