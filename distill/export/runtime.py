"""Matching with an exported student where torch is not installed: ONNX Runtime, NumPy and Pillow only.

    from distill.export.runtime import Matcher, read_image

    matcher = Matcher("student.onnx")
    answer = matcher.match(read_image("a.jpg"), read_image("b.jpg"), [(120, 80), (60, 200)])

Points are x, y in pixels of the image they lie on; the centre of the top-left pixel is (0.5, 0.5).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from distill.core.errors import ConfigError, DataError, WeightsError, in_one_line
from distill.core.numbers import is_whole
from distill.core.squares import RESIZES
from distill.data.images import read_rgb
from distill.export.runtime_images import Square
from distill.export.runtime_query import Floats, checked_image, checked_points

INPUTS = ("src_img", "trg_img", "src_kps")
OUTPUTS = ("trg_kps", "confidence", "heatmap")
ENCODE, CORRELATE = "encode.onnx", "correlate.onnx"
MAPS = ("src_map", "trg_map", "src_kps")
LARGEST_SIZE = 8192  # px, of the images that a file may ask for
MOST_THREADS = 1024
Provider = str | tuple[str, dict[str, Any]]
"""A provider of ONNX Runtime by its name, or by its name and its options."""


class Answer(NamedTuple):
    """Where N points of one image lie in another.

    Attributes:
        points: (N, 2) x, y in pixels of the target as it was given; answers in the padding of a letterboxed one are moved to
            its border.
        confidence: (N,) in [0, 1].
        heatmap: (N, h, w) scores over cells of the target; higher is likelier. Letterboxed targets' are read bilinearly from
            those of the square, without its padding.
    """

    points: Floats
    confidence: Floats
    heatmap: Floats


class OnnxFile:
    """An exported student, opened.

    The file is read by this process and handed over as bytes, so that ONNX Runtime, from 1.25 on, refuses weights which it
    keeps in further files, whatever their path.

    Args:
        file: path of the file.
        threads: of ONNX Runtime, at most 1,024; 0 for its own choice.
        providers: of ONNX Runtime, in order of preference, such as "CUDAExecutionProvider", or ("CUDAExecutionProvider",
            {"device_id": 1}) with options.

    Raises:
        ConfigError: when no file is given, ``threads`` is no number of threads, or ONNX Runtime has no such provider here.
        WeightsError: when the file is missing, truncated, or no exported student.

    Attributes:
        size: side of the square images, px.
        resize: how images are brought to the square, "squash" or "letterbox", which keeps the ratio of their sides.
        metadata: what ``export`` wrote about the student, see :mod:`distill.export.about`.
    """

    def __init__(self, file: str | Path | None, threads: int = 0, providers: Sequence[Provider] | None = None) -> None:
        self.file, self.session = open_session(file, threads, providers)
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.size = self._checked_size()
        self.resize = _checked_resize(self.metadata, self.file)

    def _checked_size(self) -> int:
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        names = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        text = self.metadata.get("size", "")
        size = _side(text)
        shapes = [list(i.shape)[1:] for i in inputs]
        fits = names == (INPUTS, OUTPUTS) and shapes[:2] == [[3, size, size]] * 2 and shapes[2][-1:] == [2]
        if not (fits and 1 <= size <= LARGEST_SIZE and all(i.type == "tensor(float)" for i in inputs)):
            raise WeightsError(
                f"Expected a student that distill exported at {self.file} but its inputs and outputs are {names} of shapes "
                f"{shapes} for images of {text[:20] or 'no'} px."
            )
        return size

    def run(self, src_img: Floats, trg_img: Floats, src_kps: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns the fields of :class:`distill.core.types.Matches`.

        Args:
            src_img: (B, 3, size, size) in [0, 1].
            trg_img: the same.
            src_kps: (B, N, 2) x, y, px; N may be 0, whatever the file makes of it.

        Raises:
            WeightsError: when the file fails, or its answers are of other shapes.
        """
        pairs, points = src_kps.shape[:2]
        asked = src_kps if points else np.zeros((pairs, 1, 2), np.float32)
        try:
            answer = self.session.run(list(OUTPUTS), dict(zip(INPUTS, (src_img, trg_img, asked), strict=True)))
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base but this
            raise WeightsError(
                f"Expected an answer of {self.file} but ONNX Runtime says: {in_one_line(error)}."
            ) from error
        found, confidence, heatmap = _checked_answer(answer, asked.shape[:2], self.file)
        return found[:, :points], confidence[:, :points], heatmap[:, :points]


class Descriptors(NamedTuple):
    """What is kept of one image, for any number of matches.

    Attributes:
        size: width, height of the image, px.
        map: (1, C, h, w).
    """

    size: Floats
    map: Floats


class Matcher:
    """Matches points between two images with an exported student; may be called from several threads.

    Args:
        file: path of an ONNX file that ``export`` wrote.
        threads: of ONNX Runtime; 0 for its own choice.
        providers: see :class:`OnnxFile`.

    Raises:
        ConfigError, WeightsError: see :class:`OnnxFile`.
    """

    def __init__(self, file: str | Path, threads: int = 0, providers: Sequence[Provider] | None = None) -> None:
        self.file = OnnxFile(file, threads, providers)
        self.size, self.resize = self.file.size, self.file.resize

    def match(self, src: Any, trg: Any, points: ArrayLike) -> Answer:
        """Matches points of ``src`` in ``trg``; the images may differ in size.

        Args:
            src: (H, W, 3) bytes, or floats in [0, 1], as :func:`read_image` returns; or a Pillow image.
            trg: the same.
            points: (N, 2) x, y in pixels of ``src``.

        Raises:
            DataError: when an image is none or too large, or a point is not inside ``src``, or there are more than 10,000.
        """
        images = [checked_image(image, name) for image, name in ((src, "src"), (trg, "trg"))]
        src_size, trg_size = (np.array(image.shape[1::-1], np.float32) for image in images)  # width, height
        asked = checked_points(points, src_size)
        square = Square(self.size, self.resize)
        src_img, trg_img = (square.pixels(image) for image in images)
        found, confidence, heatmap = self.file.run(src_img, trg_img, square.inside(asked, src_size)[None])
        return Answer(square.outside(found[0], trg_size), confidence[0], square.heatmaps(heatmap[0], trg_size))


class SplitMatcher:
    """Matches with the two files ``encode.onnx`` and ``correlate.onnx``: an image is described once.

    Args:
        encode: path of the first.
        correlate: path of the second.
        threads: of ONNX Runtime; 0 for its own choice.
        providers: see :class:`OnnxFile`.

    Raises:
        ConfigError: see :class:`OnnxFile`.
        WeightsError: when a file is missing, truncated, no such file, or they are of two students.

    Attributes:
        size: side of the square images, px.
        resize: see :class:`OnnxFile`.
        metadata: what ``export`` wrote about the student, see :mod:`distill.export.about`.
    """

    def __init__(
        self, encode: str | Path, correlate: str | Path, threads: int = 0, providers: Sequence[Provider] | None = None
    ) -> None:
        self.encode, self.correlate = (open_session(file, threads, providers)[1] for file in (encode, correlate))
        said = [dict(session.get_modelmeta().custom_metadata_map) for session in (self.encode, self.correlate)]
        self.metadata, self.size = said[0], _side(said[0].get("size", ""))
        inputs = tuple(i.name for i in self.correlate.get_inputs())
        images = [(i.name, list(i.shape)[1:]) for i in self.encode.get_inputs()]
        self.resize, other = (_checked_resize(m, f) for m, f in zip(said, (encode, correlate), strict=True))
        same = self.resize == other and all(said[0].get(key) == said[1].get(key) for key in ("size", "fingerprint"))
        maps = [list(i.shape)[1:] for i in (*self.encode.get_outputs(), *self.correlate.get_inputs()[:2])]
        fits = images == [("images", [3, self.size, self.size])] and inputs == MAPS and maps == maps[:1] * 3
        if not (same and fits and 1 <= self.size <= LARGEST_SIZE):
            raise WeightsError(
                f"Expected {ENCODE} and {CORRELATE} of one student but {encode} takes {images} and {correlate} takes "
                f"{list(inputs)}; export both again."
            )

    def describe(self, image: Any) -> Descriptors:
        """Describes an image, given as to :meth:`Matcher.match`."""
        pixels = checked_image(image, "image")
        maps = self._encoded(Square(self.size, self.resize).pixels(pixels))
        return Descriptors(np.array(pixels.shape[1::-1], np.float32), maps)

    def run(self, src_img: Floats, trg_img: Floats, src_kps: Floats) -> tuple[Floats, Floats, Floats]:
        """Does what :meth:`OnnxFile.run` does, with both files; see there.

        Raises:
            WeightsError: when a file fails.
        """
        src_map, trg_map = np.split(self._encoded(np.concatenate([src_img, trg_img])), 2)
        return self._correlated({"src_map": src_map, "trg_map": trg_map, "src_kps": src_kps})

    def _encoded(self, images: Floats) -> Floats:
        try:
            return self.encode.run(["descriptors"], {"images": images})[0]
        except Exception as error:  # as in OnnxFile.run
            raise _no_answer(error) from error

    def _correlated(self, feed: dict[str, Floats]) -> tuple[Floats, Floats, Floats]:
        try:
            answer = self.correlate.run(list(OUTPUTS), feed)
        except Exception as error:  # as in OnnxFile.run
            raise _no_answer(error) from error
        return _checked_answer(answer, feed["src_kps"].shape[:2], CORRELATE)

    def match(self, src: Descriptors, trg: Descriptors, points: ArrayLike) -> Answer:
        """Matches points (N, 2), x, y in pixels of the image ``src`` was made of, in that of ``trg``.

        Raises:
            DataError: for points as in :meth:`Matcher.match`, and when ``src`` or ``trg`` was not made by :meth:`describe`.
            WeightsError: when the file fails, as on descriptors of another student.
        """
        for name, described in (("src", src), ("trg", trg)):
            if not isinstance(described, Descriptors):
                raise DataError(
                    f"Expected {name} as describe returns it but got {type(described).__name__}; call describe(image) first."
                )
        asked = checked_points(points, src.size)
        square = Square(self.size, self.resize)
        inside = square.inside(asked, src.size)[None]
        feed = {"src_map": src.map, "trg_map": trg.map, "src_kps": inside}
        found, confidence, heatmap = (field[0] for field in self._correlated(feed))
        return Answer(square.outside(found, trg.size), confidence, square.heatmaps(heatmap, trg.size))


def open_session(
    file: str | Path | None, threads: int = 0, providers: Sequence[Provider] | None = None
) -> tuple[Path, onnxruntime.InferenceSession]:
    """Opens an ONNX file, which may need no other; see :class:`OnnxFile`."""
    if file is None:
        raise ConfigError("Expected an ONNX file but got none; add file=<student.onnx>.")
    if not os.path.isfile(file):
        raise WeightsError(
            f"Expected an ONNX file but there is none at {file}; write it with: python -m distill export."
        )
    wanted, present = providers or ["CPUExecutionProvider"], onnxruntime.get_available_providers()
    if not isinstance(wanted, list | tuple) or any(_name(provider) not in present for provider in wanted):
        raise ConfigError(f"Expected providers of ONNX Runtime among {present} but got {wanted}; list some of these.")
    if not is_whole(threads, 0) or threads > MOST_THREADS:
        raise ConfigError(
            f"Expected threads of ONNX Runtime as a whole number up to {MOST_THREADS}, 0 for its own choice, but got {threads!r}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for work sleep. Spinning ones take the cores from whatever else runs, torch's threads among them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what is wrong is raised
    try:
        return Path(file), onnxruntime.InferenceSession(Path(file).read_bytes(), options, providers=list(wanted))
    except Exception as error:  # as in OnnxFile.run
        raise WeightsError(
            f"Expected a whole ONNX file at {file}, which needs no other, but it cannot be read "
            f"({in_one_line(error)}); export it again."
        ) from error


def _name(provider: object) -> object:
    """Returns the name of a provider that may be given with its options."""
    if isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], dict):
        return provider[0]
    return provider


def _checked_answer(answer: Sequence[Any], asked: tuple[int, ...], file: str | Path) -> tuple[Floats, Floats, Floats]:
    """Returns the fields of an answer to ``asked``, pairs and points, after a look at their shapes."""
    shapes = [getattr(field, "shape", ()) for field in answer]
    if shapes != [(*asked, 2), asked, (*asked, *shapes[2][2:])] or len(shapes[2]) != 4:
        raise WeightsError(
            f"Expected a student that distill exported at {file} but its answers have the shapes {shapes}; export it again."
        )
    found, confidence, heatmap = answer
    return found, confidence, heatmap


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Returns an image file as (H, W, 3) bytes, RGB, turned as its orientation says.

    Raises:
        DataError: see :func:`distill.data.images.read_image`.
    """
    return np.asarray(read_rgb(path)).copy()


def _side(text: str) -> int:
    """Returns the side of images, px, that metadata name, or 0 for none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _checked_resize(metadata: Mapping[str, str], file: str | Path) -> str:
    """Returns how metadata say that images are brought to the square; files of earlier versions, which do not, squash."""
    resize = metadata.get("resize", "squash")
    if resize not in RESIZES:
        raise WeightsError(
            f"Expected a student that distill exported at {file} but its images are to be resized by {resize[:20]!r}, which is "
            f"none of {', '.join(RESIZES)}; export it again, or update distill."
        )
    return resize


def _no_answer(error: Exception) -> WeightsError:
    return WeightsError(f"Expected an answer of two files but ONNX Runtime says: {in_one_line(error)}.")
