"""Recorded conversations with a real ws-kit server, replayed against ours; the differences are those of one table.

The table is docs/reference/differences.md. For each transcript its row says what ws-kit sent that we do not, and what
we send instead, exactly; a transcript without a row is answered as it was recorded.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, final

import pytest
import trio

from tests.serving import TRANSPORTS, Client, Refused, ask, connect, serving
from tests.transcript_apps import app_for
from trio_wskit import App, ConnectionClosed, Server
from trio_wskit._core.frames import binary_frame, ping_frame, text_frame

pytestmark = pytest.mark.e2e

ROOT: Final = Path(__file__).parent.parent
TABLE: Final = ROOT / "docs" / "reference" / "differences.md"
TRANSCRIPTS: Final = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests" / "data" / "transcripts").glob("*.json"))
    if int(path.name[:3]) < 200  # the others are of ws-kit's client
}
NOTHING: Final = "nothing"


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Of each row: the transcript, what ws-kit sent that we do not, and what we send that it did not."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| (\d{3}-[\w-]+) \| (.+?) \| (.+?) \| (.+?) \|", line):
            name, theirs, ours, _ = match.groups()
            assert name not in found, f"two rows for {name}"
            found[name] = (_cell(theirs), _cell(ours))
    return found


def _cell(text: str) -> list[str]:
    if text == NOTHING:
        return []
    found = re.findall(r"`` (.+?) ``(?: × (\d+))?(?:<br>|$)", text)
    return [frame for frame, times in found for _ in range(int(times or 1))]


def _as_cell(frames: Sequence[str]) -> str:
    groups = [(frame, len(list(same))) for frame, same in itertools.groupby(frames)]
    return "<br>".join(f"`` {one} ``" + (f" × {times}" if times > 1 else "") for one, times in groups) or NOTHING


@final
class Replay:
    """One conversation."""

    def __init__(self, server: Server, app: App, stack: AsyncExitStack, transcript: dict[str, Any]) -> None:
        self._server = server
        self._app = app
        self._stack = stack
        self._frames: list[dict[str, Any]] = [one for one in transcript["frames"] if "opcode" in one]
        self._clients: dict[str, Client] = {}
        self._ended: set[str] = set()
        self.recorded: list[str] = []
        self.heard: dict[str, list[str]] = {}

    @property
    def ours(self) -> list[str]:
        """All that we heard, connection by connection."""
        return [one for name in sorted(self.heard) for one in self.heard[name]]

    async def run(self) -> None:
        names = sorted({frame.get("conn", "") for frame in self._frames})
        by_name: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            self.heard[name] = []
            await self._open(name)
        for frame in self._frames:
            name = frame.get("conn", "")
            if frame["dir"] == "c2s":
                await self._send(name, frame)
            elif (line := _recorded(frame, name)) is not None:
                by_name[name].append(line)
                await self._hear(name, len(by_name[name]))
        for name in names:
            await self._settle(name)
        self.recorded = [line for name in names for line in by_name[name]]

    async def _open(self, name: str) -> None:
        opening = next(one for one in self._frames if one.get("conn", "") == name or name == "")
        target = str(opening.get("text", "GET /")).removeprefix("GET ")
        if opening["opcode"] == "http":
            answer = await ask(self._server, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            self._say(name, f"HTTP {answer.status} {answer.body.strip()}")
            return
        try:
            client = await connect(self._server, target if opening["opcode"] == "handshake" else "/")
        except Refused as refused:
            self._say(name, f"HTTP {refused.status} {refused.body.strip()}")
            return
        assert uuid.UUID(client.client_id).version == 7
        self._clients[name] = await self._stack.enter_async_context(client)
        self._say(name, "HTTP 101")

    async def _send(self, name: str, frame: dict[str, Any]) -> None:
        client = self._clients.get(name)
        text = frame.get("text", "")
        match frame["opcode"]:
            case _ if client is None:
                pass
            case "text":
                await client.send_frames(text_frame(text.encode("utf-8", "surrogatepass")))
                await self._settle(name)
            case "binary":
                await client.send_frames(binary_frame(text.encode()))
                await self._settle(name)
            case "ping":
                await client.send_frames(ping_frame(text.encode()))
            case "close":
                await self._settle(name)
                if name not in self._ended:
                    await client.close(frame["code"], text)
                    self._ended.add(name)
                    self._say(name, _close(client.peer.close_code, client.peer.close_reason))
            case "tcp-abort":
                client.cut()
                self._ended.add(name)
            case _:
                pass

    async def _settle(self, name: str) -> None:
        """Hear all that came of what was sent: behind it comes what is always answered."""
        for kind, answer in (("__heartbeat", "__heartbeat_ack"), ("NO SUCH TYPE", "NO SUCH TYPE")):
            if name in self._clients and name not in self._ended:
                with suppress(trio.BrokenResourceError):  # then the end is what we hear
                    await self._clients[name].send(kind)
                await self._read(name, until=answer)

    async def _hear(self, name: str, count: int) -> None:
        """Wait for what was recorded, if it takes its time."""
        with trio.move_on_after(2):
            while len(self.heard[name]) < count and name in self._clients and name not in self._ended:
                await self._read(name)

    async def _read(self, name: str, until: str | None = None) -> None:
        client = self._clients[name]
        while True:
            try:
                received = await client.peer.receive_any()
            except ConnectionClosed as closed:
                self._ended.add(name)
                self._say(name, _close(closed.code, closed.reason))
                return
            text = received.decode()
            if until is not None and until in text:
                return
            self._say(name, text if text.startswith("pong") else _plain(text, self._names()))
            if until is None:
                return

    def _names(self) -> dict[str, str]:
        return {client.client_id: f"<uuid{number}>" for number, client in enumerate(self._clients.values(), 1)}

    def _say(self, name: str, line: str) -> None:
        self.heard[name].append(f"{name}: {line}" if name else line)


def _close(code: int | None, reason: str) -> str:
    """Who breaks the protocol gets a reason in the server's own words: that is not compared."""
    return f"close {code}" if code in (1002, 1007, 1009) else f"close {code} {reason}".strip()


def _recorded(frame: dict[str, Any], name: str) -> str | None:
    text = frame.get("text", "")
    match frame["opcode"]:
        case "handshake" | "http":
            line = f"HTTP {frame['status']} {text}".strip()
        case "text":
            line = _plain(text, {})
        case "close":
            line = _close(frame["code"], text)
        case kind:
            line = f"{kind} {text}"
    return f"{name}: {line}" if name else line


def _plain(text: str, names: dict[str, str]) -> str:
    """A frame without what every frame of ours has: meta.timestamp. An empty meta is as good as none."""
    for name, placeholder in names.items():
        text = text.replace(name, placeholder)
    frame: dict[str, Any] = json.loads(text)
    meta = frame.get("meta", {})
    if abs(meta.get("timestamp", 0) / 1000 - time.time()) < 3600:
        del meta["timestamp"]
    if meta:
        frame["meta"] = dict(sorted(meta.items()))
    else:
        frame.pop("meta", None)
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_a_recorded_conversation_differs_only_where_the_table_says_so(name: str, transport: str) -> None:
    app = app_for(int(name[:3]))
    async with serving(app, transport) as server, AsyncExitStack() as stack:
        replay = Replay(server, app, stack, TRANSCRIPTS[name])
        with trio.fail_after(20):
            await replay.run()
    theirs: list[str] = []
    ours: list[str] = []
    matcher = difflib.SequenceMatcher(None, replay.recorded, replay.ours, autojunk=False)
    for kind, start, end, our_start, our_end in matcher.get_opcodes():
        if kind != "equal":
            theirs += replay.recorded[start:end]
            ours += replay.ours[our_start:our_end]
    row = f"| {name} | {_as_cell(theirs)} | {_as_cell(ours)} | why |" if theirs or ours else "no row"
    assert rows().get(name, ([], [])) == (theirs, ours), f"the table should have {row}"


def test_the_table_has_only_rows_of_transcripts_in_their_order() -> None:
    names = list(rows())
    assert names == sorted(names)
    assert set(names) <= set(TRANSCRIPTS)
