"""A topic with a history and many subscribers: its messages go out in passes, and what happens in between."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, final

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver, SlowStore
from tests.pubsub.histories import T, offsets, say
from tests.sessions import Client, House, Said, open_house, settle
from trio_wskit import History, Limits, PublishResult
from trio_wskit._core.history import Position, Recovery
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub import MemoryHistory, block
from trio_wskit.pubsub import _hub as hub_module
from trio_wskit.pubsub import _passes as passes_module

MANY: Final = 40
STORES: Final = pytest.mark.parametrize("store", [MemoryHistory, SlowStore])


@final
class Crowd(trio.abc.Instrument):
    """Clients that subscribe to one topic, in this order."""

    def __init__(self, house: House, store: Any, clients: list[Client], driver: ScriptedDriver) -> None:
        self.house = house
        self.store = store
        self.clients = clients
        self.driver = driver
        self.steps = 0  # of another task
        self.results: list[PublishResult] = []

    async def publish(self, text: str, **options: Any) -> None:
        self.results.append(await self.house.app.publish(T, Said(text), **options))

    async def begun(self) -> None:
        """Wait until a message goes out, and somebody has not got it."""
        flow = self.house.app._desk.histories._flow  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        while not flow.goes_out(T):
            await trio.lowlevel.checkpoint()

    @contextmanager
    def counted(self) -> Generator[None]:
        """Count the passes of the scheduler."""
        self.steps = 0
        trio.lowlevel.add_instrument(self)
        yield
        trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        self.steps += 1


@asynccontextmanager
async def crowd_of(store: Any, *, capacity: int = 65536, **options: Any) -> AsyncGenerator[Crowd]:
    made = store()
    driver = ScriptedDriver()
    async with open_house(history={T: History(100)}, history_store=made, pubsub=driver, **options) as house:
        clients = [await house.connect(capacity=capacity) for _ in range(MANY)]
        for client in clients:
            await client.session.topics.subscribe(T)
        crowd = Crowd(house, made, clients, driver)
        yield crowd
        flow: Any = house.app._desk.histories._flow  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        assert (flow._passing, flow._going, house.app._hub._turns._lots) == ({}, set(), {})


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_module, "_DELIVERIES_PER_PASS", 2)
    monkeypatch.setattr(passes_module, "_CLOSE_LOOKS_PER_PASS", 2)


@STORES
async def test_a_message_to_many_lets_others_run_in_between(store: Any, autojump_clock: MockClock) -> None:
    async with crowd_of(store) as crowd:
        with crowd.counted():
            await crowd.publish("1")
        assert crowd.steps >= MANY // 2 - 1
        assert crowd.results[0].delivered == crowd.results[0].matched_local == MANY
        assert {tuple(await client.texts()) for client in crowd.clients} == {("1",)}


@STORES
async def test_those_who_are_behind_let_others_run_too(store: Any, autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=math.inf, outbox_messages=1)
    async with crowd_of(store, capacity=10, overflow="drop_newest", limits=limits) as crowd:
        for text in "123":  # in the link, with the writer, in the outbox
            await crowd.publish(text)
            await settle()
        with crowd.counted():
            await crowd.publish("4")
        assert crowd.steps >= MANY - 2  # twice: in the first round it finds no room
        last = crowd.results[-1]
        assert (last.delivered, last.dropped) == (0, MANY)
        assert {tuple(await client.texts()) for client in crowd.clients} == {("1", "2", "3")}


@STORES
async def test_all_see_all_in_the_order_of_the_numbers(store: Any, autojump_clock: MockClock) -> None:
    async with crowd_of(store) as crowd:
        async with trio.open_nursery() as nursery:
            for text in "abcdef":
                nursery.start_soon(crowd.publish, text)
        assert MANY in {result.delivered for result in crowd.results} <= {0, MANY}  # 0: it waits for one before it
        assert sorted(result.position.offset for result in crowd.results if result.position) == [1, 2, 3, 4, 5, 6]
        for client in crowd.clients:
            assert await offsets(client) == [1, 2, 3, 4, 5, 6]


@STORES
async def test_a_publisher_that_is_cancelled_in_the_middle_has_reached_everybody(
    store: Any, autojump_clock: MockClock
) -> None:
    async with crowd_of(store) as crowd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "1")
            await crowd.begun()
            nursery.cancel_scope.cancel()
        assert crowd.results == []
        await crowd.publish("2")
        assert {tuple(await client.texts()) for client in crowd.clients} == {("1", "2")}


@pytest.mark.parametrize(("store", "gets"), [(MemoryHistory, ["1", "3"]), (SlowStore, ["1", "2", "3"])])
async def test_a_publisher_that_is_cancelled_before_its_turn_has_published_nothing_or_to_everybody(
    store: Any, gets: list[str], autojump_clock: MockClock
) -> None:
    """A store that is shared has it then."""
    async with crowd_of(store) as crowd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "1")
            await crowd.begun()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(crowd.publish, "2")
                    for _ in range(5):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await trio.sleep(1)
        await crowd.publish("3")
        assert {tuple(await client.texts()) for client in crowd.clients} == {tuple(gets)}


@STORES
async def test_who_comes_in_the_middle_has_it_from_the_history_alone(store: Any, autojump_clock: MockClock) -> None:
    async with crowd_of(store) as crowd:
        await crowd.publish("1")
        begun = crowd.results[0].position
        assert begun is not None
        late = await crowd.house.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "2")
            await crowd.begun()
            recovery = await late.session.topics.subscribe(T, since=begun)
            assert recovery == Recovery(True, Position(begun.epoch, 2), 1)
        await crowd.publish("3")
        assert await late.texts() == ["2", "3"]
        assert await crowd.clients[-1].texts() == ["1", "2", "3"]


@STORES
@pytest.mark.parametrize("closely", [False, True])
@pytest.mark.parametrize("how", ["again", "anew", "cancelled"])
async def test_who_subscribes_again_before_it_was_served_gets_it_first(
    how: str, closely: bool, store: Any, autojump_clock: MockClock
) -> None:
    async with crowd_of(store) as crowd:
        await crowd.publish("1")
        begun = crowd.results[0].position
        assert begun is not None
        last = crowd.clients[-1]
        assert await last.texts() == ["1"]
        topics = last.session.topics
        ask: dict[str, float] = {"quorum": 0.5, "within": 1.0} if closely else {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(crowd.publish, "2", **ask))
            await crowd.begun()
            if how == "anew":
                await topics.unsubscribe(T)
            if how == "cancelled":
                with trio.CancelScope() as scope:
                    crowd.driver.pause = 1
                    scope.cancel()
                    await topics.subscribe(T, since=begun)
                crowd.driver.pause = 0
            else:
                assert await topics.subscribe(T, since=begun) == Recovery(True, Position(begun.epoch, 2), 1)
        await crowd.publish("3")
        assert await last.texts() == (["2", "2", "3"] if how == "again" else ["2", "3"])


@STORES
async def test_who_leaves_in_the_middle_does_not_get_it(store: Any, autojump_clock: MockClock) -> None:
    async with crowd_of(store) as crowd:
        last, gone = crowd.clients[-1], crowd.clients[-2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "1")
            await crowd.begun()
            await last.session.topics.unsubscribe(T)
            nursery.start_soon(gone.leave)
        assert await last.texts() == []
        assert crowd.results[0].delivered == MANY - 2


@STORES
async def test_an_epoch_that_begins_in_the_middle_is_told_after_what_is_on_its_way(
    store: Any, autojump_clock: MockClock
) -> None:
    async with crowd_of(store) as crowd:
        late = await crowd.house.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "1")
            await crowd.begun()
            (crowd.store.inner if isinstance(crowd.store, SlowStore) else crowd.store).clear()
            begun = (await late.session.topics.subscribe(T)).position
            assert begun is not None
        await trio.sleep(1)
        await crowd.publish("2")
        for client in crowd.clients:
            heard = [(one["type"], one["meta"]["offset"]) for one in await client.heard()]
            assert heard == [("SAID", 1), ("$ws:position", 0), ("SAID", 1)]
        assert await offsets(late) == [1]


async def test_what_is_missing_goes_out_in_passes_too(autojump_clock: MockClock) -> None:
    """One message was overtaken by five: when it comes, all six go out, one after the other."""
    async with crowd_of(SlowStore) as crowd, trio.open_nursery() as nursery:
        await say(crowd.house, "0")
        crowd.store.append_delays = [(0, 0)] * 5 + [(0, 0.05)]
        for text in "123456":
            nursery.start_soon(crowd.publish, text)
            await trio.sleep(0.001)
        assert await crowd.clients[0].texts() == ["0"]
        with crowd.counted():
            await trio.sleep(0.06)
        assert crowd.steps >= 6 * (MANY // 2 - 1)
        for client in crowd.clients[1:]:
            assert await offsets(client) == [1, 2, 3, 4, 5, 6, 7]


async def test_what_the_store_has_goes_out_in_passes_too(autojump_clock: MockClock) -> None:
    async with crowd_of(SlowStore) as crowd:
        for text in "123":
            crowd.store.inner.append_nowait(
                T, b'{"type":"SAID","meta":{},"payload":{"text":"%b"}}' % text.encode(), History()
            )
        await say(crowd.house, "4")
        await trio.sleep(1)
        for client in crowd.clients:
            assert await offsets(client) == [1, 2, 3, 4]


async def test_what_comes_from_elsewhere_takes_its_turn_too(autojump_clock: MockClock) -> None:
    async with crowd_of(SlowStore) as crowd:
        position = await say(crowd.house, "1")
        publisher = crowd.house.app._publisher

        async def comes(offset: int) -> None:
            meta = {"epoch": position.epoch, "offset": offset}
            await publisher.deliver(PublishEnvelope(T, "SAID", b'{"text":"far"}', meta))

        async with trio.open_nursery() as nursery:
            for offset in (2, 3, 4):
                nursery.start_soon(comes, offset)
        for client in crowd.clients:
            assert await offsets(client) == [1, 2, 3, 4]


@STORES
async def test_a_quorum_and_those_who_block_are_waited_for_after_the_last_pass(
    store: Any, autojump_clock: MockClock
) -> None:
    limits = Limits(ping_interval=math.inf, outbox_messages=1)
    async with crowd_of(store, capacity=10, overflow=block(5, "drop_newest"), limits=limits) as crowd:
        quick, slow = crowd.clients[:-1], crowd.clients[-1]
        for text in "123":
            await crowd.publish(text, quorum=0.9, within=1.0)
            for client in quick:
                assert await client.texts() == [text]
        assert {result.written for result in crowd.results[:2]} == {MANY, MANY - 1}
        start = trio.current_time()
        await crowd.publish("4")
        assert trio.current_time() - start == 5
        assert (crowd.results[-1].blocked, crowd.results[-1].dropped) == (1, 1)
        for client in quick:
            assert await client.texts() == ["4"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "5")
            await crowd.begun()
            nursery.cancel_scope.cancel()  # nobody waits for it any more
        await trio.sleep(1)
        assert not slow.session.outbox._waiting
        for client in quick:
            assert await client.texts() == ["5"]
        assert await slow.texts() == ["1", "2", "3"]


async def test_without_its_task_a_message_goes_out_at_once(autojump_clock: MockClock) -> None:
    async with crowd_of(MemoryHistory) as crowd:
        flow: Any = crowd.house.app._desk.histories._flow  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        nursery, flow.nursery = flow.nursery, None
        await crowd.publish("1")
        flow.nursery = nursery
        assert crowd.results[0].delivered == MANY
        assert {tuple(await client.texts()) for client in crowd.clients} == {("1",)}


async def test_a_driver_that_fails_in_the_middle_ends_that_fan_out_alone(autojump_clock: MockClock) -> None:
    async with crowd_of(MemoryHistory) as crowd:
        index: Any = crowd.driver._index
        subscribers = index.local_subscribers

        def fails(topic: str) -> Any:
            raise OSError("gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(crowd.publish, "1"))
            await crowd.begun()
            index.local_subscribers = fails
            while not crowd.results:
                await trio.lowlevel.checkpoint()
            index.local_subscribers = subscribers
        assert crowd.house.logged() == [f"the fan-out of a message of topic {T} failed"]
        await crowd.publish("2")
        assert crowd.results[-1].delivered == MANY


@pytest.mark.parametrize("who", ["another message", "one that is of no use"])
async def test_what_was_found_missing_in_somebodys_turn_goes_out_at_its_end(
    who: str, autojump_clock: MockClock
) -> None:
    async with crowd_of(SlowStore) as crowd:
        position = await say(crowd.house, "1")
        turns = crowd.house.app._hub._turns
        publisher = crowd.house.app._publisher
        async with trio.open_nursery() as nursery:
            turns.take(T)
            position = Position(position.epoch, 1 if who == "one that is of no use" else 4)
            meta = {"epoch": position.epoch, "offset": position.offset}
            far = PublishEnvelope(T, "SAID", b'{"text":"far"}', meta)
            for text in "234":
                line = b'{"type":"SAID","meta":{},"payload":{"text":"%b"}}' % text.encode()
                crowd.store.inner.append_nowait(T, line, History())
            nursery.start_soon(publisher.deliver, far)
            crowd.house.app._desk.histories.doubt()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
            await trio.sleep(1)
            assert await crowd.clients[-1].texts() == ["1"]
            turns.end(T)
            await settle()
            assert await offsets(crowd.clients[-1]) == [2, 3, 4]


async def test_a_message_without_a_place_lets_those_out_that_waited_for_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_DELIVERIES_PER_PASS", 2)
    async with crowd_of(SlowStore) as crowd:
        await say(crowd.house, "1")
        histories: Any = crowd.house.app._desk.histories
        crowd.store.inner.append_nowait(T, b'{"type":"SAID","meta":{},"payload":{"text":"2"}}', History())
        histories.doubt()
        await trio.sleep(0.0999)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.house.app._publisher.deliver, PublishEnvelope(T, "SAID", b'{"text":"far"}', {}))
            while T not in crowd.house.app._hub._turns:
                await trio.lowlevel.checkpoint()
            replay = await crowd.store.read(T, History(), Position(crowd.store.inner._logs[T].epoch, 1))
            feed = histories._feeds._feeds[T]
            histories._feeds._take(T, feed, feed.newest, replay)
            assert feed.waiting
        assert await crowd.clients[-1].texts() == ["1", "far", "2"]
