"""Headless Chromium, driven through the DevTools protocol: just what the tests of the demo need."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

from websockets.sync.client import ClientConnection, connect

T = TypeVar("T")

FLAGS = (
    "--headless",
    "--no-sandbox",  # a container's root has no other way
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome; `CHROMIUM` in the environment comes first."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    return None


def wait_until(what: str, look: Callable[[], T], seconds: float = 15) -> T:
    """Look again and again until there is something true to see, and return it.

    Raises:
        AssertionError: after `seconds`, with the last thing seen.
    """
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last seen: {seen!r}")
        time.sleep(0.03)
    return seen


@final
class Browser:
    """One DevTools connection to one browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._serial = 0
        self.problems: list[str] = []

    def call(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        """Do one command and wait for its answer; uncaught exceptions of pages are collected on the way."""
        self._serial += 1
        command = {"id": self._serial, "method": method, "params": params}
        self._connection.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while True:
            message = json.loads(self._connection.recv(timeout=20))
            if message.get("id") == self._serial:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"]))

    def open(self, url: str, *, width: int = 1200, height: int = 800) -> Tab:
        """Open `url` in a window of its own, so that no tab is in the background."""
        target = self.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        tab = Tab(self, target, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        tab.call("Page.enable")
        tab.call("Runtime.enable")
        tab.look(width=width, height=height)
        tab.call("Page.navigate", url=url)
        tab.until("location.protocol !== 'about:' && document.readyState === 'complete'")
        return tab


@final
class Tab:
    """One page. `evaluate` and `until` take JavaScript expressions, the other methods CSS selectors."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session
        self._closed = False

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        """Close the tab, as its user would; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._browser.call("Target.closeTarget", targetId=self._target)

    def evaluate(self, expression: str) -> Any:
        """The value of `expression`, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 15) -> Any:
        """Wait until `expression` is true, and return its value."""
        return wait_until(expression, lambda: self.evaluate(expression), seconds)

    def text(self, selector: str) -> str:
        """The text in the first element that fits, as it is seen: "" where it is hidden."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def until_text(self, selector: str, wanted: str, seconds: float = 15) -> str:
        """Wait until `wanted` is part of the text in the first element that fits; return all of that text."""
        last = ""

        def look() -> bool:
            nonlocal last
            last = self.text(selector)
            return wanted in last

        try:
            wait_until(f"{wanted!r} in {selector}", look, seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}; the text: {last!r}") from None
        return last

    def value(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).value"))

    def focus(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def look(self, *, width: int, height: int, dark: bool = False, motion: bool = True) -> None:
        """Set the size of the window and what its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        features: Mapping[str, str] = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "no-preference" if motion else "reduce",
        }
        self.call("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in features.items()])

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release one key of `KEYS`."""
        code, text = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path) -> None:
        """Write what is seen to `path`, as a PNG, once nothing fades in any more."""
        self.until("document.getAnimations().every((one) => one.animationName !== 'rise')")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_browser(executable: str, profile: Path) -> Generator[Browser]:
    """Start a browser with the empty folder `profile`; end it, and all its processes, on the way out."""
    command = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            port_file = profile / "DevToolsActivePort"

            def address() -> list[str]:
                assert process.poll() is None, f"{executable} ended with {process.returncode}"
                lines = port_file.read_text().split() if port_file.exists() else []
                return lines if len(lines) == 2 else []

            port, path = wait_until("the browser listens", address, 30)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as connection:
                yield Browser(connection)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its own group: the browser and its children, nobody else
            process.wait(10)
