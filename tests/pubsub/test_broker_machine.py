"""Three apps, and a broker that does as it likes: nobody hears anything twice, or misses it without being told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final, Literal, get_args

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.sessions import Client, House, Said, open_house, settle
from trio_wskit._core.backoff import Backoff
from trio_wskit.abc import BrokerConsumer
from trio_wskit.pubsub import MemoryBroker, RestartPolicy, with_broker

APPS: Final = 3

Ways = Literal["all", "followed", "both"]
WhenFull = Literal["cut", "refuse"]
Step = tuple[Literal["publish", "cut", "stop", "start", "pause", "resume", "wait", "leave", "join"], int]

STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["publish"] * 6 + ["cut", "stop", "start", "pause", "resume", "wait", "leave", "join"]),
        st.integers(0, APPS - 1),
    ),
    max_size=40,
)


class World:
    def __init__(self, ways: Ways, when_full: WhenFull) -> None:
        self.broker = MemoryBroker(3, when_full=when_full)
        self.ways: Ways = ways
        self.houses: list[House] = []
        self.clients: list[Client] = []
        self.published: list[tuple[int, bool]] = []  # who published, and whether it succeeded
        self.heard: list[list[int | None]] = [[] for _ in range(APPS)]  # of each client; None for a gap notice
        self.expected: list[set[int]] = [set() for _ in range(APPS)]
        self.joined = [True] * APPS

    async def listen(self) -> None:
        for heard, client in zip(self.heard, self.clients, strict=True):
            for one in await client.heard():
                heard.append(None if one["type"] == "$ws:gap" else int(one["payload"]["text"]))

    async def do(self, what: str, who: int) -> None:
        match what:
            case "publish":
                number = len(self.published)
                result = await self.houses[who].app.publish("t", Said(str(number)))
                self.published.append((who, result.ok))
                for client in range(APPS):
                    if self.joined[client] and result.ok:
                        self.expected[client].add(number)
            case "wait":
                await trio.sleep(5)
            case "join":
                await self.clients[who].session.topics.subscribe("t", gaps=True)
                self.joined[who] = True
            case "leave":
                await self.listen()
                await self.clients[who].session.topics.unsubscribe("t")
                # What the broker still holds may be lost to it, and nobody tells who does not listen any more.
                self.expected[who] &= {number for number in self.heard[who] if number is not None}
                self.joined[who] = False
            case _:
                getattr(self.broker, what)()
        await settle()
        await self.listen()

    def pubsub(self) -> Any:
        consumers: list[BrokerConsumer] = []
        if self.ways != "followed":
            consumers.append(self.broker.consumer())
        if self.ways != "all":
            consumers.append(self.broker.selective_consumer())
        policy = RestartPolicy(backoff=Backoff(initial_delay=0.5, max_delay=2))
        return with_broker(self.broker.driver(), *consumers, restart=policy)

    async def run(self, steps: list[Step]) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(APPS):
                house = await stack.enter_async_context(open_house(pubsub=self.pubsub()))
                self.houses.append(house)
            for house in self.houses:
                client = await house.connect()
                await client.session.topics.subscribe("t", gaps=True)
                self.clients.append(client)
            for what, who in steps:
                await self.do(what, who)
            self.broker.start()
            self.broker.resume()
            await trio.sleep(10)
            assert all(house.app.ready for house in self.houses)
            await self.do("publish", 0)
            for house in self.houses:
                house.logged()
            for client in self.clients:
                await client.leave()
        assert self.broker.links == 0

    def check(self) -> None:
        for client, heard in enumerate(self.heard):
            numbers = [number for number in heard if number is not None]
            assert len(set(numbers)) == len(numbers), "heard twice"
            for publisher in range(APPS):
                own = [number for number in numbers if self.published[number][0] == publisher]
                assert own == sorted(own), "out of order"
            assert all(self.published[number][1] for number in numbers), "a failure was delivered"
            for number in self.expected[client] - set(numbers):
                publisher = self.published[number][0]
                assert publisher != client, "what was published here is delivered here"
                # Told of it, before anything newer of the same publisher is heard.
                newer = [at for at, one in enumerate(heard) if one is not None and one > number]
                newer = [at for at in newer if self.published[heard[at] or 0][0] == publisher]
                before = heard[: newer[0]] if newer else heard
                older = [at for at, one in enumerate(before) if one is not None and one < number]
                older = [at for at in older if self.published[before[at] or 0][0] == publisher]
                assert None in before[older[-1] if older else 0 :], f"{client} was not told of {number}"


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, ways=st.sampled_from(get_args(Ways)), when_full=st.sampled_from(get_args(WhenFull)))
def test_nobody_hears_twice_or_misses_anything_without_being_told(
    steps: list[Step], ways: Ways, when_full: WhenFull
) -> None:
    world = World(ways, when_full)
    trio.run(world.run, steps, clock=MockClock(autojump_threshold=0))
    world.check()
