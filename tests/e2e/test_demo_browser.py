"""The demo in a real browser: two tabs that chat, a job that is cancelled, a rate limit, a server that restarts."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import Browser, Tab, find_chromium, open_browser, wait_until
from tests.e2e.demo_server import ROOT, DemoServer, run_demo
from tests.needs import require

pytestmark = pytest.mark.e2e

ARTIFACTS = ROOT / "build" / "artifacts"

FOCUSED_STYLE = "(getComputedStyle(document.activeElement))"

Open = Callable[[str], Tab]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    require(executable, "Chromium is not installed (Debian: apt install chromium)")
    assert executable is not None
    with open_browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoServer]:
    with run_demo(tmp_path) as server:
        yield server


@pytest.fixture
def enter(browser: Browser, demo: DemoServer) -> Iterator[Open]:
    """Open a tab in the room `garden` under a name. No page may have an uncaught exception at the end."""
    tabs: list[Tab] = []

    def enter(name: str) -> Tab:
        tab = browser.open(f"{demo.url}#garden")
        tabs.append(tab)
        tab.until_text("#people", "(you)")
        tab.evaluate("document.querySelector('#name').select()")
        tab.type(name)
        tab.press("Enter")
        tab.until_text("#people", f"{name} (you)")
        assert tab.evaluate("document.activeElement.id") == "draft"
        assert tab.value("#draft") == ""
        return tab

    yield enter
    for tab in tabs:
        tab.close()
    assert browser.problems == []


def _say(tab: Tab, text: str) -> None:
    tab.focus("#draft")
    tab.type(text)
    tab.until("document.querySelector('#send').ariaDisabled === 'false'")
    tab.press("Enter")
    tab.until("document.querySelector('#draft').value === ''")


def _start_counting(tab: Tab) -> None:
    tab.evaluate("document.querySelector('#up-to').value = '10000000'")  # minutes of work
    tab.focus("#count-start")
    tab.press("Enter")


def test_two_tabs_chat_and_see_each_other(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    ada.until_text("#people", "Bob")
    bob.until_text("#people", "Ada")
    ada.until_text("#log", "Bob")  # that he has joined
    ada.until_text('#rooms [aria-current="page"]', "2")
    _say(ada, "Good morning, Bob")
    bob.until_text("#log", "Good morning, Bob")
    _say(bob, "Good morning, Ada")
    ada.until_text("#log", "Good morning, Ada")
    carol = enter("Carol")
    carol.until_text("#log", "Good morning, Ada")  # what was said before she came
    ada.screenshot(ARTIFACTS / "demo-chat.png")
    bob.close()
    ada.until_text("#log", "Bob left")


def test_a_room_keeps_its_messages_to_itself(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    bob.click("#add-room")
    bob.type("Tea & Cake")
    bob.press("Enter")
    bob.until_text("#room-title", "tea-cake")
    bob.until_text("#people", "Bob (you)")
    assert bob.evaluate("document.activeElement.id") == "draft"
    assert bob.value("#draft") == ""
    ada.until_text("#log", "Bob left")
    ada.until_text("#rooms", "tea-cake")
    _say(ada, "only in the garden")
    _say(bob, "only over tea")
    assert "tea" not in ada.text("#log")
    assert "garden" not in bob.text("#log")
    ada.click('#rooms a[href="#tea-cake"]')
    ada.until_text("#log", "only over tea")
    bob.until_text("#log", "Ada joined")
    assert "only in the garden" not in ada.text("#log")


def test_what_others_write_is_text_and_never_markup(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("<b>Bob</b>")
    markup = "<img src=x onerror='document.title=`owned`'><script>document.title='owned'</script>"
    _say(bob, markup)
    ada.until_text("#log", markup)
    ada.until_text("#people", "<b>Bob</b>")
    assert ada.evaluate("document.querySelectorAll('#log img, #log script, #log b b, #people b').length") == 0
    assert ada.evaluate("document.title") == "garden · trio-wskit"


def test_a_long_job_moves_and_escape_stops_it_on_the_server(enter: Open, demo: DemoServer) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    bob.until_text("#working", "The server is idle.")
    _start_counting(ada)
    bob.until_text("#working", "The server is counting.")
    first = ada.until("document.querySelector('#count-bar').value")
    ada.until(f"document.querySelector('#count-bar').value > {first}")
    assert ada.evaluate("document.activeElement.id") == "count-cancel"
    ada.screenshot(ARTIFACTS / "demo-counting.png")
    ada.press("Escape")
    ada.until_text("#count-result", "Cancelled at")
    bob.until_text("#working", "The server is idle.")
    if sys.platform == "linux":

        def idle() -> bool:
            before = demo.cpu_seconds()
            time.sleep(0.3)
            return demo.cpu_seconds() - before < 0.06

        wait_until("the server computes no more", idle)
    _say(ada, "and the connection lives")
    bob.until_text("#log", "and the connection lives")


def test_a_long_job_ends_with_its_answer(enter: Open) -> None:
    ada = enter("Ada")
    ada.evaluate("document.querySelector('#up-to').value = '100000'")
    ada.click("#count-start")
    ada.until_text("#count-result", "9,592 primes below 100,000", 40)


def test_closing_the_tab_stops_its_job(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    _start_counting(ada)
    bob.until_text("#working", "The server is counting.")
    ada.close()
    bob.until_text("#working", "The server is idle.")


def test_the_rate_limit_is_seen_and_costs_no_text(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    for number in range(20):
        ada.focus("#draft")
        ada.type(f"message {number}")
        ada.press("Enter")
        if (
            ada.until(
                "!document.querySelector('#notice').hidden ? 'slow' : document.querySelector('#draft').value === ''"
            )
            == "slow"
        ):
            break
    else:
        pytest.fail("20 messages in a row were all taken")
    assert "your text is kept" in ada.text("#notice")
    assert ada.value("#draft") == f"message {number}"
    ada.press("Enter")  # too early: nothing happens
    ada.screenshot(ARTIFACTS / "demo-rate-limit.png")
    ada.until_text("#notice", "Press Enter to send")
    assert ada.value("#draft") == f"message {number}"
    assert f"message {number}" not in bob.text("#log")
    ada.press("Enter")
    bob.until_text("#log", f"message {number}")
    ada.until("document.querySelector('#notice').hidden")


def test_both_tabs_come_back_after_a_restart(enter: Open, demo: DemoServer) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    _say(ada, "before the restart")
    bob.until_text("#log", "before the restart")
    _start_counting(bob)
    bob.until("document.querySelector('#count-bar').value")
    demo.signal(signal.SIGTERM)
    for tab in (ada, bob):
        tab.until_text("#notice", "your text is kept")
        tab.until_text("#working", "The server is away.")
        tab.until("document.querySelector('#send').ariaDisabled === 'true'")
    bob.until_text("#count-result", "The server has stopped the work.")
    ada.focus("#draft")
    ada.type("written while it was away")
    ada.press("Enter")  # kept: there is nobody to send it to
    ada.until_text("#state", "Offline")
    ada.screenshot(ARTIFACTS / "demo-offline.png")
    demo.start()
    for tab, other in ((ada, "Bob"), (bob, "Ada")):
        tab.until_text("#state", "Connected", 30)
        tab.until_text("#people", other)
        tab.until_text("#log", "Connected again")
        tab.until("document.querySelector('#notice').hidden")
        tab.until_text("#working", "The server is idle.")
        assert tab.text("#log").count("before the restart") == 1
    assert ada.value("#draft") == "written while it was away"
    ada.focus("#draft")
    ada.press("Enter")
    bob.until_text("#log", "written while it was away")
    _say(bob, "welcome back")
    ada.until_text("#log", "welcome back")
    ada.screenshot(ARTIFACTS / "demo-back-again.png")


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(enter: Open) -> None:
    ada = enter("Ada")
    ada.focus("#skip")
    ada.press("Enter")
    assert ada.evaluate("document.activeElement.id") == "draft"
    assert ada.text("#room-title") == "garden"  # the skip link has not changed the room
    ada.focus("#skip")
    path: list[str] = []
    while not path or path[-1] != "send":
        ada.press("Tab")
        path.append(
            ada.evaluate("document.activeElement.id || document.activeElement.hash || document.activeElement.tagName")
        )
        assert len(path) < 20, path
        ring = ada.evaluate("(({ outlineStyle, outlineWidth }) => outlineStyle + outlineWidth)" + FOCUSED_STYLE)
        assert ring == "solid2px", path
    rooms = ["#lobby", "#garden", "#workshop"]
    assert path == [
        "name",
        *rooms,
        "add-room",
        "SUMMARY",
        "up-to",
        "count-start",
        "log",
        "#garden",
        "draft",
        "send",
    ]  # "#garden": the link to a second tab


def test_the_page_fits_every_width_in_light_and_dark(enter: Open) -> None:
    ada, bob = enter("Ada"), enter("Bob")
    _say(bob, "a-word-that-never-ends-" * 12)
    ada.until_text("#log", "never-ends")
    for width in (320, 360, 768, 1200):
        for dark, background in ((False, "rgb(245, 244, 240)"), (True, "rgb(19, 22, 24)")):
            ada.look(width=width, height=740, dark=dark, motion=False)
            ada.until(f"getComputedStyle(document.body).backgroundColor === '{background}'")
            ada.screenshot(ARTIFACTS / f"demo-{width}-{'dark' if dark else 'light'}.png")
            assert ada.evaluate("document.documentElement.scrollWidth") == width
            assert ada.evaluate(
                "document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth"
            )
            assert ada.evaluate("document.getAnimations().length") == 0
