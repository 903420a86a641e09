"""What a client cannot tell of itself: by the API and over the wire, in memory and on a real server."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from tests.presence.test_presence import connect, options
from tests.sessions import House, error_of
from tests.valkey import BINARIES, COREDIS_RUBBISH, Server
from trio_wskit import App, Context, Limits, Router, Rpc, WsKitError, message, open_app
from trio_wskit.abc import PresenceStore
from trio_wskit.presence import MemoryPresence, Presence
from trio_wskit.presence.redis import open_redis_presence

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

TOPIC = "room"


@message("JOINED")
class Joined:
    """An answer that says nothing."""


@message("JOIN")
class Join(Rpc[Joined]):
    topic: str
    state: Any = None


@pytest.fixture(scope="module", params=["memory", *sorted(BINARIES)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server | None]:
    """A server for presence; None for memory."""
    if request.param == "memory":
        yield None
    else:
        with Server(tmp_path_factory.mktemp("server"), request.param) as started:
            yield started


@asynccontextmanager
async def open_houses(server: Server | None, count: int = 1, **bounds: Any) -> AsyncGenerator[list[House]]:
    """Apps that share a store, each with an RPC beside the events."""
    async with AsyncExitStack() as stack:
        name, store = secrets.token_hex(4), MemoryPresence()
        houses: list[House] = []
        for _ in range(count):
            shared: PresenceStore = store
            if server is not None:
                shared = await stack.enter_async_context(open_redis_presence(server.url, name=name))
            told = options(Presence(shared, debounce=0.05, linger=0, **bounds), limits=Limits(ping_interval=math.inf))
            router: Router = told.pop("router")

            @router.rpc(Join)
            async def join(ctx: Context[Join]) -> Joined:
                ctx.presence.join(ctx.payload.topic, ctx.payload.state)
                return Joined()

            app = App(router, **told)
            await stack.enter_async_context(open_app(app))
            nursery = await stack.enter_async_context(trio.open_nursery())
            houses.append(House(app, nursery))
        with trio.fail_after(20):
            yield houses
        for house in houses:
            for client in house.clients:
                await client.leave()


async def test_a_state_that_is_too_large_is_refused_and_nobody_is_there(server: Server | None) -> None:
    async with open_houses(server, max_state_bytes=100) as (house,):
        ann = await connect(house, "ann")
        says = "the state of a member has at most 100 bytes, not 101"
        details = {"limit": 100, "observed": 101}
        with pytest.raises(WsKitError, match=f"RESOURCE_EXHAUSTED: {says}") as caught:
            ann.session.presence.join(TOPIC, "x" * 99)
        assert (caught.value.details, caught.value.retryable) == (details, False)

        ann.send("JOIN", {"topic": TOPIC, "state": "x" * 99}, call_id="1")
        answer = await ann.receive()
        assert error_of(answer) == "RESOURCE_EXHAUSTED"
        assert answer["meta"]["correlationId"] == "1"
        ann.send("ENTER", {"topic": TOPIC, "state": "x" * 99})
        told = await ann.receive()
        assert error_of(told) == "RESOURCE_EXHAUSTED"
        for one in (answer, told):
            assert (one["payload"]["message"], one["payload"]["details"]) == (says, details)
            assert one["payload"]["retryable"] is False
        assert (await house.app.presence.list(TOPIC), await house.app.presence.count(TOPIC)) == ([], 0)

        ann.send("JOIN", {"topic": TOPIC, "state": "x" * 98}, call_id="2")
        assert (await ann.receive())["type"] == "JOINED"
        assert await house.app.presence.count(TOPIC) == 1


async def test_a_state_that_grows_too_large_stays_as_it_was(server: Server | None) -> None:
    async with open_houses(server, max_state_bytes=100) as (house,):
        ann = await connect(house, "ann")
        ann.session.presence.join(TOPIC, "small")
        ann.send("JOIN", {"topic": TOPIC, "state": "ä" * 50}, call_id="1")  # 102 bytes, of 50 letters
        assert error_of(await ann.receive()) == "RESOURCE_EXHAUSTED"
        await trio.sleep(0.2)
        assert [(one.id, one.state) for one in await house.app.presence.list(TOPIC)] == [("ann", "small")]


@pytest.mark.parametrize("topic", ["", "a b", "room:*", "x" * 500])
async def test_what_is_no_topic_is_refused(server: Server | None, topic: str) -> None:
    async with open_houses(server) as (house,):
        ann = await connect(house, "ann")
        ann.send("JOIN", {"topic": topic}, call_id="1")
        assert error_of(await ann.receive()) == "INVALID_ARGUMENT"
        with pytest.raises(WsKitError, match="INVALID_ARGUMENT: a topic "):
            await ann.session.presence.watch(topic)


async def test_one_too_many_of_a_connections_topics_is_refused(server: Server | None) -> None:
    async with open_houses(server, max_places=1) as (house,):
        ann = await connect(house, "ann")
        ann.session.presence.join(TOPIC)
        ann.send("JOIN", {"topic": "other"}, call_id="1")
        answer = await ann.receive()
        assert error_of(answer) == "RESOURCE_EXHAUSTED"
        assert answer["payload"]["message"] == "a connection has at most 1 places, not 2"


async def test_for_whom_others_left_no_room_is_told_so_behind_the_answer(server: Server | None) -> None:
    async with open_houses(server, 2, max_members=1) as (here, there):
        ann, bob = await connect(here, "ann"), await connect(there, "bob")
        ann.session.presence.join(TOPIC)
        while await there.app.presence.count(TOPIC) < 1:  # noqa: ASYNC110 - nobody tells us
            await trio.sleep(0.01)
        bob.send("JOIN", {"topic": TOPIC}, call_id="1")
        assert (await bob.receive())["type"] == "JOINED"  # the store has not been asked yet
        told = await bob.receive()
        assert error_of(told) == "RESOURCE_EXHAUSTED"
        assert told["payload"]["details"] == {"limit": 1, "topic": TOPIC}
        assert [one.id for one in await there.app.presence.list(TOPIC)] == ["ann"]
        assert await there.app.presence.count(TOPIC) == 1
