"""`trio-wskit connect URL`: talk to a ws-kit or trio-wskit server from a terminal. With rich it is coloured."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import trio

from trio_wskit.cli._conversation import HELP, Conversation
from trio_wskit.cli._lines import Lines
from trio_wskit.cli._record import Entry, Recorder, read_record
from trio_wskit.cli._screen import Screen
from trio_wskit.client import Attach, Reconnect, TokenAuth, open_client
from trio_wskit.errors import ConnectionClosed, TrioWskitError

__all__ = ["main"]


async def _connect(
    arguments: argparse.Namespace, screen: Screen, replayed: Sequence[Entry] | None, record: IO[str] | None
) -> ConnectionClosed | None:
    """Talk, and return why the connection is over, if that is why."""
    token: str | None = arguments.token or os.environ.get("TRIO_WSKIT_TOKEN")
    attach: Attach = arguments.attach
    read_line = screen.read_line if screen.is_interactive else Lines().read_line
    ended: ConnectionClosed | None = None
    async with open_client(
        arguments.url,
        auth=TokenAuth(token, attach=attach) if token else None,
        proxy=arguments.proxy,
        reconnect=Reconnect() if arguments.reconnect else None,
        wait=False,  # the conversation shows how it goes
    ) as client:
        conversation = Conversation(client, screen, Recorder(record))
        client.on_unhandled(conversation.got)
        client.on_error(conversation.failed)
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal ended
                ended = await conversation.watch(nursery)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                await client.wait_open()
            except ConnectionClosed:
                await trio.sleep_forever()  # until `watch` has seen it, too
            async with trio.open_nursery() as calls:  # at the end of the input, calls still get their answers
                if replayed is None:
                    await conversation.converse(read_line, calls)
                else:
                    await conversation.replay(replayed, calls)
            if replayed is not None:
                await trio.sleep(arguments.linger)
            nursery.cancel_scope.cancel()
    return ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trio-wskit", description="Tools for ws-kit and trio-wskit servers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    connect = commands.add_parser(
        "connect",
        help="talk to a server from this terminal",
        description=f"{__doc__}\n\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    connect.add_argument("url", help="ws://host:port/path, or wss")
    connect.add_argument("--token", help="who you are; better in the environment, as TRIO_WSKIT_TOKEN")
    connect.add_argument("--attach", choices=["query", "protocol", "header"], default="query", help="where it goes")
    connect.add_argument("--proxy", help="http://host:port (or https), which is asked for a tunnel")
    connect.add_argument("--no-reconnect", dest="reconnect", action="store_false", help="end with the connection")
    connect.add_argument("--record", metavar="FILE", help="write everything down")
    connect.add_argument("--replay", metavar="FILE", help="do again what was recorded, at the same times, and end")
    connect.add_argument("--linger", metavar="SECONDS", type=float, default=1.0, help="wait for answers after a replay")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code: 1 where there is no connection, or none any more."""
    parsed = _parser().parse_args(arguments)
    screen = Screen()
    logging.getLogger("trio_wskit").addHandler(logging.NullHandler())  # the screen says it
    try:
        with contextlib.ExitStack() as stack:
            replayed = None
            if parsed.replay:
                replayed = read_record(Path(parsed.replay).read_text(encoding="utf-8").splitlines())
            record = stack.enter_context(Path(parsed.record).open("w", encoding="utf-8")) if parsed.record else None
            stack.enter_context(screen.kept())
            ended = trio.run(_connect, parsed, screen, replayed, record)
    except (TrioWskitError, OSError, ValueError) as error:
        print(f"trio-wskit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return 130
    if ended is None:
        return 0
    if not screen.is_interactive:  # there it has been said
        print(f"trio-wskit: {ended}", file=sys.stderr)
    return 1
