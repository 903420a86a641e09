"""A server as a program of its own: ``python -m tests.e2e.echo_server``. Prints where it listens, and then nothing."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from trio_wskit import App, Context, Limits, Router, Rpc, Server, message, run, serve

ROOT = Path(__file__).parents[2]


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("WAIT")
class Wait(Rpc[Said]):
    pass


router = Router()


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    await ctx.send(Said(ctx.payload.text))


@router.rpc(Wait)
async def wait(ctx: Context[Wait]) -> Said:
    ctx.progress(0)
    await trio.Event().wait()
    return Said("never")


def announce(server: Server) -> None:
    """Tell the parent where we listen."""
    print(server.urls[0], server.port, flush=True)  # noqa: T201 - the parent reads it


async def serve_bare(app: App, port: int, **options: Any) -> None:
    """As a program does that has other things to do as well."""
    async with trio.open_nursery() as nursery:
        announce(await nursery.start(partial(serve, app, "127.0.0.1", port, **options)))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--transport", default="native")
    parser.add_argument("--reuse-port", action="store_true")
    parser.add_argument("--descriptors", type=int)
    parser.add_argument("--bare", action="store_true", help="serve in trio.run, without signal handlers of ours")
    arguments = parser.parse_args()
    if arguments.descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.descriptors, arguments.descriptors))
    app = App(router, limits=Limits(handshake_timeout=5))
    options: dict[str, Any] = {"transport": arguments.transport, "reuse_port": arguments.reuse_port}
    if arguments.bare:
        trio.run(partial(serve_bare, app, arguments.port, **options))
    else:
        run(app, "127.0.0.1", arguments.port, on_started=announce, **options)


@contextmanager
def running(*arguments: str) -> Generator[tuple[subprocess.Popen[str], Server]]:
    """Run the program while the block runs."""
    command = [sys.executable, "-m", "tests.e2e.echo_server", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line, process.communicate()[1]
            yield process, Server([line[0]], int(line[1]))
        finally:
            process.kill()


if __name__ == "__main__":
    main()
