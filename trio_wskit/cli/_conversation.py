"""What one run of `trio-wskit connect` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import trio

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit.cli._record import Entry, Recorder
from trio_wskit.cli._screen import Screen, as_json, explained
from trio_wskit.client import Client
from trio_wskit.errors import ConnectionClosed, TrioWskitError

__all__ = ["HELP", "Conversation"]

HELP: Final = """\
/send TYPE {json}     send a message
/call TYPE {json}     send a request; its progress and its answer are printed
/sub TOPIC            subscribe, with the default pair of messages
/unsub TOPIC          end that
/help                 this
/quit                 leave (or Ctrl-D)

What comes is printed as it comes: < what the server says, > what is replayed, ! what went wrong, * the state."""

_COMMANDS: Final = {"/send": "send", "/call": "call", "/sub": "sub", "/unsub": "unsub"}


@final
class Conversation:
    """Between somebody at a terminal, or a record, and a server.

    Args:
        client: the connection.
        screen: where it is shown.
        recorder: where it is written down.
    """

    def __init__(self, client: Client, screen: Screen, recorder: Recorder) -> None:
        self._client = client
        self._screen = screen
        self._recorder = recorder
        self._topics: dict[str, None] = {}

    def got(self, envelope: Envelope) -> None:
        """Show what came."""
        self._recorder.write(got=as_json(envelope))
        self._screen.say("<", as_json(envelope))

    def failed(self, error: Exception, _: Envelope | None = None) -> None:
        """Show what went wrong."""
        self._recorder.write(error=explained(error))
        self._screen.say("!", explained(error))

    async def watch(self, calls: trio.Nursery) -> ConnectionClosed:
        """Show the changes of the state, subscribe anew on each new connection, and return the end."""
        has_been_open = False
        with self._client.states() as changes:
            async for change in changes:
                why = f": {change.reason}" if change.reason is not None else ""
                if change.delay is not None:
                    why += f" (again in {change.delay:.1f} s)"
                self._screen.say("*", change.state + why)
                if change.state == "open":
                    if has_been_open:
                        for topic in self._topics:
                            calls.start_soon(self._subscribe, topic)
                    has_been_open = True
        return await self._client.wait_closed()

    async def obey(self, line: str, calls: trio.Nursery) -> bool:
        """Do what a line says. False to end."""
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if word == "/help":
            for one in HELP.splitlines():
                self._screen.say("*", one)
        elif word in _COMMANDS:
            name, _, text = rest.strip().partition(" ")
            if not name:
                self._screen.say("!", f"{word} takes a {'topic' if 'sub' in word else 'type'}: /help")
                return True
            try:
                payload = json.loads(text) if text.strip() else ABSENT
            except ValueError as error:
                self._screen.say("!", f"not JSON: {error}")
            else:
                await self.do(Entry(0, _COMMANDS[word], name, payload), calls)
        elif word:
            self._screen.say("!", f"what is {word!r}? /help tells what there is")
        return True

    async def do(self, entry: Entry, calls: trio.Nursery) -> None:
        """Send a message, or begin a call."""
        self._recorder.write(**entry.as_json())
        if entry.operation == "send":
            try:
                await self._client.send_json(entry.name, entry.payload)
            except TrioWskitError as error:
                self.failed(error)
        elif entry.operation == "call":
            calls.start_soon(self._call, entry.name, entry.payload)
        elif entry.operation == "sub":
            await self._subscribe(entry.name)
        else:
            self._topics.pop(entry.name, None)
            await self._call("UNSUBSCRIBE", {"topic": entry.name})

    async def _subscribe(self, topic: str) -> None:
        if await self._call("SUBSCRIBE", {"topic": topic}):
            self._topics[topic] = None

    async def _call(self, type_name: str, payload: Any) -> bool:
        """Ask; show progress and answer. False where it went wrong."""
        try:
            async with self._client.call_json(type_name, payload) as call:
                async for step in call.progress:
                    self._recorder.write(progress=step, type=type_name)
                    self._screen.say("<", {"progress": step, "type": type_name})
                self.got(await call.reply)
        except TrioWskitError as error:
            self.failed(error)
            return False
        return True

    async def replay(self, entries: Sequence[Entry], calls: trio.Nursery) -> None:
        """Do again what was recorded, at the same times."""
        for entry in entries:
            await trio.sleep(max(0.0, entry.at - self._recorder.now))
            self._screen.say(">", entry.as_json())
            await self.do(entry, calls)

    async def converse(self, read_line: Callable[[], str], calls: trio.Nursery) -> None:
        """Obey lines until there are no more."""
        while True:
            try:
                line = await trio.to_thread.run_sync(read_line, abandon_on_cancel=True)
            except EOFError:
                return
            if not await self.obey(line, calls):
                calls.cancel_scope.cancel()
                return
