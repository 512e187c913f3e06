"""ONNX Runtime for browsers: a pinned version of its npm package, fetched once, verified, and copied beside a page.

Nothing of it is loaded from an outside address when the page runs.
"""

import base64
import hashlib
import http.client
import json
import os
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import IO, Any

from distill.core.errors import DataError
from distill.core.files import replacing

VERSION = "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package, base64, as the registry publishes it."""
REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 60  # seconds without a byte
LARGEST_BYTES = 64 * 2**20  # bytes, of the package and of each of its files

FILES = {
    "wasm": {
        "script": "ort.wasm.min.mjs",
        "module": "ort-wasm-simd-threaded.mjs",
        "wasm": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "script": "ort.webgpu.min.mjs",
        "module": "ort-wasm-simd-threaded.asyncify.mjs",
        "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}
"""By backend, what a page loads; a browser without WebGPU never loads the second set."""


def copy_runtime(folder: Path, given: str | Path | None = None) -> dict[str, dict[str, str]]:
    """Copies the files of ONNX Runtime to ``folder``.

    Modules get the suffix .js: some static hosts serve .mjs with a type that browsers refuse to run.

    Args:
        folder: that must be there.
        given: the package as a file (.tgz) or an unpacked folder, of whatever version; without it the pinned one, from
            the cache or the registry.

    Returns:
        By backend, "script", "module" and "wasm": the names of the files in ``folder``.

    Raises:
        DataError: when the package cannot be fetched, is damaged or lacks a file.
    """
    names: dict[str, dict[str, str]] = {}
    package = Path(given) if given is not None else _cached()
    for backend, files in FILES.items():
        names[backend] = {}
        for role, file in files.items():
            name = file.removesuffix(".mjs") + ".js" if file.endswith(".mjs") else file
            with replacing(folder / name) as unfinished:
                unfinished.write_bytes(_member(package, f"dist/{file}"))
            names[backend][role] = name
    about = _about(package)
    text = f"onnxruntime-web {about.get('version')}, licence {about.get('license')}, {about.get('homepage')}\n"
    with replacing(folder / "ABOUT.txt") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return names


def cache_file() -> Path:
    """Returns where the pinned package is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "distill", f"onnxruntime-web-{VERSION}.tgz")


def _cached() -> Path:
    """Returns the pinned package, fetched where the cache has none or a damaged one."""
    file = cache_file()
    if file.is_file() and _digest(file) == INTEGRITY:
        return file
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    try:
        print(f"ONNX Runtime for browsers: {address} (33 MB, kept in {file})", flush=True)
        with replacing(file) as unfinished:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, unfinished.open("wb") as target:
                _copy(answer, target)
            if _digest(unfinished) != INTEGRITY:
                raise DataError(
                    f"Expected {address} with SHA-512 {INTEGRITY} but got {_digest(unfinished)}; nothing was kept, do not "
                    "trust that registry."
                )
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"Expected to fetch ONNX Runtime for browsers from {address} but got: {error}; where there is a network, run: "
            f"npm pack onnxruntime-web@{VERSION}, and give the file here: onnxruntime_web=onnxruntime-web-{VERSION}.tgz."
        ) from error
    return file


def _copy(answer: IO[bytes], target: IO[bytes]) -> None:
    done = 0
    while chunk := answer.read(1 << 20):
        done += len(chunk)
        if done > LARGEST_BYTES:
            raise OSError(f"it is larger than {LARGEST_BYTES} bytes")
        target.write(chunk)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return base64.b64encode(hashlib.file_digest(opened, "sha512").digest()).decode()


def _about(package: Path) -> dict[str, Any]:
    """Returns what the package says of itself."""
    try:
        about = json.loads(_member(package, "package.json"))
        if not isinstance(about, dict):
            raise ValueError("is no JSON object")
    except (ValueError, RecursionError) as error:
        raise _damaged(package, f"its package.json cannot be read: {error}") from error
    return about


def _damaged(package: Path, found: object) -> DataError:
    return DataError(
        f"Expected the npm package onnxruntime-web at {package} but {' '.join(str(found).split())}; run: npm pack "
        f"onnxruntime-web@{VERSION}, and give that file."
    )


def _member(package: Path, name: str) -> bytes:
    """Returns a file of the package, which is a .tgz or a folder; nothing else of it is unpacked."""
    try:
        if package.is_dir():
            return (package / name).read_bytes()
        with tarfile.open(package) as archive:
            member = archive.getmember(f"package/{name}")
            opened = archive.extractfile(member) if member.isfile() and member.size <= LARGEST_BYTES else None
            if opened is None:
                raise OSError(f"{name} is no file of at most {LARGEST_BYTES} bytes")
            return opened.read()
    except (OSError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _damaged(package, error) from error
