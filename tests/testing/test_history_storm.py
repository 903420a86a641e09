"""`check_history(disturb=…)` passes what is right, and catches what is told wrongly under trouble; in virtual time."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from trio_wskit import WsKitError
from trio_wskit._core.history import Entry, History, Position, Replay
from trio_wskit.abc import HistoryStore
from trio_wskit.pubsub import MemoryHistory
from trio_wskit.testing import check_history

T = TypeVar("T")


class Server:
    """What the store stands on."""

    def __init__(self) -> None:
        self.kept = MemoryHistory()
        self.mode = ""
        self.late: list[Callable[[], object]] = []

    def restart(self) -> None:
        self.kept = MemoryHistory()

    async def trouble(self) -> None:
        """Some troubles, one after the other; then it works."""
        for mode in ("flaky", "down", "paused", "flaky", "paused", "down"):
            await trio.sleep(0.3)
            self.mode = mode
            await trio.sleep(0.5)
            if mode == "down":
                self.restart()
            self.mode = ""
            while self.late:  # what was sent to it while it was paused is carried out now
                self.late.pop(0)()


class Store:
    """Right: says that it has failed where nobody knows."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)

    async def _call(self, carry_out: Callable[[], T]) -> T:
        server = self._server
        await trio.sleep(self._random.random() * 0.01)
        luck = self._random.random() if server.mode == "flaky" else 1.0
        if server.mode == "paused":
            server.late.append(carry_out)
            await trio.sleep(0.1)
            raise WsKitError("UNAVAILABLE", "it does not answer")
        if server.mode == "down" or luck < 0.3:
            raise WsKitError("UNAVAILABLE")
        answer = carry_out()
        await trio.sleep(self._random.random() * 0.01)
        if luck < 0.6:
            raise WsKitError("UNAVAILABLE", "its answer is lost")
        return answer

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        return await self._call(lambda: self._server.kept.append_nowait(topic, message, keep))

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        return await self._call(lambda: self._server.kept.read_nowait(topic, keep, since, last, limit))


async def check(store: type[Store], server: type[Server], seed: int = 1) -> None:
    there = server()

    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        await trio.lowlevel.checkpoint()
        yield store(there, seed)

    await check_history(factory, disturb=there.trouble)


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_right_passes(autojump_clock: MockClock, seed: int) -> None:
    await check(Store, Server, seed)


class TellsMoreThanItSaved(Server):
    """After a restart it knows what it knew a while ago, and gives the numbers since then again."""

    saved: MemoryHistory | None = None

    async def trouble(self) -> None:
        await trio.sleep(0.2)
        self.saved = copy.deepcopy(self.kept)
        await super().trouble()

    def restart(self) -> None:
        self.kept = copy.deepcopy(self.saved) or MemoryHistory()


class GoesBack(Server):
    """After the second restart it is what it was before the first."""

    before: MemoryHistory | None = None

    def restart(self) -> None:
        before, self.before = self.before, self.kept
        self.kept = before if before is not None else MemoryHistory()


class NeverWorksAgain(Server):
    async def trouble(self) -> None:
        await super().trouble()
        self.mode = "down"


class AsksAgain(Store):
    """What was carried out and not answered is carried out twice."""

    async def _call(self, carry_out: Callable[[], T]) -> T:
        try:
            return await super()._call(carry_out)
        except WsKitError:
            return await super()._call(carry_out)


class SwallowsFailures(Store):
    """Gives the number before to a message of which it does not know."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(server, seed)
        self.last: dict[str, Position] = {}

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        try:
            self.last[topic] = await super().append(topic, message, keep)
        except WsKitError:
            if topic not in self.last:
                raise
        return self.last[topic]


class LeavesHoles(Store):
    async def read(self, *arguments: Any, **options: Any) -> Replay:
        replay = await super().read(*arguments, **options)
        entries = replay.entries and [one for one in replay.entries if one.offset % 7]
        return Replay(replay.position, entries)


class MakesUp(Store):
    async def read(self, *arguments: Any, **options: Any) -> Replay:
        replay = await super().read(*arguments, **options)
        entries = replay.entries and [Entry(one.offset, one.message + b"!") for one in replay.entries]
        return Replay(replay.position, entries)


class ForgetsTheEpoch(Store):
    """Gives to who comes from another epoch what has the same numbers in this one."""

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        if since is not None:
            now = self._server.kept.read_nowait(topic, keep).position
            since = Position(now.epoch, min(since.offset, now.offset))
        return await super().read(topic, keep, since, last, limit)


@pytest.mark.parametrize(
    ("store", "server", "promise"),
    [
        (Store, TellsMoreThanItSaved, "not forgotten within an epoch|one message stands at|in another epoch"),
        (Store, GoesBack, "an epoch does not come back"),
        (Store, NeverWorksAgain, "in the end the store works again, and it says .*UNAVAILABLE"),
        (AsksAgain, Server, "is kept once"),
        (SwallowsFailures, Server, "one message stands at|is kept once"),
        (LeavesHoles, Server, "gets all up to"),
        (MakesUp, Server, "nothing is kept that nobody appended"),
        (ForgetsTheEpoch, Server, "nobody resumes from .* in another epoch"),
    ],
)
async def test_what_is_wrong_is_caught(
    autojump_clock: MockClock, store: type[Store], server: type[Server], promise: str
) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check(store, server)
