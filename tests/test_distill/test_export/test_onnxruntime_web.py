"""ONNX Runtime for browsers: fetched once and verified, or given; a clear error without a network."""

import base64
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from distill.core.errors import DataError
from distill.export import onnxruntime_web
from distill.export.onnxruntime_web import FILES, VERSION, cache_file, copy_runtime


def package(names, **content) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            data = content.get(name, name.encode())
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def whole() -> bytes:
    names = [f"dist/{name}" for files in FILES.values() for name in files.values()]
    return package([*names, "package.json"], **{"package.json": b'{"version": "1.2.3", "license": "MIT"}'})


@pytest.fixture
def registry(monkeypatch, tmp_path, whole):
    """A registry on this machine; gives the list of what was asked of it."""
    asked, answers = [], {"body": whole}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answers["body"])))
            self.end_headers()
            self.wfile.write(answers["body"])

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", base64.b64encode(hashlib.sha512(whole).digest()).decode())
    yield asked, answers
    server.shutdown()
    server.server_close()


def test_it_is_fetched_once_and_copied_with_suffixes_that_every_host_knows(registry, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        names = copy_runtime(folder)
    assert registry[0] == [f"/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"]
    assert names["wasm"] == {
        "script": "ort.wasm.min.js",
        "module": "ort-wasm-simd-threaded.js",
        "wasm": "ort-wasm-simd-threaded.wasm",
    }
    assert (folder / "ort.wasm.min.js").read_text() == "dist/ort.wasm.min.mjs"
    assert "1.2.3, licence MIT" in (folder / "ABOUT.txt").read_text()


def test_another_content_than_the_pinned_one_is_refused_and_not_kept(registry, tmp_path):
    registry[1]["body"] = package(["package.json"])
    with pytest.raises(DataError, match="with SHA-512 .* nothing was kept, do not trust that registry"):
        copy_runtime(tmp_path)
    assert not cache_file().exists()


def test_a_damaged_cache_is_fetched_again(registry, tmp_path):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(b"half")
    copy_runtime(tmp_path)
    assert len(registry[0]) == 1


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=f"run: npm pack onnxruntime-web@{VERSION}, and give the file here"):
        copy_runtime(tmp_path)


def test_a_package_of_ones_own_is_taken_as_it_is(tmp_path, whole):
    (tmp_path / "given.tgz").write_bytes(whole)
    copy_runtime(tmp_path, tmp_path / "given.tgz")
    assert (tmp_path / "ort.webgpu.min.js").is_file()


@pytest.mark.parametrize(
    "about", [b"{", b"\xff", b"[]", b"3", b"[" * 100_000], ids=["cut", "bytes", "list", "number", "deep"]
)
def test_what_a_package_says_of_itself_is_damaged(tmp_path, about):
    names = [f"dist/{name}" for files in FILES.values() for name in files.values()]
    (tmp_path / "given.tgz").write_bytes(package([*names, "package.json"], **{"package.json": about}))
    with pytest.raises(DataError, match=r"given.tgz but its package\.json cannot be read: .*; run: npm pack"):
        copy_runtime(tmp_path, tmp_path / "given.tgz")


def test_an_archive_whose_compressed_bytes_are_damaged_is_refused(tmp_path):
    name = "dist/" + FILES["wasm"]["script"]
    content = bytearray(package([name], **{name: " ".join(str(n * n) for n in range(20_000)).encode()}))
    content[2000:6000] = b"U" * 4000  # zlib says so, not tarfile
    (tmp_path / "given.tgz").write_bytes(content)
    with pytest.raises(DataError, match="npm package onnxruntime-web at .*given.tgz"):
        copy_runtime(tmp_path, tmp_path / "given.tgz")


@pytest.mark.parametrize("content", [b"no archive", package(["package.json"])])
def test_what_is_no_package_is_refused(tmp_path, content):
    (tmp_path / "given.tgz").write_bytes(content)
    with pytest.raises(DataError, match="npm package onnxruntime-web at .*given.tgz"):
        copy_runtime(tmp_path, tmp_path / "given.tgz")
    with pytest.raises(DataError, match="npm package onnxruntime-web at .*none"):
        copy_runtime(tmp_path, tmp_path / "none")
