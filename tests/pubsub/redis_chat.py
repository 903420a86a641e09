"""An app on Redis, also as a program of its own: ``python -m tests.pubsub.redis_chat URL [MODE [PREFIX]]``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import trio

from tests.serving import Client, connect, serving
from trio_wskit import App, Context, Router, Rpc, Server, message, serve
from trio_wskit._core.backoff import Backoff
from trio_wskit.pubsub import BrokeredPubSub, RestartPolicy, TopicPattern, with_broker
from trio_wskit.pubsub.redis import open_redis_pubsub

__all__ = ["Guest", "chatting", "guests", "router", "running"]

ROOT: Final = Path(__file__).parents[2]
QUICK: Final = RestartPolicy(backoff=Backoff(initial_delay=0.02, max_delay=0.1))


@message("DONE")
class Done:
    ok: bool
    error: str | None = None


@message("SUB")
class Sub(Rpc[Done]):
    topic: str
    gaps: bool = False


@message("UNSUB")
class Unsub(Rpc[Done]):
    topic: str


@message("PUB")
class Pub(Rpc[Done]):
    topic: str
    text: str
    exclude_self: bool = False


@message("NEWS")
class News:
    text: str


router: Final = Router()


@router.rpc(Sub)
async def sub(ctx: Context[Sub]) -> Done:
    topic = ctx.payload.topic
    await ctx.topics.subscribe(TopicPattern(topic) if "*" in topic else topic, gaps=ctx.payload.gaps)
    return Done(True)


@router.rpc(Unsub)
async def unsub(ctx: Context[Unsub]) -> Done:
    await ctx.topics.unsubscribe(ctx.payload.topic)
    return Done(True)


@router.rpc(Pub)
async def pub(ctx: Context[Pub]) -> Done:
    said = ctx.payload
    result = await ctx.publish(said.topic, News(said.text), exclude_self=said.exclude_self, meta={"tag": "t"})
    return Done(result.ok, result.error)


@final
class Guest:
    """A client of the chat, and what it has not read yet."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._aside: list[dict[str, Any]] = []

    @property
    def client_id(self) -> str:
        return self._client.client_id

    async def ask(self, kind: str, **payload: object) -> dict[str, Any]:
        """Ask, and put aside what else comes before the answer."""
        await self._client.send(kind, payload, call="1")
        with trio.fail_after(20):
            while "correlationId" not in (came := await self._client.receive()).get("meta", {}):
                self._aside.append(came)
        return came

    async def join(self, topic: str) -> None:
        came = await self.ask("SUB", topic=topic)
        assert came["type"] == "DONE", came

    async def receive(self) -> dict[str, Any]:
        """The next message that answers nothing."""
        with trio.fail_after(20):
            return self._aside.pop(0) if self._aside else await self._client.receive()

    async def leave(self, topic: str) -> None:
        came = await self.ask("UNSUB", topic=topic)
        assert came["type"] == "DONE", came

    async def say(self, topic: str, text: str, *, exclude_self: bool = False) -> None:
        came = await self.ask("PUB", topic=topic, text=text, excludeSelf=exclude_self)
        assert came["payload"]["ok"], came

    async def news(self) -> str:
        """The next news; what is beside it is what it should be."""
        came = await self.receive()
        assert came["type"] == "NEWS", came
        assert set(came) <= {"type", "meta", "payload"}
        assert set(came.get("meta", {})) <= {"timestamp", "tag"}
        return str(came["payload"]["text"])


@asynccontextmanager
async def guests(*servers: Server) -> AsyncGenerator[list[Guest]]:
    """A client at each of the servers."""
    async with AsyncExitStack() as stack:
        yield [Guest(await stack.enter_async_context(await connect(server))) for server in servers]


@asynccontextmanager
async def chatting(url: str, **options: Any) -> AsyncGenerator[tuple[Server, BrokeredPubSub]]:
    """Serve the app while the block runs; it hears others when the block begins."""
    async with open_redis_pubsub(url, **options) as parts:
        pubsub = with_broker(*parts, restart=QUICK)
        async with serving(App(router, pubsub=pubsub)) as server:
            await pubsub.wait_ready()
            yield server, pubsub


@contextmanager
def running(*arguments: str) -> Generator[tuple[subprocess.Popen[str], Server]]:
    """Run the program while the block runs."""
    command = [sys.executable, "-m", "tests.pubsub.redis_chat", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line, process.communicate()[1]
            yield process, Server([line[0]], int(line[1]))
        finally:
            process.kill()


async def main(url: str, mode: Any = "topics", prefix: str | None = None) -> None:
    """Serve until killed."""
    async with open_redis_pubsub(url, mode=mode, prefix=prefix) as parts:
        pubsub = with_broker(*parts, restart=QUICK)
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(serve, App(router, pubsub=pubsub), "127.0.0.1", 0))
            await pubsub.wait_ready()
            print(server.urls[0], server.port, flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
