"""`trio-wskit connect URL`: talk to a ws-kit or trio-wskit server from a terminal.

    /send TYPE {json}     send a message
    /call TYPE {json}     send a request, and wait for its answer
    /sub TOPIC            subscribe, with the default pair of messages
    /unsub TOPIC          end that
    /help                 this
    /quit                 leave (or Ctrl-D)

What comes is printed as it comes. With the extra `cli` (rich) it is coloured; nothing needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, final

import trio

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit.client import Attach, Client, Reconnect, TokenAuth, open_client
from trio_wskit.errors import TrioWskitError

__all__ = ["main"]

Say = Callable[[str, object], None]

_OPERATIONS: Final = {"/send": "send", "/call": "call", "/sub": "sub", "/unsub": "unsub"}


def _coloured() -> Say | None:
    """A printer with colours; None where rich is not installed, or where nobody would see them."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return None
    try:
        from rich.console import Console
        from rich.json import JSON
        from rich.text import Text
    except ImportError:
        return None
    console = Console()
    colours = {"<": "cyan", ">": "green", "!": "bold red", "*": "yellow"}

    def say(mark: str, what: object) -> None:
        console.print(Text(mark, style=colours.get(mark, "")), end=" ")
        console.print(what if isinstance(what, str) else JSON(json.dumps(what, ensure_ascii=False), indent=None))

    return say


def _plain(mark: str, what: object) -> None:
    text = what if isinstance(what, str) else json.dumps(what, ensure_ascii=False)
    print(mark, text, flush=True)


def _as_json(envelope: Envelope) -> dict[str, Any]:
    found: dict[str, Any] = {"type": envelope.type, "meta": envelope.meta}
    if envelope.payload is not ABSENT:
        found["payload"] = envelope.payload
    return found


@final
class _Terminal:
    """What one run of `connect` shares.

    Args:
        client: the connection.
        say: prints a line.
        record: where everything is written down, a JSON object a line: ``at`` in seconds, and ``op``, ``type`` and
            ``payload`` for what was asked of us, or ``got`` for what came.
    """

    def __init__(self, client: Client, say: Say, record: IO[str] | None) -> None:
        self._client = client
        self._say = say
        self._record = record
        self._began = trio.current_time()

    def _write(self, **fields: object) -> None:
        if self._record is not None:
            at = round(trio.current_time() - self._began, 3)
            self._record.write(json.dumps({"at": at, **fields}, ensure_ascii=False) + "\n")
            self._record.flush()

    def got(self, envelope: Envelope) -> None:
        """Print what came."""
        self._write(got=_as_json(envelope))
        self._say("<", _as_json(envelope))

    def failed(self, error: Exception, _: Envelope | None = None) -> None:
        """Print what went wrong."""
        self._say("!", str(error))

    async def watch(self) -> None:
        """Print the changes of the state."""
        with self._client.states() as changes:
            async for change in changes:
                why = f": {change.reason}" if change.reason is not None else ""
                self._say("*", change.state + why)

    async def obey(self, line: str, nursery: trio.Nursery) -> bool:
        """Do what a line says. False to end."""
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if word == "/help":
            self._say("*", (__doc__ or "").strip())
        elif word in _OPERATIONS:
            type_name, _, text = rest.strip().partition(" ")
            try:
                payload = json.loads(text) if text.strip() else ABSENT
            except ValueError as error:
                self._say("!", f"not JSON: {error}")
            else:
                await self.do(_OPERATIONS[word], type_name, payload, nursery)
        elif word:
            self._say("!", f"what is {word!r}? /help tells what there is")
        return True

    async def do(self, operation: str, type_name: str, payload: Any, nursery: trio.Nursery) -> None:
        """Send a message, or begin a call."""
        fields = {} if payload is ABSENT else {"payload": payload}
        self._write(op=operation, type=type_name, **fields)
        if operation == "send":
            try:
                await self._client.send_json(type_name, payload)
            except TrioWskitError as error:
                self.failed(error)
        elif operation == "call":
            nursery.start_soon(self._call, type_name, payload)
        else:
            await self._call("SUBSCRIBE" if operation == "sub" else "UNSUBSCRIBE", {"topic": type_name})

    async def _call(self, type_name: str, payload: Any) -> None:
        try:
            self.got(await self._client.request_json(type_name, payload))
        except TrioWskitError as error:
            self.failed(error)

    async def replay(self, lines: Sequence[str], nursery: trio.Nursery) -> None:
        """Do again what was recorded, at the same times."""
        for line in lines:
            entry = json.loads(line)
            if "op" in entry:
                await trio.sleep(max(0.0, entry["at"] - (trio.current_time() - self._began)))
                self._say(">", entry)
                await self.do(entry["op"], entry["type"], entry.get("payload", ABSENT), nursery)

    async def converse(self, nursery: trio.Nursery) -> None:
        """Obey lines from the terminal until there are no more."""
        prompt = "> " if sys.stdin.isatty() else ""
        if prompt:
            with contextlib.suppress(ImportError):
                import readline as _  # noqa: F401 - gives input() a history and keys to edit with
        with contextlib.suppress(EOFError):
            while await self.obey(await trio.to_thread.run_sync(input, prompt, abandon_on_cancel=True), nursery):
                pass
            nursery.cancel_scope.cancel()


async def _connect(arguments: argparse.Namespace, replayed: Sequence[str] | None, record: IO[str] | None) -> None:
    token: str | None = arguments.token or os.environ.get("TRIO_WSKIT_TOKEN")
    attach: Attach = arguments.attach
    async with open_client(
        arguments.url,
        auth=TokenAuth(token, attach=attach) if token else None,
        proxy=arguments.proxy,
        reconnect=Reconnect() if arguments.reconnect else None,
    ) as client:
        terminal = _Terminal(client, _coloured() or _plain, record)
        client.on_unhandled(terminal.got)
        client.on_error(terminal.failed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminal.watch)
            async with trio.open_nursery() as calls:  # at the end of the input, calls still get their answers
                if replayed is None:
                    await terminal.converse(calls)
                else:
                    await terminal.replay(replayed, calls)
            if replayed is not None:
                await trio.sleep(arguments.linger)
            nursery.cancel_scope.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trio-wskit", description="Tools for ws-kit and trio-wskit servers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    connect = commands.add_parser(
        "connect",
        help="talk to a server from this terminal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    connect.add_argument("url", help="ws://host:port/path, or wss")
    connect.add_argument("--token", help="who you are; better in the environment, as TRIO_WSKIT_TOKEN")
    connect.add_argument("--attach", choices=["query", "protocol", "header"], default="query", help="where it goes")
    connect.add_argument("--proxy", help="http://host:port, which is asked for a tunnel")
    connect.add_argument("--no-reconnect", dest="reconnect", action="store_false", help="end with the connection")
    connect.add_argument("--record", metavar="FILE", help="write everything down")
    connect.add_argument("--replay", metavar="FILE", help="do again what was recorded, at the same times, and end")
    connect.add_argument("--linger", metavar="SECONDS", type=float, default=1.0, help="wait for answers after a replay")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code: 1 where there is no connection."""
    parsed = _parser().parse_args(arguments)
    try:
        with contextlib.ExitStack() as files:
            replayed = Path(parsed.replay).read_text(encoding="utf-8").splitlines() if parsed.replay else None
            record = files.enter_context(Path(parsed.record).open("w", encoding="utf-8")) if parsed.record else None
            trio.run(_connect, parsed, replayed, record)
    except (TrioWskitError, OSError, ValueError) as error:
        print(f"trio-wskit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return 130
    return 0
