"""match: flow fields, and points followed through a video."""

import csv
import json
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.core.errors import DataError
from distill.data.video import VideoWriter, read_frames, upright
from distill.metrics.position_accuracy import position_accuracy

MATCHER = ["matcher=nearest_neighbour", "matcher.backbone=test_resnet", "matcher.strides=[4]", "size=64", "device=cpu"]


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))


def shown_at(matrix: tuple[float, ...], pixels: np.ndarray) -> np.ndarray:
    """Moves each pixel by itself to where FFmpeg's documentation says that the matrix shows it."""
    a, b, c, d = matrix
    height, width = pixels.shape[:2]
    places = {(x, y): (round(a * x + c * y), round(b * x + d * y)) for x in range(width) for y in range(height)}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    right, bottom = (max(place[axis] for place in places.values()) for axis in (0, 1))
    shown = np.zeros((bottom - top + 1, right - left + 1, 3), np.uint8)
    for (x, y), (u, v) in places.items():
        shown[v - top, u - left] = pixels[y, x]
    return shown


TURNS = [
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_turned_and_mirrored_as_they_are_shown(matrix):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    np.testing.assert_array_equal(upright(pixels, [65536 * part for part in matrix]), shown_at(matrix, pixels))


def test_frames_without_a_matrix_or_with_zeros_are_shown_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    for matrix in (None, (0, 0, 0, 0)):
        np.testing.assert_array_equal(upright(pixels, matrix), pixels)


def test_a_mirrored_video_is_read_mirrored(clip):
    before = next(read_frames(clip)).pixels
    content = bytearray(clip.read_bytes())
    at = content.find(b"tkhd") + 4 + 4 + (20 if content[content.find(b"tkhd") + 4] == 0 else 32) + 16
    content[at : at + 36] = struct.pack(">9i", -65536, 0, 0, 0, 65536, 0, 64 * 65536, 0, 1 << 30)
    clip.write_bytes(content)
    np.testing.assert_array_equal(next(read_frames(clip)).pixels, before[:, ::-1])


def test_a_video_whose_last_picture_is_held_is_whole(tmp_path, texture):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "still.mkv"), "w") as video:
        stream = video.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = (
            64,
            64,
            "yuv444p",
            Fraction(1, 1000),
        )
        packets = []
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:64, :64])).reformat(format="yuv444p")
            frame.pts, frame.time_base = 100 * number, Fraction(1, 1000)
            packets += stream.encode(frame)
        for number, packet in enumerate([*packets, *stream.encode()]):
            if packet.size:
                packet.duration, packet.time_base = 5000 if number == 3 else 100, Fraction(1, 1000)
                video.mux(packet)
    assert [frame.number for frame in read_frames(tmp_path / "still.mkv")] == [0, 1, 2, 3]


@pytest.fixture
def clip(tmp_path, texture):
    """Five frames of 64 x 64 px, in which the texture moves by 3 px to the left a frame."""
    with VideoWriter(tmp_path / "clip.mp4") as video:
        for number in range(5):
            video.write(texture[:64, 3 * number : 3 * number + 64])
    return tmp_path / "clip.mp4"


def test_frames_are_read_in_order_with_their_times(clip, texture):
    frames = list(read_frames(clip))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for number, frame in enumerate(frames):
        sent = texture[:64, 3 * number : 3 * number + 64].astype(float)
        assert frame.pixels.shape == (64, 64, 3) and abs(frame.pixels - sent).mean() < 20
    assert [frame.number for frame in read_frames(clip, every=2)] == [0, 2, 4]


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_times_count_from_the_first_frame_whatever_time_the_file_gives_it(name, tmp_path):
    """A clip cut from a longer recording may keep the recording's times."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 10)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 60 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 50 + number, Fraction(1, 10)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    with av.open(str(tmp_path / name)) as video:
        assert next(video.decode(video=0)).time == pytest.approx(5), "the file says 5 s"
    frames = list(read_frames(tmp_path / name))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert [frame.seconds for frame in read_frames(tmp_path / name, every=2)] == pytest.approx([0, 0.2])


@pytest.mark.parametrize(("name", "part"), [("a.avi", r"\d of 12 frames"), ("a.mkv", r"0\.\d of 1\.2 s")])
def test_of_a_video_that_ends_early_the_frames_that_are_there_are_followed_and_a_line_says_so(
    name, part, texture, tmp_path, capsys
):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 10**6
        for number in range(12):
            pixels = np.ascontiguousarray(texture[:64, number : number + 64])
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())
    assert len(list(read_frames(tmp_path / name))) == 12
    with av.open(str(tmp_path / name)) as video:
        starts = [packet.pos for packet in video.demux(video=0)]
    os.truncate(tmp_path / name, starts[4])
    with pytest.raises(DataError, match=f"Expected a whole video at .*{name} but it ends after {part}"):
        list(read_frames(tmp_path / name))
    assert main(["match", f"src={tmp_path / name}", "points=[[40,30]]", f"run.dir={tmp_path}/out", *MATCHER]) == 0
    assert "left out: Expected a whole video at" in capsys.readouterr().out
    rows = (tmp_path / "out/tracks.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(number) for number in range(len(rows))] and 2 < len(rows) < 6


def test_points_of_the_first_frame_are_followed(clip, tmp_path):
    assert main(["match", f"src={clip}", "points=[[40,30],[30,44]]", f"run.dir={tmp_path}/out", *MATCHER]) == 0
    with open(tmp_path / "out/tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["part"]) for row in rows] == [(str(f), p) for f in range(5) for p in "01"]
    for row in rows:
        x, y = [(40, 30), (30, 44)][int(row["part"])]
        assert abs(float(row["x"]) - (x - 3 * int(row["frame"]))) < 5 and abs(float(row["y"]) - y) < 5
    drawn = list(read_frames(tmp_path / "out/tracks.mp4"))
    assert len(drawn) == 5 and drawn[0].pixels.shape[1] > 384


def test_a_part_of_the_frames_is_matched_where_that_is_asked_for(clip, tmp_path):
    few = ["every=2", "frames=2", f"run.dir={tmp_path}/out"]
    assert main(["match", f"src={clip}", "points=[[40,30]]", *few, *MATCHER]) == 0
    text = (tmp_path / "out/tracks.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ["0", "2"]


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match="whole video at .*a.mp4"):
        list(read_frames(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match="no such file"):
        list(read_frames(tmp_path / "b.mp4"))


def test_dense_writes_a_flow_field_and_the_warped_target(tmp_path, texture):
    for name, left in (("a", 0), ("b", 8)):
        Image.fromarray(texture[:64, left : left + 64]).save(tmp_path / f"{name}.png")
    asked = [f"src={tmp_path}/a.png", f"trg={tmp_path}/b.png", "dense=8", f"run.dir={tmp_path}/out"]
    assert main(["match", *asked, *MATCHER]) == 0
    with np.load(tmp_path / "out/flow.npz") as flow:
        assert flow["src"].shape == flow["trg"].shape == (8, 8, 2) and flow["src_size"].tolist() == [64, 64]
        moved = np.median((flow["trg"] - flow["src"])[2:6, 2:6], (0, 1))
    np.testing.assert_allclose(moved, [-8, 0], atol=2.5)
    assert Image.open(tmp_path / "out/flow.png").size == (64, 64)
    assert json.loads((tmp_path / "out/matches.json").read_text())["matches"] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trg={folder}/a.png"], "Expected points=[[x,y],...]"),
        (["points=[[1,1]]"], "Expected trg, a target image"),
        (["trg={folder}/a.png", "dense=0"], "at least 1 but got 0"),
    ],
)
def test_what_is_missing_is_told(tmp_path, texture, capsys, given, message):
    Image.fromarray(texture).save(tmp_path / "a.png")
    given = [text.format(folder=tmp_path) for text in given]
    assert main(["match", f"src={tmp_path}/a.png", f"run.dir={tmp_path}/out", *given, *MATCHER]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["frames=0"], "Expected frames of at least 1 but got 0."),
        (["frames=-1"], "Expected frames of at least 1 but got -1."),
        (["frames=2.5"], "Expected a whole number for frames but got 2.5."),
        (["every=0"], "Expected every to be at least 1 but got 0."),
    ],
)
def test_a_part_of_the_frames_that_is_none_is_refused(clip, tmp_path, capsys, given, message):
    assert main(["match", f"src={clip}", "points=[[40,30]]", *given, f"run.dir={tmp_path}/out", *MATCHER]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dense", "message"), [("-1", "at least 1 but got -1"), ("1", "set dense=2 or more")])
def test_a_grid_that_cannot_be_is_refused_before_points_are_matched(tmp_path, texture, capsys, dense, message):
    Image.fromarray(texture).resize((400, 400)).save(tmp_path / "a.png")
    given = [f"src={tmp_path}/a.png", f"trg={tmp_path}/a.png", "points=[[1,1]]", f"dense={dense}"]
    assert main(["match", *given, f"run.dir={tmp_path}/out", *MATCHER]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_video_takes_no_target(clip, tmp_path, capsys):
    assert main(["match", f"src={clip}", f"trg={clip}", "points=[[1,1]]", f"run.dir={tmp_path}/out", *MATCHER]) == 2
    assert "Expected neither trg nor dense where src is a video" in capsys.readouterr().err


@pytest.fixture
def tracks(tmp_path):
    """Three points of the clip: one from the first frame, hidden in the fourth; one from the third; one never visible."""
    frames = np.arange(5)
    places = np.array([[40, 30], [44, 44], [10, 10]], float)[:, None] - 3 * frames[None, :, None] * [1, 0]
    occluded = np.zeros((3, 5), bool)
    occluded[0, 3] = occluded[1, :2] = occluded[2] = True
    np.savez(tmp_path / "tracks.npz", points=(places / 64).astype(np.float32), occluded=occluded)
    return places, ~occluded


def places_in(file):
    """Returns the x, y of a tracks.csv by track and frame."""
    with open(file, newline="") as text:
        rows = list(csv.DictReader(text))
    return {(int(row["track"]), int(row["frame"])): np.array([float(row["x"]), float(row["y"])]) for row in rows}


def test_the_table_of_followed_points_scores_as_the_figures_do(clip, tracks, tmp_path):
    """The places are annotated a hair less than 4 px of 256 beside the answers, so that lost digits would decide."""
    given = [f"src={clip}", f"tracks={tmp_path}/tracks.npz", *MATCHER, "size=128"]
    assert main(["match", *given, f"run.dir={tmp_path}/first"]) == 0
    with np.load(tmp_path / "tracks.npz") as kept:
        points, occluded = kept["points"].astype(float), kept["occluded"]
    scored = [(0, 1), (0, 2), (0, 4), (1, 3), (1, 4)]
    answers = places_in(tmp_path / "first/tracks.csv")
    for key in scored:
        points[key] = answers[key] + np.array([-(4 - 1e-4) / 256, 0])
    np.savez(tmp_path / "tracks.npz", points=points, occluded=occluded)
    assert main(["match", *given, f"run.dir={tmp_path}/second"]) == 0
    found = places_in(tmp_path / "second/tracks.csv")
    assert all(np.sum(((found[key] - points[key]) * 256) ** 2) < 4**2 for key in scored)
    report = json.loads((tmp_path / "second/metrics.json").read_text())["position_accuracy"]
    assert report == {"1": 0, "2": 0, "4": 100, "8": 100, "16": 100, "delta_avg": 60}


def test_annotated_tracks_are_followed_from_their_first_frames_and_scored(clip, tracks, tmp_path, capsys):
    given = [f"src={clip}", f"tracks={tmp_path}/tracks.npz", f"run.dir={tmp_path}/out"]
    assert main(["match", *given, *MATCHER]) == 0
    with open(tmp_path / "out/tracks.csv", newline="") as file:
        rows = {(int(row["track"]), int(row["frame"])): row for row in csv.DictReader(file)}
    assert sorted(rows) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]
    places, visible = tracks
    scored = [key for key in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4)] if visible[key]]
    off = []
    for track, frame in scored:
        x, y = (float(rows[track, frame][axis]) * 64 for axis in "xy")
        off.append(4 * np.hypot(x - places[track, frame, 0], y - places[track, frame, 1]))  # px of 256
    assert len(off) == 5 and max(off) < 20
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    shares = {str(limit): 100 * sum(value < limit for value in off) / len(off) for limit in (1, 2, 4, 8, 16)}
    assert report["position_accuracy"] == pytest.approx({**shares, "delta_avg": sum(shares.values()) / 5}, abs=1e-3)
    assert (report["tracks"], report["frames"]) == (2, 5) and "delta_avg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (None, ["tracks={folder}/tracks.pkl"], "pickles run code and are not read"),
        (None, ["tracks={folder}/none.npz"], "No such file"),
        (None, ["points=[[1,1]]"], "neither points, trg, dense, every nor frames"),
        ({"points": np.array([[[None, 1]]])}, [], "Object arrays cannot be loaded"),
        ({"points": np.zeros((3, 5))}, [], "(N, T, 2) floats and occluded (N, T) bool"),
        ({"occluded": np.ones((3, 5), bool)}, [], "finite places of visible points"),
        (
            {"points": np.full((3, 5, 2), 30.0)},
            [],
            "fractions of the frame's width and height, from 0 to 1, but one is 29.5",
        ),
        ({"points": np.zeros((3, 4, 2)), "occluded": np.zeros((3, 4), bool)}, [], "of the 4 frames"),
        ({"points": np.zeros((3, 6, 2)), "occluded": np.zeros((3, 6), bool)}, [], "has 5; give its own tracks"),
    ],
)
def test_tracks_that_are_none_are_refused(clip, tracks, tmp_path, capsys, change, extra, message):
    if change:
        with np.load(tmp_path / "tracks.npz") as kept:
            np.savez(tmp_path / "tracks.npz", **{**kept, **change})
    given = [f"src={clip}", f"tracks={tmp_path}/tracks.npz", f"run.dir={tmp_path}/out", *MATCHER]
    assert main(["match", *given, *(text.format(folder=tmp_path) for text in extra)]) == 2
    assert message in capsys.readouterr().err


def test_position_accuracy_by_hand():
    truth = np.zeros((2, 3, 2))
    found = np.array([[[9, 9], [0.5, 0], [3, 0]], [[9, 9], [9, 9], [0, 16]]]) / 256
    visible = np.array([[True, True, True], [False, True, True]])
    accuracy = position_accuracy(found, truth, visible, np.array([0, 1]))
    third = 100 / 3  # within 1 and 2 px one of three, within 4 and 8 two, and a point at 16 px is not within 16
    shares = {"1": third, "2": third, "4": 2 * third, "8": 2 * third, "16": 2 * third}
    assert accuracy == pytest.approx({**shares, "delta_avg": 1.6 * third})
    assert np.isnan(position_accuracy(found, truth, visible, np.array([2, 2]))["delta_avg"])
