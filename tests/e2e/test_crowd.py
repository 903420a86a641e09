"""A thousand connections come and go at random while messages flow; at the end nothing is left of them."""

from __future__ import annotations

import gc
import logging
import random
import resource
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from typing import Final

import pytest
import trio

from tests.serving import TRANSPORTS, Client, connect, serving, until
from trio_wskit import App, ConnectionClosed, Context, Limits, Router, Rpc, Server, Session, message
from trio_wskit._core.frames import masked, text_frame
from trio_wskit.pubsub.memory import MemoryPubSub

pytestmark = pytest.mark.e2e

CONNECTIONS: Final = 1000
AT_ONCE: Final = 250
ROOMS: Final = 10


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    room: str
    text: str


@message("JOIN")
class Join:
    room: str


@message("WORK")
class Work(Rpc[Said]):
    seconds: float


class Crowd:
    """The app, and what it saw."""

    def __init__(self) -> None:
        self.seen = Counter[str]()
        self.driver = MemoryPubSub()
        self.working = 0
        router = Router()

        @router.on_open
        async def opened(session: Session) -> None:
            self.seen["opened"] += 1
            await session.topics.subscribe("everybody")

        @router.on_close
        async def closed(session: Session) -> None:
            self.seen["closed"] += 1
            await session.publish("room:0", Said("somebody left"))

        @router.on(Join)
        async def join(ctx: Context[Join]) -> None:
            await ctx.topics.subscribe(ctx.payload.room)

        @router.on(Say)
        async def say(ctx: Context[Say]) -> None:
            self.seen["said"] += 1
            await ctx.publish(ctx.payload.room, Said(ctx.payload.text))

        @router.rpc(Work)
        async def work(ctx: Context[Work]) -> Said:
            self.working += 1
            try:
                await trio.sleep(ctx.payload.seconds)
            finally:
                self.working -= 1
            self.seen["worked"] += 1
            return Said("done")

        self.app = App(router, pubsub=self.driver, limits=Limits(handshake_timeout=5.0, outbox_bytes=100_000))


@pytest.fixture(autouse=True)
def _enough_descriptors() -> Generator[None]:
    """Both ends of every connection are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * AT_ONCE + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _behave(chance: random.Random, client: Client) -> None:
    """Some messages, and an end of one kind or another."""
    room = f"room:{chance.randrange(ROOMS)}"
    await client.send("JOIN", {"room": room})
    for _ in range(chance.randrange(4)):
        await client.send("SAY", {"room": room, "text": "x" * chance.randrange(2000)})
        if chance.random() < 0.3:
            await client.send("WORK", {"seconds": chance.choice([0, 0.01, 60])}, call=str(chance.random()))
        if chance.random() < 0.5:
            await client.receive()
        if chance.random() < 0.3:
            await trio.sleep(chance.random() / 10)
    match chance.randrange(6):
        case 0 | 1:
            await client.close(chance.choice([1000, 1001, 4321]))
        case 2:
            await client.stream.aclose()
        case 3:
            client.cut()
        case 4:
            await client.stream.send_all(masked(text_frame(b"x" * 3000), b"abcd")[: chance.randrange(3000)])
        case _:
            await client.send_frames(text_frame(b"\xff"))
            await client.end()


async def _come_and_go(server: Server, chance: random.Random, count: int) -> None:
    for _ in range(count):
        # Some are sent away while they still talk, for they do not read what their room says.
        with suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            async with await connect(server) as client:
                with trio.fail_after(5):
                    await _behave(chance, client)


def _left_over() -> dict[str, int]:
    """How many there are of what each connection has."""
    gc.collect()
    kinds = Counter(
        type(one).__name__ for one in gc.get_objects() if str(type(one).__module__).startswith("trio_wskit")
    )
    return {kind: kinds[kind] for kind in ("Session", "Connection", "Outbox", "Inbox", "Envelope") if kinds[kind]}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_nothing_is_left_of_a_thousand_connections(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    of_other_tests = _left_over()  # a test that failed keeps its traceback, and all that hangs on it
    crowd = Crowd()
    async with serving(crowd.app, transport) as server:
        async with await connect(server) as first:
            await until(lambda: crowd.seen["opened"] == 1)
            before = trio.lowlevel.current_statistics().tasks_living
            await first.close()
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(_come_and_go, server, random.Random(number), CONNECTIONS // AT_ONCE)
        await until(lambda: not crowd.app.sessions, seconds=20)
        assert crowd.seen["opened"] == crowd.seen["closed"] == CONNECTIONS + 1
        assert crowd.seen["said"] > CONNECTIONS / 2
        assert crowd.seen["worked"] > 0
        assert crowd.working == 0
        assert list(crowd.driver.list_topics()) == []
        # Of the first client, the task that served it is gone as well.
        await until(lambda: trio.lowlevel.current_statistics().tasks_living < before, seconds=10)
        async with await connect(server) as last:
            await until(lambda: crowd.seen["opened"] == CONNECTIONS + 2)
            assert trio.lowlevel.current_statistics().tasks_living <= before
            await last.send("WORK", {"seconds": 0}, call="1")
            while (await last.receive()).get("payload") != {"text": "done"}:
                pass
            await last.close()
        await until(lambda: not crowd.app.sessions)
        await until(lambda: _left_over() == of_other_tests)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
