"""`trio-wskit connect` in a pseudo terminal, as somebody who types sees it."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import termios
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, final

import pytest
import trio

from tests.cli.server import app
from tests.serving import serving, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]  # a Python that starts on a busy machine

UP = "\x1b[A"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

# The program has the terminal as its own, as from a shell: then Ctrl-C there is a signal to it. Whatever started us
# may ignore that their terminal hangs up; a shell does not.
ATTACH = """import fcntl, os, signal, sys, termios
os.setsid()
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from trio_wskit.cli import main
sys.exit(main())"""


@final
class Terminal:
    """A terminal with a program in it. What the program shows is in `shown`, and without colours in `text`."""

    def __init__(self, process: trio.Process, end: trio.lowlevel.FdStream, line: int) -> None:
        self.process = process
        self.shown = ""
        self.line = line
        self._end = end

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.shown)

    async def watch(self) -> None:
        with suppress(trio.BrokenResourceError, OSError):  # the last one has closed it
            while data := await self._end.receive_some():
                self.shown += data.decode(errors="replace")

    async def type(self, keys: str) -> None:
        await self._end.send_all(keys.encode())

    async def until(self, text: str, times: int = 1) -> None:
        try:
            await until(lambda: self.text.count(text) >= times, seconds=40)
        except trio.TooSlowError:
            raise AssertionError(f"{text!r} was not shown, but {self.shown!r}") from None

    async def ends(self) -> int:
        try:
            with trio.fail_after(40):
                return await self.process.wait()
        except trio.TooSlowError:
            raise AssertionError(f"it goes on, and has shown {self.shown!r}") from None


@asynccontextmanager
async def terminal(url: str, *arguments: str, **environment: str) -> AsyncGenerator[Terminal]:
    ours, theirs = pty.openpty()
    line = os.dup(theirs)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", ATTACH, "connect", url, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "INPUTRC": os.devnull, **environment},
    )
    os.close(theirs)
    end = trio.lowlevel.FdStream(ours)
    try:
        async with trio.open_nursery() as nursery:
            found = Terminal(process, end, line)
            nursery.start_soon(found.watch)
            yield found
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await end.aclose()
        os.close(line)


def settings(line: int) -> list[Any]:
    return termios.tcgetattr(line)


async def test_what_comes_is_shown_above_what_is_being_typed() -> None:
    async with serving(app()) as server, terminal(server.urls[0]) as shell:
        await shell.until("* open")
        await shell.type('/send SAY {"text": "first"}\r')
        await shell.until('"text": "first"}}')
        await shell.type('/send SAY {"text": "later"}\r')
        await shell.until('> /send SAY {"text": "later"}')
        await shell.type("/send SA")
        await shell.until('"text": "later"}}')
        await until(lambda: shell.text.endswith("\n> /send SA"))
        await shell.type('Y {"text": "second"}\r')
        await shell.until('"text": "second"}}')
        assert "\x1b[36m<" in shell.shown, "rich is installed here, and there are no colours"


async def test_lines_have_a_history() -> None:
    async with serving(app()) as server, terminal(server.urls[0]) as shell:
        await shell.until("* open")
        await shell.type('/call ADD {"n": 41}\r')
        await shell.until('{"n": 42}')
        await shell.type(UP + "\r")
        await shell.until('{"n": 42}', times=2)


@pytest.mark.parametrize(("key", "code"), [("\x04", 0), ("/quit\r", 0), ("\x03", 130)])
async def test_keys_that_end_it_leave_the_terminal_as_it_was(key: str, code: int) -> None:
    closes: list[int | None] = []
    async with serving(app(closes=closes)) as server, terminal(server.urls[0]) as shell:
        before = settings(shell.line)
        await shell.until("* open")
        await shell.until("> ")
        assert settings(shell.line) != before, "nobody can edit a line"
        await shell.type(key)
        assert await shell.ends() == code
        assert settings(shell.line) == before
        assert "Traceback" not in shell.text
        await until(lambda: closes)
        assert closes == [1000], "the server was not told goodbye"


async def test_ctrl_c_ends_it_while_nobody_is_there() -> None:
    async with terminal("ws://127.0.0.1:1/") as shell:
        await shell.until("* reconnecting: no connection to ws://127.0.0.1:1/: ")
        await shell.until("* connecting", times=2)
        await shell.type("\x03")
        assert await shell.ends() == 130
        assert "Traceback" not in shell.text


async def test_a_server_that_ends_is_seen_and_comes_back_with_the_topics() -> None:
    topics: list[str] = []
    async with serving(app(topics)) as server, terminal(server.urls[0]) as shell:
        await shell.until("* open")
        await shell.type("/sub room:1\r")
        await shell.until("SUBSCRIBED")
        await shell.type('/send BYE {"code": 4000}\r')
        await shell.until("* reconnecting: connection closed with 4000 (as asked) (again in ")
        await shell.until("* open", times=2)
        await until(lambda: topics == ["room:1", "room:1"])


async def test_a_server_that_ends_for_good_ends_it_too() -> None:
    async with serving(app()) as server, terminal(server.urls[0]) as shell:
        before = settings(shell.line)
        await shell.until("* open")
        await shell.type('/send BYE {"code": 4401}\r')
        assert await shell.ends() == 1
        assert "* closed: connection closed with 4401 (as asked)" in shell.text
        assert settings(shell.line) == before


async def test_what_a_server_says_does_not_steer_the_terminal() -> None:
    async with serving(app()) as server, terminal(server.urls[0], NO_COLOR="1") as shell:
        await shell.until("* open")
        await shell.type('/send SAY {"text": "\\u001b[2J\\u009b2J[red]\\u202e"}\r')
        await shell.until("[red]", times=2)
        assert "\x1b[2J" not in shell.shown
        assert "\x9b" not in shell.shown
        assert "\u202e" not in shell.shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it(number: int) -> None:
    async with serving(app()) as server, terminal(server.urls[0]) as shell:
        await shell.until("* open")
        shell.process.send_signal(number)
        assert await shell.ends() != 0
