"""A driver and a consumer on a real server, and what the server says of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, final

import trio

from tests.serving import until
from tests.valkey import Server
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.errors import PubSubError
from trio_wskit.pubsub.redis import RedisConsumer, RedisPubSub, WsKitConsumer, open_redis_pubsub

__all__ = [
    "Parts",
    "Wire",
    "at_most",
    "channels",
    "enveloped",
    "gone",
    "listening",
    "open_parts",
    "patterns",
    "published",
    "wired",
]

_CHECK_EVERY: Final = 0.3


def enveloped(text: str, topic: str = "room:1", **more: Any) -> PublishEnvelope:
    more.setdefault("origin", "o")
    more.setdefault("id", text)
    return PublishEnvelope(topic, "SAID", b'{"text":"%b"}' % text.encode(), **more)


@final
class Parts:
    """A driver, a consumer and what it has delivered."""

    def __init__(self, driver: RedisPubSub, consumer: RedisConsumer | WsKitConsumer) -> None:
        self.driver = driver
        self.consumer = consumer
        self.came: list[PublishEnvelope] = []
        self.epochs = 0
        self.errors: list[PubSubError] = []

    @property
    def selective(self) -> RedisConsumer:
        assert isinstance(self.consumer, RedisConsumer)
        return self.consumer

    @property
    def texts(self) -> list[str]:
        return [str(one.id) for one in self.came]

    async def deliver(self, envelope: PublishEnvelope) -> None:
        self.came.append(envelope)

    async def supervise(
        self, deliver: Callable[[PublishEnvelope], Any] | None = None, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run the consumer again and again, as `with_broker` does; started when it hears the first time."""
        is_first = True
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.consumer.run, deliver or self.deliver)
                    self.epochs += 1
                    if is_first:
                        is_first = False
                        task_status.started()
            except* PubSubError as group:
                self.errors += [one for one in group.exceptions if isinstance(one, PubSubError)]
            await trio.sleep(0.02)

    async def publish(self, text: str, topic: str = "room:1") -> bool:
        return (await self.driver.publish(enveloped(text, topic))).ok


@asynccontextmanager
async def open_parts(target: Any, **options: Any) -> AsyncGenerator[Parts]:
    """Open, and run nothing yet."""
    quick: dict[str, Any] = {"check_every": _CHECK_EVERY, "max_wait": 0.5}
    async with open_redis_pubsub(target, **{**quick, **options}) as parts:
        yield Parts(*parts)


@asynccontextmanager
async def listening(target: Any, *topics: str, **options: Any) -> AsyncGenerator[Parts]:
    """Open, run under supervision, and follow topics."""
    async with open_parts(target, **options) as parts, trio.open_nursery() as nursery:
        for topic in topics:
            await parts.selective.follow(topic)
        with trio.fail_after(10):
            await nursery.start(parts.supervise)
        yield parts
        nursery.cancel_scope.cancel()


def channels(server: Server, kind: str = "CHANNELS") -> set[str]:
    """What somebody is subscribed to on this server."""
    return {one.decode() for one in server.command("PUBSUB", kind).split(b"\r\n")[2::2]}


def patterns(server: Server) -> int:
    return int(server.command("PUBSUB", "NUMPAT").strip(b":\r\n"))


async def gone(server: Server) -> None:
    """Wait until nobody is subscribed to anything."""
    await until(lambda: not channels(server) and not channels(server, "SHARDCHANNELS") and not patterns(server))


@asynccontextmanager
async def at_most(seconds: float) -> AsyncGenerator[None]:
    start = trio.current_time()
    yield
    assert trio.current_time() - start < seconds


async def published(parts: Parts, text: str, topic: str = "room:1") -> None:
    """Publish until it succeeds; a few seconds are enough, whatever the machine does besides."""
    with trio.fail_after(10):
        while not await parts.publish(text, topic):  # noqa: ASYNC110 - nobody there tells us
            await trio.sleep(0.02)


@final
class Wire:
    """A link to the server that can be held up, or cut in silence: without an end, for those who wait for one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._links: list[trio.CancelScope] = []
        self._may_pass = trio.Event()
        self._may_pass.set()
        self.url = ""
        self.opened = 0
        self._pause = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._link, listeners)

    def hold(self) -> None:
        self._may_pass = trio.Event()

    def let_go(self) -> None:
        self._may_pass.set()

    def slow_down(self) -> None:
        """From now on no more than half a megabyte a second."""
        self._pause = 0.03

    def cut(self) -> None:
        for scope in self._links:
            scope.cancel()
        self._links.clear()

    async def _link(self, client: trio.SocketStream) -> None:
        self.opened += 1
        server = await trio.open_tcp_stream("127.0.0.1", self._server.port)
        async with client, server, trio.open_nursery() as nursery:
            self._links.append(nursery.cancel_scope)

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    async for data in source:
                        await self._may_pass.wait()
                        for start in range(0, len(data), 16_000):
                            await trio.sleep(self._pause)
                            await sink.send_all(data[start : start + 16_000])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)


@asynccontextmanager
async def wired(server: Server) -> AsyncGenerator[Wire]:
    wire = Wire(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        yield wire
        nursery.cancel_scope.cancel()
