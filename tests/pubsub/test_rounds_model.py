"""Rounds are a short cut that nobody may notice: with them and without, the same things happen to everybody."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias, cast, final

import pytest
import trio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.sessions import settle
from tests.test_outbox import Wire
from trio_wskit import ConnectionClosed, Limits
from trio_wskit import _flusher as flusher_module
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Frame, Outbox
from trio_wskit.abc import Transport
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.pubsub._hub import Hub

CLIENTS: Final = 20  # more than `_hub._MANY`
ROOM: Final = 4  # messages in an outbox
PLENTY: Final = 10**9

Policy: TypeAlias = Literal["disconnect", "drop_oldest", "drop_newest"]
Op: TypeAlias = tuple[str, int]


@final
class Subscriber:
    def __init__(self, flusher: Flusher, nursery: trio.Nursery) -> None:
        self.wire = Wire(PLENTY)
        self.slow = 0
        self._nursery = nursery
        limits = Limits(outbox_messages=ROOM)
        self.outbox = Outbox(cast("Transport", self.wire), limits, flusher, self._start, lambda _: None)

    def _start(self) -> bool:
        self._nursery.start_soon(self.outbox.run_writer)
        return True

    def too_slow(self) -> None:
        self.slow += 1
        self.outbox.forget(ConnectionClosed(4008, "too slow"))

    def evicted(self, used: int, limit: float) -> None:
        raise AssertionError("the budget is large")


@final
class World:
    """A hub and its clients; everything that can be seen goes into `log`."""

    def __init__(self, policy: Policy, nursery: trio.Nursery, *, rounds: bool) -> None:
        self.flusher = Flusher(Limits(outbox_messages=ROOM))
        self.driver = MemoryPubSub()
        self.hub = Hub(self.driver, policy)
        if rounds:
            self.hub.flusher = self.flusher
        self.log: list[object] = []
        self.rounds = 0
        self._nursery = nursery
        self._clients: list[Subscriber] = []
        self._numbers = iter(range(10**6))
        self._since_pass = 0

    async def fill(self) -> None:
        for number in range(CLIENTS):
            self._clients.append(Subscriber(self.flusher, self._nursery))
            self.hub.join(str(number), self._clients[number])
            await self.driver.subscribe(str(number), "a")
            if number != 3:
                await self.driver.subscribe(str(number), "b")

    async def run(self, ops: Sequence[Op]) -> list[object]:
        await self.fill()
        for name, which in ops:
            await self._do(name, which)
            self.rounds += len(self.flusher.rounds)
            self._since_pass += 1
            if self._since_pass == ROOM - 1:  # so that nobody who reads is full before it can be flushed
                await self._do("settle", 0)
        for client in self._clients:
            client.wire.read(PLENTY)
        await self._do("settle", 0)
        assert self.flusher.rounds == []
        for client in self._clients:
            outbox = client.outbox
            self.log.append((client.wire.taken, client.slow, outbox.dropped, outbox.gaps, outbox.queued_bytes))
        return self.log

    async def _do(self, name: str, which: int) -> None:
        client = self._clients[which]
        outbox = client.outbox
        text = f"{next(self._numbers):03}".encode()
        if name in ("settle", "pass", "close"):  # nobody waits while an outbox is corked
            for one in self._clients:
                one.outbox.uncork()
        if name in ("a", "b", "a_but", "b_but"):
            exclude = str(which) if name.endswith("but") else None
            result = await self.hub.publish(PublishEnvelope(name[0], "X", exclude=exclude), text)
            self.log.append((result.ok, result.delivered, result.dropped, result.matched_local))
        elif name == "tell":
            self.log.append(outbox.offer(Frame(b"\x81\x03" + text)))
        elif name == "push":
            self.log.append(outbox.push(Frame(b"\x81\x03" + text)))
        elif name == "tell_two":
            self.log.append(outbox.offer_all([Frame(b"\x81\x03" + text), Frame(b"\x81\x03" + text)]))
        elif name == "flush":
            outbox.flush()
            self.log.append(outbox.queued_bytes)
        elif name == "cork":
            outbox.cork()
        elif name == "uncork":
            outbox.uncork()
            outbox.flush()  # a round goes out when the pass ends; it may be too late then for a link that breaks now
        elif name == "stall":
            client.wire.room = which % 7
        elif name == "read":
            client.wire.read(PLENTY)
        elif name == "leave":
            self.hub.leave(str(which))
        elif name == "come_again":
            self.hub.leave(str(which))
            self._clients.append(self._clients[which])
            self._clients[which] = Subscriber(self.flusher, self._nursery)
            self.hub.join(str(which), self._clients[which])
        elif name == "unsubscribe":
            await self.driver.unsubscribe(str(which), "a")
        elif name == "subscribe":
            await self.driver.subscribe(str(which), "a")
        elif name == "break":
            outbox.break_off(ConnectionClosed(1006, "gone"))
        elif name == "close":
            await outbox.aclose()
            await self._do("settle", 0)  # it is a checkpoint: what runs first then is a matter of chance
        elif name == "pass":
            await trio.lowlevel.checkpoint()
        else:
            assert name == "settle"
            await settle()
            self._since_pass = 0


PUBLISHES = (*("a",) * 12, "b", "b", "a_but", "b_but")
HARMLESS = ("tell", "push", "tell_two", "flush", "cork", "uncork", "come_again", "unsubscribe", "subscribe")
OTHERS = (*HARMLESS, *("stall",) * 6, "read", "leave", "break", "close")


def ops_of(names: Sequence[str], clients: int) -> st.SearchStrategy[list[Op]]:
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, clients - 1)), max_size=60)


@asynccontextmanager
async def open_world(policy: Policy, *, rounds: bool) -> AsyncGenerator[World]:
    async with trio.open_nursery() as nursery:
        world = World(policy, nursery, rounds=rounds)
        nursery.start_soon(world.flusher.run)
        await settle()
        try:
            yield world
        finally:
            world.flusher.stop()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "_FLUSHES_PER_PASS", 5)


@given(policy=st.sampled_from(["disconnect", "drop_oldest", "drop_newest"]), ops=ops_of((*PUBLISHES, *OTHERS), 4))
async def test_with_rounds_and_without_the_same_happens(policy: Policy, ops: list[Op]) -> None:
    async with open_world(policy, rounds=True) as world:
        with_rounds = await world.run(ops)
        event(f"there was a round after {min(world.rounds, 10)} steps")
        event(f"something was dropped: {world.hub.counts.dropped > 0}")
    async with open_world(policy, rounds=False) as world:
        without = await world.run(ops)
        assert world.rounds == 0
    assert with_rounds == without


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it is the same for all examples
@given(ops=ops_of((*PUBLISHES, *HARMLESS, "pass", "pass", "pass"), CLIENTS))
async def test_it_is_the_same_while_a_round_is_half_sent(small_steps: None, ops: list[Op]) -> None:
    async with open_world("disconnect", rounds=True) as world:
        with_rounds = await world.run(ops)
        event(f"there was a round after {min(world.rounds, 10)} steps")
    async with open_world("disconnect", rounds=False) as world:
        assert await world.run(ops) == with_rounds
