"""A folder of static files on the loopback address, by the standard library's server."""

import functools
import posixpath
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from distill.core.errors import ConfigError

ADDRESS = "127.0.0.1"
TRIED = 20  # ports after a busy one


class PageHandler(SimpleHTTPRequestHandler):
    """Serves the files below ``directory``: no lists of folders, no files that links lead out to, to this machine's names only."""

    extensions_map = {  # not the machine's own table, which may call JavaScript plain text
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".json": "application/json",
        ".wasm": "application/wasm",
        ".png": "image/png",
        ".txt": "text/plain; charset=utf-8",
        "": "application/octet-stream",
    }

    def send_head(self) -> Any:
        """Refuses what is not to be served before a file is opened."""
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in (ADDRESS, "localhost"):  # a page elsewhere whose name leads here
            self.send_error(HTTPStatus.FORBIDDEN, "Expected the loopback address")
            return None
        if not self._is_served():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def _is_served(self) -> bool:
        """Says whether the address is that of a file of the page, or of a folder with an index.html."""
        try:
            root, file = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
            inside = file == root or root in file.parents
            return inside and (file.is_file() or (file / "index.html").is_file())
        except (OSError, ValueError):  # a name that no file can have
            return False

    def end_headers(self) -> None:
        """Adds what lets the page use threads, and keeps browsers from guessing types and keeping old files."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def guess_type(self, path: Any) -> str:
        """Returns the type by the file's suffix."""
        return self.extensions_map.get(posixpath.splitext(str(path))[1].lower(), self.extensions_map[""])

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet about requests."""


class _Server(ThreadingHTTPServer):
    """A server that does not report readers who leave before the end."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def page_server(folder: str | Path, port: int) -> ThreadingHTTPServer:
    """Returns a server of ``folder`` at the first free port from ``port`` on; 0 for any.

    Raises:
        ConfigError: when ``folder`` holds no page, or no port is free.
    """
    if not Path(folder, "index.html").is_file():
        raise ConfigError(
            f"Expected a page in {folder} but it has no index.html; write one with: python -m distill export "
            "ckpt=<student.safetensors> page=<folder>."
        )
    if not 0 <= port <= 65535:
        raise ConfigError(f"Expected port from 0 to 65535 but got {port}.")
    handler = functools.partial(PageHandler, directory=str(folder))
    ports = [0] if port == 0 else [p for p in range(port, port + TRIED) if p <= 65535]
    for candidate in ports:
        try:
            return _Server((ADDRESS, candidate), handler)
        except OSError as error:
            reason = error
    raise ConfigError(f"Expected a free port from {ports[0]} to {ports[-1]} but got: {reason}; set port=0 for any.")
