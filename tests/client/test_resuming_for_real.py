"""Our client and our server on a real socket that breaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.serving import TRANSPORTS, serving, until
from tests.sessions import Said
from trio_wskit import App, Gap, History, PublishResult, Reconnect, Router, open_client
from trio_wskit.client import Client, Stream
from trio_wskit.pubsub import MemoryHistory, default_subscriptions

pytestmark = pytest.mark.e2e

T = "room:1"


@asynccontextmanager
async def open_pair(transport: Any, store: MemoryHistory, size: int = 100) -> AsyncGenerator[tuple[App, Client]]:
    router = Router()
    default_subscriptions(router)
    app = App(router, history={"room:*": History(size)}, history_store=store)
    async with (
        serving(app, transport) as server,
        open_client(server.urls[0], reconnect=Reconnect(initial_delay=0.05, max_delay=0.1, jitter="none")) as client,
    ):
        yield app, client


async def publish(app: App, *numbers: int) -> None:
    for number in numbers:
        result: PublishResult = await app.publish(T, Said(str(number)))
        assert result.ok


async def numbers_of(stream: Stream[Said | Gap], count: int) -> list[int | Gap]:
    """The next so many items."""
    got: list[int | Gap] = []
    with trio.fail_after(10):
        while len(got) < count:
            item = await stream.receive()
            got.append(item if isinstance(item, Gap) else int(item.text))
    return got


async def cut(app: App) -> None:
    """Drop every connection, without a goodbye; wait until the server knows."""
    old = set(app.sessions)
    for session in old:
        session.outbox.abort("for the test")
    await until(lambda: old.isdisjoint(app.sessions))


async def back(app: App) -> None:
    """Wait until the client is subscribed again."""
    await until(lambda: any(T in session.topics for session in app.sessions))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_goes_on_over_broken_connections_without_a_gap(transport: Any) -> None:
    async with open_pair(transport, MemoryHistory()) as (app, client), client.subscribed(T, Said) as stream:
        sent = 0
        for round_ in range(8):
            await publish(app, *range(sent, sent + round_))  # none at all before the first cut
            await cut(app)
            await publish(app, *range(sent + round_, sent + 2 * round_))
            sent += 2 * round_
            await back(app)
        assert await numbers_of(stream, sent) == list(range(sent))
        assert len(stream) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_the_server_does_not_keep_is_a_gap(transport: Any) -> None:
    async with open_pair(transport, MemoryHistory(), size=3) as (app, client), client.subscribed(T, Said) as stream:
        await publish(app, 0)
        assert await numbers_of(stream, 1) == [0]
        await cut(app)
        await publish(app, 1, 2, 3, 4)
        assert await numbers_of(stream, 1) == [Gap(T, "reconnected")]  # which may speak of what comes before it, too
        await publish(app, 5)
        assert await numbers_of(stream, 1) == [5]


async def test_a_store_that_was_lost_is_a_gap() -> None:
    store = MemoryHistory()
    async with open_pair("native", store) as (app, client), client.subscribed(T, Said) as stream:
        await publish(app, 0)
        assert await numbers_of(stream, 1) == [0]
        await cut(app)
        store.clear()
        await publish(app, 1)
        assert await numbers_of(stream, 1) == [Gap(T, "reconnected")]
        await publish(app, 2)
        assert await numbers_of(stream, 1) == [2]


async def test_publishing_and_breaking_at_the_same_time_loses_and_doubles_nothing() -> None:
    async with (
        open_pair("native", MemoryHistory(), size=1000) as (app, client),
        client.subscribed(T, Said, capacity=2000) as stream,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def breaking() -> None:
            for _ in range(20):
                await trio.sleep(0.02)
                for session in app.sessions:
                    session.outbox.abort("for the test")

        for number in range(800):
            await publish(app, number)
            await trio.sleep(0.0005)
        assert await numbers_of(stream, 800) == list(range(800))
