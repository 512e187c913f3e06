import errno
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from distill.core.errors import DataError
from distill.data.download import RECIPES, Source, download, extract

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT, in parts if asked for; /broken breaks off, /whole does not know parts."""

    asked: list = []

    def do_GET(self):
        if self.path.startswith("/none"):
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.asked.append(start)
        partial = start and not self.path.startswith("/whole")
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start if partial else 0 :]
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:300_000] if self.path.startswith("/broken") and not start else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    Server.asked = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


def test_a_file_is_fetched_verified_and_not_fetched_twice(server, tmp_path):
    source = Source(f"{server}/file.csv?download=1", md5=hashlib.md5(CONTENT).hexdigest(), into="lists")
    seen = []
    file = download(source, tmp_path, lambda done, total: seen.append((done, total)))
    assert file == tmp_path / "lists" / "file.csv" and file.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    download(source, tmp_path)
    assert Server.asked == [0]


@pytest.mark.parametrize("kind", ["file", "whole"])
def test_a_download_goes_on_where_it_stopped(server, tmp_path, kind):
    (tmp_path / f"{kind}.csv.part").write_bytes(CONTENT[:1000])
    assert download(Source(f"{server}/{kind}.csv"), tmp_path).read_bytes() == CONTENT
    assert Server.asked == [1000]


def test_a_download_that_breaks_off_is_told_and_can_be_resumed(server, tmp_path):
    with pytest.raises(DataError, match="goes on where it stopped"):
        download(Source(f"{server}/broken.csv"), tmp_path)
    assert not (tmp_path / "broken.csv").exists()
    assert download(Source(f"{server}/broken.csv"), tmp_path).read_bytes() == CONTENT


def test_a_part_that_was_complete_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.csv.part").write_bytes(CONTENT)
    assert download(Source(f"{server}/file.csv"), tmp_path).read_bytes() == CONTENT


def test_another_checksum_and_a_wrong_address_are_told(server, tmp_path):
    with pytest.raises(DataError, match="with MD5 0000"):
        download(Source(f"{server}/file.csv", md5="0000"), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="404"):
        download(Source(f"{server}/none.csv"), tmp_path)


def archive(path, names, link=None, outside="/etc/passwd"):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name in names:
                zipped.writestr(name, "hello")
            if link:
                info = zipfile.ZipInfo(link)
                info.external_attr = 0o120777 << 16
                zipped.writestr(info, outside)
    else:
        with tarfile.open(path, "w:gz") as tarred:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 5
                tarred.addfile(info, io.BytesIO(b"hello"))
            if link:
                info = tarfile.TarInfo(link)
                info.type, info.linkname = tarfile.SYMTYPE, outside
                tarred.addfile(info)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_an_archive_is_unpacked(tmp_path, suffix):
    extract(archive(tmp_path / f"a{suffix}", ["CUB/images.txt", "CUB/x (1).txt"]), tmp_path / "out")
    assert (tmp_path / "out" / "CUB" / "x (1).txt").read_text() == "hello"


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "C:evil.txt"])
def test_nothing_is_unpacked_when_a_member_lies_outside(tmp_path, suffix, name):
    with pytest.raises(DataError, match="lies outside of the folder"):
        extract(archive(tmp_path / f"a{suffix}", ["good.txt", name]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_nothing_is_unpacked_when_a_member_is_a_link(tmp_path, suffix):
    with pytest.raises(DataError, match="is a link or a device"):
        extract(archive(tmp_path / f"a{suffix}", ["good.txt"], link="link"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_damaged_archive_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="it is damaged"):
        extract(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_an_archive_that_cannot_be_written_out_is_not_told_to_be_damaged(tmp_path, monkeypatch, suffix, number):
    path = archive(tmp_path / f"a{suffix}", ["good.txt"])

    def refuse(*arguments, **settings):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("zipfile.ZipFile.extractall", refuse)
    monkeypatch.setattr("tarfile.TarFile.extractall", refuse)
    with pytest.raises(DataError, match="Expected to unpack .* but got: .* the archive was kept: make room") as told:
        extract(path, tmp_path / "out")
    assert os.strerror(number) in str(told.value) and "damaged" not in str(told.value) and path.exists()


def test_a_folder_in_the_place_of_a_file_is_not_told_to_be_damage_of_the_archive(tmp_path):
    (tmp_path / "out" / "good.txt").mkdir(parents=True)
    with pytest.raises(DataError, match="Expected to unpack .*good.txt"):
        extract(archive(tmp_path / "a.zip", ["good.txt"]), tmp_path / "out")


def test_a_download_to_a_full_disk_says_what_can_be_done(server, tmp_path, monkeypatch):
    def full(url, part, progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distill.data.download._fetch", full)
    with pytest.raises(
        DataError, match="No space left on device; make room in .* or choose another data.root, and run"
    ):
        download(Source(f"{server}/file.csv"), tmp_path)


@pytest.mark.parametrize("kind", ["zip", "lzma", "gz", "bz2", "xz"])
def test_an_archive_that_is_damaged_inside_is_told(tmp_path, kind):
    path, content = tmp_path / ("a.zip" if kind in ("zip", "lzma") else "a.tgz"), os.urandom(5000)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA if kind == "lzma" else zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a.bin", content)
    else:
        with tarfile.open(path, f"w:{kind}") as tarred:
            info = tarfile.TarInfo("a.bin")
            info.size = len(content)
            tarred.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(9) + whole[49:] if path.suffix == ".zip" else whole[:2500])
    with pytest.raises(DataError, match="it is damaged .* remove it and download again"):
        extract(path, tmp_path / "out")


def test_every_benchmark_says_how_one_comes_by_it():
    assert set(RECIPES) == {"shapes", "spair71k", "spair_u", "pf_pascal", "pf_willow", "cub", "ap10k", "soco", "folder"}
    for recipe in RECIPES.values():
        assert recipe.manual and all(source.url.startswith("https://") for source in recipe.sources)


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_an_archive_that_grows_beyond_measure_is_refused_before_it_is_unpacked(tmp_path, suffix):
    """200 MiB of zeros are 200 KiB when they are packed."""
    path, size = tmp_path / f"bomb{suffix}", 200 * 2**20
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
            zipped.writestr("zeros", bytes(size))
    else:
        with tarfile.open(path, "w:gz", compresslevel=1) as tarred:
            info = tarfile.TarInfo("zeros")
            info.size = size
            tarred.addfile(info, io.BytesIO(bytes(size)))
    with pytest.raises(DataError, match="grow to at most .* but they are at least 200.0 MiB"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_an_archive_that_does_not_fit_on_the_disk_is_refused(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    with pytest.raises(DataError, match="make room"):
        extract(archive(tmp_path / f"a{suffix}", ["good.txt", "two.txt"]), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_an_archive_of_countless_members_is_refused(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("distill.data.download.MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="at most 3 files and folders"):
        extract(archive(tmp_path / f"a{suffix}", list("abcd")), tmp_path / "out")


def test_an_encrypted_archive_is_told(tmp_path):
    path = archive(tmp_path / "a.zip", ["good.txt"])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="it is damaged"):
        extract(path, tmp_path / "out")
