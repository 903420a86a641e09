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

__all__ = ["Parts", "channels", "enveloped", "gone", "listening", "open_parts", "patterns"]

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
