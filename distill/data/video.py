"""Frames of a video file, read by PyAV (FFmpeg).

The container's format is that of the file's suffix and is not guessed: formats that name other files or addresses, such as
playlists, are never opened.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ConfigError, DataError

FORMATS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
"""Demuxers of FFmpeg by suffix."""
LARGEST_FRAME = 64_000_000  # px
WHOLE = 0.95
"""Share of the frames, or of the length, that a video says it has, from which on it is taken for whole: files are not exact there."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
        number: from 0 on.
        seconds: from the first frame on; a file may count from another time.
        pixels: (H, W, 3) bytes, RGB, turned and mirrored as the file says.
    """

    number: int
    seconds: float
    pixels: NDArray[np.uint8]


def is_video(path: str | Path) -> bool:
    """Says whether the name of a file is that of a video."""
    return Path(str(path)).suffix.lower() in FORMATS


def read_frames(path: str | Path, every: int = 1) -> Iterator[Frame]:
    """Yields every ``every``-th frame, beginning with the first.

    Raises:
        ConfigError: when PyAV is not installed, or ``every`` is below 1.
        DataError: when the file is missing, damaged or no video, its frames are larger than 64 megapixels, or, after the last
            frame, when it ends long before the number of frames or the length that it says it has.
    """
    if every < 1:
        raise ConfigError(f"Expected every to be at least 1 but got {every}.")
    av = _av()
    if not Path(path).is_file():
        raise DataError(f"Expected a video at {path} but there is no such file.")
    try:
        with av.open(
            str(path), format=FORMATS[Path(path).suffix.lower()], options={"protocol_whitelist": "file"}
        ) as video:
            if not video.streams.video:
                raise DataError(f"Expected a video at {path} but it has no pictures.")
            stream = video.streams.video[0]
            if stream.width * stream.height > LARGEST_FRAME:
                raise DataError(
                    f"Expected frames of at most {LARGEST_FRAME / 1e6:.0f} megapixels but {path} has {stream.width} x "
                    f"{stream.height} px; make it smaller."
                )
            stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}  # later frames may have other sizes
            start, number, time, held = 0.0, -1, 0.0, 0.0
            for number, frame in enumerate(video.decode(stream)):
                time = float(frame.time or 0.0)
                start = time if number == 0 else start
                held = float((getattr(frame, "duration", None) or 0) * (frame.time_base or 0))
                if number % every == 0:
                    yield Frame(number, time - start, upright(frame.to_ndarray(format="rgb24"), _matrix(frame)))
            _check_whole(path, video, number + 1, time + max(held, (time - start) / max(number, 1)))
    except av.error.FFmpegError as error:
        raise DataError(f"Expected a whole video at {path} but it cannot be read ({error}); copy it again.") from error


def upright(pixels: NDArray[np.uint8], matrix: Sequence[float] | None) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of a frame as they are shown, turned and mirrored by the display matrix of the video.

    Args:
        pixels: as they are stored.
        matrix: a, b, c, d, by which the pixel x, y is shown at a x + c y, b x + d y (FFmpeg, libavutil/display.h). Angles other than
            right ones are rounded to these; None, or zeros, for pixels that are shown as they are stored.
    """
    a, b, c, d = matrix or (1, 0, 0, 1)
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matrix(frame: Any) -> tuple[float, float, float, float] | None:
    """Returns the part of a frame's display matrix that :func:`upright` takes."""
    given = frame.side_data.get("DISPLAYMATRIX")
    if given is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(given)[:20])
    return a, b, c, d


def _check_whole(path: str | Path, video: Any, frames: int, end: float) -> None:
    """Raises a :class:`DataError` where a file says that it has more than the ``frames`` that were read, or ends after ``end`` s."""
    told, seconds = video.streams.video[0].frames, (video.duration or 0) / 1e6
    if told and frames < WHOLE * told:
        part = f"{frames} of {told} frames"
    elif not told and len(video.streams) == 1 and end < WHOLE * seconds:  # sound may be longer than the pictures
        part = f"{end:.1f} of {seconds:.1f} s"
    else:
        return
    raise DataError(f"Expected a whole video at {path} but it ends after {part}; copy it again.")


class VideoWriter:
    """Writes pictures of one size as an MP4 file (MPEG-4 part 2), a context.

    Args:
        path: of the file.
        rate: pictures a second.
    """

    def __init__(self, path: str | Path, rate: int = 10) -> None:
        self.av, self.rate = _av(), rate
        self.stream: Any = None
        self.container: Any = self.av.open(str(path), "w", format="mp4")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Adds (H, W, 3) bytes, of which an odd last row or column is left out."""
        height, width = (side - side % 2 for side in pixels.shape[:2])
        if self.stream is None:
            self.stream = self.container.add_stream("mpeg4", rate=self.rate)
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            self.stream.bit_rate = 4_000_000
        picture = np.ascontiguousarray(pixels[: self.stream.height, : self.stream.width])
        self.container.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(picture, format="rgb24")))


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "Expected PyAV, which reads videos, but it is not installed; pip install 'distill[video]'."
        ) from error
    return av
