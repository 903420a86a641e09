"""A server as a program that a test kills: ``python -m tests.client.mortal_server``. Prints where it listens."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import trio

from trio_wskit import App, Context, History, Router, Rpc, Server, message, serve
from trio_wskit.pubsub import default_subscriptions, with_broker

ROOT = Path(__file__).parents[2]


@message("TOLD")
class Told:
    text: str


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("ECHO")
class Echo(Rpc[Said]):
    text: str


@message("WAIT")
class Wait(Rpc[Said]):
    seconds: float


@message("TELL")
class Tell(Rpc[Said]):
    topic: str
    text: str


router = Router()
default_subscriptions(router)


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    await ctx.send(Said(ctx.payload.text))


@router.rpc(Echo)
async def echo(ctx: Context[Echo]) -> Said:
    return Said(ctx.payload.text)


@router.rpc(Wait)
async def wait(ctx: Context[Wait]) -> Said:
    ctx.progress(0)
    await trio.sleep(ctx.payload.seconds)
    return Said("waited")


@router.rpc(Tell)
async def tell(ctx: Context[Tell]) -> Said:
    result = await ctx.publish(ctx.payload.topic, Told(ctx.payload.text))
    assert result.ok, result
    return Said("done")


async def main(arguments: argparse.Namespace) -> None:
    """Serve until a signal. With a store, the histories are there when this process is not."""
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {}
        if arguments.store:
            from trio_wskit.pubsub.redis import open_redis_pubsub
            from trio_wskit.pubsub.redis_history import open_redis_history

            driver, consumer = await stack.enter_async_context(open_redis_pubsub(arguments.store))
            options["pubsub"] = with_broker(driver, consumer)
            options["history_store"] = await stack.enter_async_context(open_redis_history(arguments.store))
        app = App(router, history={"kept:*": History(size=100)}, **options)
        status = _Announcing()
        await serve(
            app,
            "127.0.0.1",
            arguments.port,
            handle_signals=True,
            shutdown_code=arguments.code,
            task_status=status,
        )


@final
class _Announcing(trio.TaskStatus[Server]):
    def started(self, value: Server | None = None) -> None:
        assert value is not None
        print(value.port, flush=True)  # noqa: T201 - the parent reads it


@final
class Mortal:
    """Starts the program on one port, and ends it in several ways, as often as asked.

    Args:
        arguments: of the program.
    """

    def __init__(self, *arguments: str) -> None:
        self.port = 0
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        """Start it, the second time on the port of the first; wait until it listens."""
        process = self._spawn()
        assert process.stdout is not None
        with trio.fail_after(30):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        assert line, f"it ended with {process.wait()}"
        self.port = int(line)

    def _spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.client.mortal_server", "--port", str(self.port), *self._arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._process = process
        return process

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end."""
        process = self._process
        assert process is not None
        with trio.fail_after(20):
            while process.poll() is None:  # noqa: ASYNC110 - nobody tells us
                await trio.sleep(0.01)
        assert process.stdout is not None
        process.stdout.close()
        return process.returncode

    async def kill(self) -> None:
        """End it at once, as when the machine loses it."""
        self.signal(signal.SIGKILL)
        await self.ended()

    def bury(self) -> None:
        """Leave nothing of it, whatever state it is in."""
        if self._process is not None:
            with self._process:
                self._process.kill()


@contextmanager
def mortal(*arguments: str) -> Generator[Mortal]:
    """A server that does not survive the block; start it in there."""
    server = Mortal(*arguments)
    try:
        yield server
    finally:
        server.bury()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--code", type=int, default=1001)
    parser.add_argument("--store", help="the URL of a Valkey, for topics and histories")
    trio.run(main, parser.parse_args())
