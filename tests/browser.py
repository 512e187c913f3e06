"""Headless Chromium for tests of pages, which may reach nothing but this machine.

One Chromium serves all tests of a process. Each test connects to it anew: Playwright keeps an event loop running while it is
connected, which would be in the way of tests that start one of their own.

The environment variable ``CHROMIUM`` names the program, where it is none of those that are looked for. Tests skip where there
is none, and fail where ``REQUIRE_CHROMIUM`` is set, as in ``.ci/run``.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOCAL_SCHEMES = ("file", "data", "blob", "about")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SWITCHES = (
    "--headless=new",
    "--remote-debugging-port=0",  # Chromium chooses one and writes it to DevToolsActivePort
    "--no-first-run",
    "--no-sandbox",  # as root, and where user namespaces are switched off; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers give /dev/shm 64 MB
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names other than these are not even looked up, whatever makes the request.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)


def find_chromium() -> str | None:
    """Returns the path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *PROGRAMS))), None)


def is_local(address: str) -> bool:
    """Says whether a request to ``address`` stays on this machine."""
    parts = urlsplit(address)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname in LOOPBACK


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts Chromium, and gives the address that Playwright connects to."""
    program = find_chromium()
    if program is None:
        reason = f"no Chromium: none of {', '.join(PROGRAMS)} is installed; apt-get install chromium, or set CHROMIUM"
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    profile = tmp_path_factory.mktemp("chromium")
    command = [program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    with open(profile / "log.txt", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{_port(profile, process)}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _port(profile: Path, process: subprocess.Popen) -> int:
    """Waits for the file that holds Chromium's port."""
    file = profile / "DevToolsActivePort"
    for _ in range(600):
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"Chromium did not start: {(profile / 'log.txt').read_text(errors='replace')[-2000:]}")


@pytest.fixture
def browser_page(browser: str) -> Iterator[object]:
    """A page of its own for each test, see :func:`open_page`."""
    with open_page(browser) as page:
        yield page


@contextmanager
def open_page(browser: str) -> Iterator[object]:
    """Gives a Playwright page of 1000 x 800 px in a context of its own.

    ``page.refused`` lists the addresses of requests that would have left this machine and were stopped, ``page.faults`` what
    the page threw or wrote to the console as an error. A test asserts that both are empty.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[test]'")
    with playwright.sync_playwright() as driver:
        connected = driver.chromium.connect_over_cdp(browser)
        context = connected.new_context(service_workers="block", viewport={"width": 1000, "height": 800})
        page = context.new_page()
        page.refused, page.faults = [], []

        def allow(route):
            if is_local(route.request.url):
                route.continue_()
            else:
                page.refused.append(route.request.url)
                route.abort()

        context.route("**/*", allow)
        context.route_web_socket("**/*", lambda socket: page.refused.append(socket.url))  # not connected to its server
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
        page.set_default_timeout(30_000)
        yield page
        context.close()
        connected.close()
