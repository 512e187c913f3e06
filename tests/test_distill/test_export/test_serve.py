"""The demo's server: files of the page, to this machine only, and nothing beside the folder."""

import http.client
import threading
from email.message import Message

import pytest

from distill.__main__ import main
from distill.core.errors import ConfigError
from distill.export.serve import page_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "page"
    (folder / "runtime").mkdir(parents=True)
    for name in ("index.html", "main.js", "style.css", "model.json", "runtime/ort.wasm", "encode.onnx"):
        (folder / name).write_text(name)
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with page_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, Message, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/main.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/model.json", "application/json"),
        ("/runtime/ort.wasm", "application/wasm"),
        ("/encode.onnx", "application/octet-stream"),
        ("/main.js?version=1", "text/javascript"),
    ],
)
def test_files_have_the_types_that_browsers_ask_for(server, path, kind):
    status, headers, body = get(server, path)
    assert status == 200 and headers["Content-Type"].split(";")[0] == kind and body
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//../secret.txt", "/link.txt", "/runtime/", "/none"],
)
def test_what_lies_beside_the_page_is_not_served(server, path):
    status, _, body = get(server, path)
    assert status == 404 and b"secret" not in body.replace(path.encode(), b"")


@pytest.mark.parametrize("path", ["/%00", "/%ed%a0%80", "/" + "a" * 5000, "/runtime/%00/index.html"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_names_that_no_file_can_have_are_not_found(server, path, method):
    assert get(server, path, method=method)[0] == 404


def test_another_name_that_leads_here_is_refused(server):
    assert get(server, "/", host="example.com")[0] == 403
    assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_nothing_can_be_sent_to_it(server):
    assert get(server, "/main.js", method="POST")[0] == 501
    assert get(server, "/main.js", method="PUT")[0] == 501


def test_it_listens_on_the_loopback_address_and_takes_the_next_port_where_one_is_busy(server, folder):
    assert server.server_address[0] == "127.0.0.1"
    with page_server(folder, server.server_port) as second:
        assert server.server_port < second.server_port < server.server_port + 20


def test_what_is_no_page_and_no_port_are_told(tmp_path, capsys):
    assert main(["demo", f"page={tmp_path}"]) == 2
    assert "has no index.html; write one with: python -m distill export" in capsys.readouterr().err
    (tmp_path / "index.html").touch()
    with pytest.raises(ConfigError, match="port from 0 to 65535 but got 70000"):
        page_server(tmp_path, 70000)
    assert main(["demo", f"page={tmp_path}", "port=many"]) == 2
    assert "port" in capsys.readouterr().err
