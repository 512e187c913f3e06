"""Arrays that a file of a few megabytes holds and that would fill the memory are refused before they are unpacked."""

import io
import resource
import struct
import time
import zipfile
import zlib
from fractions import Fraction

import numpy as np
import pytest
from numpy.lib import format as npy
from scipy.io import savemat

from distill.core.errors import DataError
from distill.data.npz import NpzFile
from distill.data.readers import read_mat
from distill.data.tracks import read_tracks
from distill.data.video import read_frames
from distill.matchers.stored_predictions import Predictions

MEBIBYTE = 2**20
POINTS = 170_000_000  # their places, confidences and choices take 10 GB


def npy_header(shape, dtype) -> bytes:
    text = io.BytesIO()
    fields = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(text, fields)
    return text.getvalue()


@pytest.fixture(scope="module")
def write():
    """Writes an ``.npz`` file of arrays, and of zeros where (shape, dtype) is given, without making them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated

    def zeros(shape, dtype) -> tuple[bytes, int]:
        start, size = npy_header(shape, dtype), np.dtype(dtype).itemsize
        for side in shape:
            size *= side
        first, last = (zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2))
        packed = first.compress(start) + first.flush(zlib.Z_FULL_FLUSH) + block * (size // MEBIBYTE)
        return packed + last.compress(bytes(size % MEBIBYTE)) + last.flush(), len(start) + size

    def written(path, arrays):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in arrays.items():
                if isinstance(value, tuple):
                    packed, size = zeros(*value)
                    archive.writestr(f"{name}.npy", packed, zipfile.ZIP_STORED)
                    info = archive.getinfo(f"{name}.npy")
                    info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, size
                    if size < MEBIBYTE:
                        info.CRC = zlib.crc32(zlib.decompress(packed, -15))
                else:
                    with archive.open(f"{name}.npy", "w") as member:
                        npy.write_array(member, np.asarray(value))
        return path

    return written


def refuse(read, path, message) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError, match=message):
        read(path)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024, "KiB"


def predictions(**changes):
    """The arrays of one pair with two points, and no heatmaps."""
    two = np.full((2, 2), 0.5)
    arrays = {
        "format": "distill-predictions-1",
        "matcher": "x",
        "seconds": 1.0,
        "src": ["a"],
        "trg": ["b"],
        "count": [2],
    }
    arrays |= {"src_point": two, "trg_point": two, "confidence": [0.5, 0.5], "choice": [[0, 0], [1, 1]]}
    return arrays | {"cells": [[0, 0]], "heatmap": np.zeros(0, np.uint8), "frame": [[0.0, 0.0, 1.0, 1.0]]} | changes


def test_the_file_of_these_tests_is_read_where_it_is_small(write, tmp_path):
    arrays = predictions(trg_point=((2, 2), "<f8"), cells=[[16, 16]], heatmap=((512,), "|u1"))
    found = Predictions.read(write(tmp_path / "small.npz", predictions()))
    assert found.matcher == "x" and found.trg_point[0].tolist() == [[0.5, 0.5]] * 2 and found.choice[0][1, 0] == 1
    with NpzFile(write(tmp_path / "zeros.npz", arrays)) as file:
        headers = file.headers(file.names, 10**6)
    assert headers["heatmap"].nbytes == 512 and headers["trg_point"].shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trg_point": ((5 * POINTS, 2), "<f8")}, "grow to 12970 MiB, more than 1024"),
        (
            {name: ((POINTS, 2), "<f8") for name in ("src_point", "trg_point")}
            | {"confidence": ((POINTS,), "<f8"), "choice": ((POINTS, 2), "<i8"), "count": [POINTS]},
            "grow to 9079 MiB, more than 1024",
        ),
        ({"trg_point": ((50_000_000, 2), "<f8")}, r"trg_point has float64, \(50000000, 2\)"),
        ({"heatmap": ((900 * MEBIBYTE,), "|u1")}, "heatmap has 943718400 cells and not those of its points"),
        ({"src": ((1,), "<U200000000")}, "src has <U200000000"),
        ({"matcher": ((900_000,), "<U200")}, "matcher has <U200"),
        ({"something": ((800 * MEBIBYTE,), "|u1")}, None),
        ({"frame": ((1, 4), "|S100000000")}, r"frame holds \|S100000000 and not plain values"),
        ({"count": [10**18]}, "count does not add up to its 2 points"),
    ],
    ids=["one", "all", "one below the limit", "heatmap", "text", "name", "foreign", "bytes", "count"],
)
def test_predictions_that_grow_too_large_are_refused_at_once(write, tmp_path, changes, message):
    path = write(tmp_path / "hostile.npz", predictions(**changes))
    assert path.stat().st_size < 16 * MEBIBYTE
    if message is None:  # an array that nobody asks for is not read
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert Predictions.read(path).src == ["a"]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
    else:
        refuse(Predictions.read, path, f"Expected predictions in .*hostile.npz but it cannot be read .*{message}")


def test_tracks_that_grow_too_large_are_refused_at_once(write, tmp_path):
    arrays = {"points": ((2_500_000, 500, 2), "<f4"), "occluded": ((2_500_000, 500), "|b1")}
    path = write(tmp_path / "tracks.npz", arrays)
    refuse(
        read_tracks, path, "Expected tracks with points and occluded in .* its arrays grow to 10729 MiB, more than 100"
    )


def test_a_header_that_does_not_tell_the_size_is_refused(tmp_path):
    """numpy takes memory for the shape of the header, and the archive unpacks as much as its directory says."""
    for name, content in (
        ("claims", npy_header((10**9, 2), "<f8") + bytes(32)),
        ("hides", npy_header((2, 2), "<f8") + bytes(10**6)),
        ("overflows", npy_header((2**62, 4), "<f8")),
        ("long", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(5000)),
        ("runs", b"\x93NUMPY\x01\x00\x20\x00{'descr': __import__('os').abort" + b"\n"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for member in ("points", "occluded"):
                archive.writestr(f"{member}.npy", content)
        refuse(read_tracks, tmp_path / f"{name}.npz", f"Expected tracks with points and occluded in .*{name}.npz")


def test_other_kinds_of_compression_and_two_arrays_of_one_name_are_refused(tmp_path):
    content = npy_header((1, 1, 2), "<f4") + bytes(8)
    for name, method in (("bz2", zipfile.ZIP_BZIP2), ("xz", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", method) as archive:
            archive.writestr("points.npy", content)
        refuse(read_tracks, tmp_path / f"{name}.npz", "not compressed as numpy does it")
    with zipfile.ZipFile(tmp_path / "two.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("points.npy", content)
        archive.writestr("points.npy", content)
    refuse(read_tracks, tmp_path / "two.npz", "two of one name")


def test_a_damaged_stream_is_named(write, tmp_path):
    path = write(tmp_path / "cut.npz", predictions(trg_point=np.random.default_rng(0).random((2, 2))))
    content = bytearray(path.read_bytes())
    start = content.index(b"trg_point.npy") + len("trg_point.npy") + 60
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    refuse(Predictions.read, path, "Expected predictions in .*cut.npz but it cannot be read")


def test_tables_of_sleap_that_grow_too_large_or_lie_elsewhere_are_refused(tmp_path):
    pytest.importorskip("sleap_io")
    import h5py

    from distill.data.sleap import read_slp

    with h5py.File(tmp_path / "large.slp", "w") as file:
        file.create_dataset("points", (10**9,), "<f8", chunks=(10**5,), compression="gzip")
    refuse(lambda path: read_slp(path, ["a.png"]), tmp_path / "large.slp", "grow to 7629 MiB, more than 512")
    with h5py.File(tmp_path / "linked.slp", "w") as file:
        file["points"] = h5py.ExternalLink("large.slp", "points")
    refuse(lambda path: read_slp(path, ["a.png"]), tmp_path / "linked.slp", "it holds links")
    with h5py.File(tmp_path / "outside.slp", "w") as file:
        file.create_dataset("points", (4,), "<f8", external=[("/etc/hostname", 0, 32)])
    refuse(lambda path: read_slp(path, ["a.png"]), tmp_path / "outside.slp", "lies in other files")


def test_texts_of_sleap_that_many_rows_share_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("sleap_io")
    import h5py

    from distill.data.sleap import read_slp

    monkeypatch.setattr("distill.data.sleap.LARGEST_BYTES", 2**25)
    path, rows = tmp_path / "shared.slp", 600
    with h5py.File(path, "w") as file:
        table = file.create_dataset("videos_json", (rows,), h5py.string_dtype())
        table[0] = "x" * 100_000
        start = table.id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 16 * rows] = content[start : start + 16] * rows  # length and address of the text
    path.write_bytes(content)
    refuse(lambda path: read_slp(path, ["a.png"]), path, "grow to 32 MiB, more than 32")
    with h5py.File(tmp_path / "many.slp", "w") as file:
        file.create_dataset("tracks_json", (10**8,), h5py.string_dtype(), chunks=(10**5,), compression="gzip")
    refuse(lambda path: read_slp(path, ["a.png"]), tmp_path / "many.slp", "tracks_json holds more than 100000 texts")


@pytest.mark.parametrize(("mark", "order"), [(b"IM", "<"), (b"MI", ">"), (b"??", ">")])
def test_a_matlab_file_that_grows_too_large_is_refused(tmp_path, mark, order):
    """Also where another variable does than the one that is asked for."""
    packer = zlib.compressobj(9)
    zeros = b"".join(packer.compress(bytes(MEBIBYTE)) for _ in range(100)) + packer.flush()
    savemat(tmp_path / "small.mat", {"kps": np.ones((3, 2))}, do_compression=True)
    content = (tmp_path / "small.mat").read_bytes()
    assert read_mat(tmp_path / "small.mat", "kps").tolist() == [[1, 1]] * 3
    savemat(tmp_path / "old.mat", {"kps": np.ones((30, 2))}, format="4")
    assert read_mat(tmp_path / "old.mat", "kps").tolist() == [[1, 1]] * 30
    honest = content if order == "<" else content[:126] + mark
    (tmp_path / "large.mat").write_bytes(honest + struct.pack(f"{order}II", 15, len(zeros)) + zeros)
    refuse(lambda path: read_mat(path, "kps"), tmp_path / "large.mat", "grows to more than 16 MiB")


def test_a_later_frame_of_a_video_that_is_larger_than_the_first_is_refused(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.avi"), "w", format="avi") as video:
        for number, side in enumerate((64, 256)):
            stream = video.add_stream("mjpeg", rate=5) if number == 0 else av.CodecContext.create("mjpeg", "w")
            stream.width, stream.height, stream.pix_fmt, stream.time_base = side, side, "yuvj420p", Fraction(1, 5)
            frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                packet.stream, packet.pts, packet.dts = video.streams.video[0], number, number
                video.mux(packet)
    assert [frame.pixels.shape[0] for frame in read_frames(tmp_path / "a.avi")] == [64, 256]
    monkeypatch.setattr("distill.data.video.LARGEST_FRAME", 10_000)
    with pytest.raises(DataError, match="Expected a whole video at .*a.avi but it cannot be read"):
        list(read_frames(tmp_path / "a.avi"))


@pytest.mark.parametrize(("kind", "name"), [(1, "cell"), (5, "sparse"), (6, "double")])
def test_a_matlab_array_whose_shape_alone_fills_the_memory_is_refused(tmp_path, kind, name):
    """It is a few hundred bytes: a header, the class, the shape, and the name "x"."""

    def element(number: int, data: bytes) -> bytes:
        return struct.pack("<II", number, len(data)) + data + bytes(-len(data) % 8)

    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    about = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<2i", 50_000, 50_000)) + element(1, b"x")
    (tmp_path / "a.mat").write_bytes(header + element(14, about))
    refuse(lambda path: read_mat(path, "x"), tmp_path / "a.mat", f"it is a {name} of 50000 x 50000")
