"""Places that a client cannot resume from: by the API and over the wire, in memory and on a real server.

Each is a clear error or `recovered: false`, and nobody gets a part.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from tests.sessions import Client, House, Said, error_of
from tests.valkey import BINARIES, COREDIS_RUBBISH, Server
from trio_wskit import App, ConfigError, History, Limits, Position, Recovery, Router, WsKitError, open_app
from trio_wskit.abc import HistoryStore
from trio_wskit.pubsub import MemoryHistory, default_subscriptions
from trio_wskit.pubsub.redis_history import open_redis_history

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

T = "kept:1"
KEPT = 3


@pytest.fixture(scope="module", params=["memory", *sorted(BINARIES)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server | None]:
    """A server to keep histories on; None for memory."""
    if request.param == "memory":
        yield None
    else:
        with Server(tmp_path_factory.mktemp("server"), request.param) as started:
            yield started


@asynccontextmanager
async def open_room(server: Server | None) -> AsyncGenerator[tuple[House, Client, Position]]:
    """An app with five messages in a topic that keeps three, a client, and the newest position."""
    router = Router()
    default_subscriptions(router)
    async with AsyncExitStack() as stack:
        store: HistoryStore = MemoryHistory()
        if server is not None:
            store = await stack.enter_async_context(open_redis_history(server.url, name=secrets.token_hex(4)))
        limits = Limits(ping_interval=math.inf)
        app = App(router, limits=limits, history={"kept:*": History(KEPT)}, history_store=store)
        await stack.enter_async_context(open_app(app))
        nursery = await stack.enter_async_context(trio.open_nursery())
        house = House(app, nursery)
        newest: Position | None = None
        for number in range(1, 6):
            newest = (await app.publish(T, Said(str(number)))).position
        assert newest is not None
        assert newest.offset == 5
        client = await house.connect()
        with trio.fail_after(20):
            yield house, client, newest
        await client.leave()


async def ask(client: Client, since: object, topic: str = T) -> list[dict[str, Any]]:
    """Subscribe over the wire; all that comes until the answer, which is the last."""
    client.send("SUBSCRIBE", {"topic": topic, "since": since}, call_id="1")
    heard: list[dict[str, Any]] = []
    while not heard or heard[-1]["type"] == "SAID":
        heard.append(await client.receive())
    return heard


async def live(house: House, client: Client) -> None:
    """Who recovered nothing gets what is published from then on, and that alone."""
    await house.app.publish(T, Said("live"))
    assert (await client.receive())["payload"] == {"text": "live"}


NOWHERE = [
    pytest.param({"offset": 6}, id="the next one"),
    pytest.param({"offset": 2**53 - 1}, id="the far future"),
    pytest.param({"offset": 1}, id="one that is not kept"),
    pytest.param({"offset": 0}, id="before all"),
    pytest.param({"epoch": "nobody's"}, id="another epoch"),
    pytest.param({"epoch": "nobody's", "offset": 0}, id="the begin of another epoch"),
    pytest.param({"epoch": "x'\\\n\x00 é😀", "offset": 5}, id="an epoch of any text"),
]


@pytest.mark.parametrize("since", NOWHERE)
async def test_from_a_place_that_is_not_there_nothing_is_recovered(server: Server | None, since: Any) -> None:
    async with open_room(server) as (house, client, newest):
        place: dict[str, Any] = {"epoch": newest.epoch, "offset": 5, **since}
        recovery = await client.session.topics.subscribe(T, since=Position(**place))
        assert recovery == Recovery(False, newest)
        await live(house, client)


@pytest.mark.parametrize("since", NOWHERE)
async def test_and_over_the_wire_the_answer_says_so(server: Server | None, since: Any) -> None:
    async with open_room(server) as (house, client, newest):
        (answer,) = await ask(client, {"epoch": newest.epoch, "offset": 5, **since})
        assert answer["type"] == "SUBSCRIBED"
        assert answer["payload"] == {"topic": T, "recovered": False, "epoch": newest.epoch, "offset": 5}
        await live(house, client)


NO_PLACE: list[Any] = [-1, 1.5, "1", None, True, math.inf, 2**53, [], {}]


@pytest.mark.parametrize("offset", NO_PLACE, ids=repr)
async def test_what_is_no_offset_is_refused(server: Server | None, offset: Any) -> None:
    async with open_room(server) as (_, client, newest):
        with pytest.raises(WsKitError, match="INVALID_ARGUMENT: an offset is a whole number from 0 to"):
            await client.session.topics.subscribe(T, since=Position(newest.epoch, offset))
        with pytest.raises(WsKitError, match="INVALID_ARGUMENT: since takes a Position, not a dict"):
            await client.session.topics.subscribe(T, since={"epoch": newest.epoch, "offset": offset})  # type: ignore[arg-type]
        assert T not in client.session.topics


@pytest.mark.parametrize("offset", [one for one in NO_PLACE if one != math.inf], ids=repr)  # that is no JSON
async def test_and_over_the_wire_the_error_names_the_field(server: Server | None, offset: Any) -> None:
    async with open_room(server) as (_, client, newest):
        (answer,) = await ask(client, {"epoch": newest.epoch, "offset": offset})
        assert error_of(answer) == "INVALID_ARGUMENT"
        assert answer["payload"]["details"]["issues"][0]["path"].startswith("since")
        assert T not in client.session.topics


async def test_a_topic_without_a_history_says_so(server: Server | None) -> None:
    async with open_room(server) as (_, client, newest):
        with pytest.raises(WsKitError, match="FAILED_PRECONDITION: the topic 'other' keeps no history"):
            await client.session.topics.subscribe("other", since=newest)
        (answer,) = await ask(client, {"epoch": newest.epoch, "offset": 5}, topic="other")
        assert answer["payload"] == {"topic": "other", "recovered": False}  # the client cannot know which topics do


async def test_from_a_place_that_is_there_all_is_recovered(server: Server | None) -> None:
    """So that what is above is not refused for another reason."""
    async with open_room(server) as (_, client, newest):
        *missed, answer = await ask(client, {"epoch": newest.epoch, "offset": 2})
        assert [one["payload"]["text"] for one in missed] == ["3", "4", "5"]
        assert answer["payload"] == {"topic": T, "recovered": True, "epoch": newest.epoch, "offset": 5}


@pytest.mark.parametrize("store", ["redis://localhost", 5, object()])
async def test_what_is_no_store_is_refused(store: Any) -> None:
    app = None
    with pytest.raises(ConfigError, match=r"history_store takes a store, not .*: open_redis_history\(url\) opens one"):
        app = App(Router(), history={"kept:*": History()}, history_store=store)
    assert app is None
