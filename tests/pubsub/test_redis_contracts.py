"""The suites that are offered to authors of brokers, on Redis: each mode against a real server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.pubsub.redis_parts import gone
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import BrokerConsumer, PubSubDriver
from trio_wskit.pubsub.redis import RedisMode, RedisPubSub, open_redis_pubsub
from trio_wskit.testing import BrokerPeer, check_broker_consumer, check_pubsub_driver

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

MODES: list[RedisMode] = ["topics", "sharded", "wskit"]


class Peer:
    def __init__(self, server: Server, driver: RedisPubSub, mode: RedisMode) -> None:
        self._server = server
        self._driver = driver
        self._command = "SPUBLISH" if mode == "sharded" else "PUBLISH"

    async def publish(self, envelope: PublishEnvelope) -> None:
        result = await self._driver.publish(envelope)
        assert result.ok, result

    async def cut(self) -> None:
        self._server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await trio.lowlevel.checkpoint()

    async def publish_garbage(self, topic: str) -> bool:
        self._server.command(self._command, f"ws:{topic}", "{garbage")
        await trio.lowlevel.checkpoint()
        return True


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_the_driver_keeps_its_promises(shared_server: Server, mode: RedisMode, estimate: bool) -> None:
    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[PubSubDriver]:
        async with open_redis_pubsub(shared_server.url, mode=mode, estimate=estimate) as (driver, _):
            yield driver

    await check_pubsub_driver(open_driver)


@pytest.mark.parametrize("mode", MODES)
async def test_the_consumer_keeps_its_promises(own_server: Server, mode: RedisMode) -> None:
    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[tuple[BrokerConsumer, BrokerPeer]]:
        async with (
            open_redis_pubsub(own_server.url, mode=mode, prefix="ws:", while_down="remember") as (_, consumer),
            open_redis_pubsub(own_server.url, mode=mode, prefix="ws:") as (driver, _),
        ):
            yield consumer, Peer(own_server, driver, mode)

    await check_broker_consumer(open_broker)
    await gone(own_server)
