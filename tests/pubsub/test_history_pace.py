"""What many resumes at once cost everybody else, in counted work: time is never tested. See benchmarks/history.py."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from tests.sessions import Said, open_house
from trio_wskit import History
from trio_wskit._outbox import Frame

T = "kept:1"
CLIENTS = 60
MESSAGES = 100


class Passes(trio.abc.Instrument):
    """Counts in each scheduler pass."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.all = 0

    def add(self) -> None:
        self.now += 1
        self.all += 1
        self.most = max(self.most, self.now)

    def before_io_wait(self, timeout: float) -> None:
        self.now = 0


async def test_of_many_resumes_one_is_decided_in_a_pass(autojump_clock: MockClock) -> None:
    passes = Passes()
    async with open_house(history={T: History(MESSAGES)}) as house:
        clients = [await house.connect() for _ in range(CLIENTS)]
        begun = (await clients[0].session.topics.subscribe(T)).position
        await clients[0].session.topics.unsubscribe(T)
        for number in range(MESSAGES):
            await house.app.publish(T, Said(str(number)))
        histories: Any = house.app._desk.histories  # pyright: ignore[reportPrivateUsage]
        put = histories.put

        def counted(client_id: str, frames: list[Frame]) -> bool:
            passes.add()
            assert len(frames) == MESSAGES
            done: bool = put(client_id, frames)
            return done

        histories.put = counted
        trio.lowlevel.add_instrument(passes)
        recovered: list[bool] = []

        async def resume(client: Any) -> None:
            recovered.append((await client.session.topics.subscribe(T, since=begun)).recovered)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(resume, client)
        trio.lowlevel.remove_instrument(passes)
        assert recovered == [True] * CLIENTS
        assert (passes.all, passes.most) == (CLIENTS, 1)
        for client in clients:
            assert len(await client.texts()) == MESSAGES


async def test_a_message_is_made_once_for_all_who_resume(autojump_clock: MockClock) -> None:
    async with open_house(history={T: History(MESSAGES)}) as house:
        clients = [await house.connect() for _ in range(5)]
        first = None
        for number in range(4):
            result = await house.app.publish(T, Said(str(number)))
            first = first or result.position
        frames: set[int] = set()
        kept: list[Any] = []  # alive, so that no two have one place
        histories: Any = house.app._desk.histories  # pyright: ignore[reportPrivateUsage]
        put = histories.put

        def noted(client_id: str, some: list[Frame]) -> bool:
            kept.extend(some)
            frames.update(id(frame) for frame in some)
            done: bool = put(client_id, some)
            return done

        histories.put = noted
        for client in clients:
            assert (await client.session.topics.subscribe(T, since=first)).recovered
        assert (len(kept), len(frames)) == (15, 3)
        for client in clients:
            assert await client.texts() == ["1", "2", "3"]
