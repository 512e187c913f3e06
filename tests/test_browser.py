"""The headless browser that tests of pages share."""

import asyncio

import pytest
from browser import is_local

PAGE = """<h1>title</h1><img src="https://example.com/picture.png"><script>
addEventListener("error", event => document.title = "blocked", true);
fetch("http://10.0.0.1/").catch(() => document.body.append("refused"));
new WebSocket("wss://example.com/socket");
</script>"""


def test_requests_that_leave_the_machine_are_stopped_and_recorded(browser_page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(PAGE)
    browser_page.goto(file.as_uri())
    browser_page.get_by_text("refused").wait_for()
    assert browser_page.inner_text("h1") == "title"
    expected = {"https://example.com/picture.png", "http://10.0.0.1/", "wss://example.com/socket"}
    assert set(browser_page.refused) == expected


def test_what_a_page_throws_is_recorded(browser_page):
    browser_page.set_content("<script>throw new Error('wrong')</script>")
    assert any("wrong" in fault for fault in browser_page.faults) and not browser_page.refused


def test_an_event_loop_can_be_started_after_a_test_of_a_page(browser):
    assert browser.startswith("http://127.0.0.1:")
    assert asyncio.run(asyncio.sleep(0, "done")) == "done"


@pytest.mark.parametrize(
    "address, local",
    [
        ("file:///a.html", True),
        ("data:text/plain,a", True),
        ("blob:null/1", True),
        ("http://127.0.0.1:8000/a", True),
        ("http://localhost/", True),
        ("http://127.0.0.1.example.com/", False),
        ("https://cdn.example.com/a.js", False),
        ("ws://10.0.0.1/", False),
    ],
)
def test_local_addresses_are_those_of_this_machine(address, local):
    assert is_local(address) is local
