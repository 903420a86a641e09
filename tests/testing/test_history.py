"""`check_history` passes what is right, and catches what is wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_wskit._core.history import Entry, History, Position, Replay
from trio_wskit.abc import HistoryStore
from trio_wskit.pubsub import MemoryHistory
from trio_wskit.testing import check_history


class Store:
    """Right, and slow: what the mutants change. Its calls have a wait before and after what they do."""

    def __init__(self) -> None:
        self.inner = MemoryHistory()

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        await trio.lowlevel.checkpoint()
        position = self.appended(topic, message, keep)
        await trio.lowlevel.checkpoint()
        return position

    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        return self.inner.append_nowait(topic, message, keep)

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        await trio.lowlevel.checkpoint()
        replay = self.seen(topic, keep, since, last, limit)
        await trio.lowlevel.checkpoint()
        return replay

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        return self.inner.read_nowait(topic, keep, since, last, limit)

    def lose(self) -> None:
        self.inner.clear()


class GivesAPart(Store):
    """What is left of what was missed."""

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        if replay.entries is None and since is not None and since.epoch == replay.position.epoch:
            count = max(0, replay.position.offset - since.offset)
            return super().seen(topic, keep, None, count, limit)
        return replay


class BelievesEveryEpoch(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        if since is not None:
            since = Position(self.inner.read_nowait(topic, keep).position.epoch, since.offset)
        return super().seen(topic, keep, since, last, limit)


class BelievesTheFuture(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        if since is not None and since.epoch == replay.position.epoch and since.offset > replay.position.offset:
            return Replay(replay.position, [])
        return replay


class CountsFromOneToMany(Store):
    """The message at `since` once more."""

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        if since is not None and since.offset:
            since = Position(since.epoch, since.offset - 1)
        return super().seen(topic, keep, since, last, limit)


class KnowsNoLimit(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        return super().seen(topic, keep, since, last, 10_000)


class CutsAtTheLimit(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, 10_000)
        return Replay(replay.position, None if replay.entries is None else replay.entries[:limit])


class HasOneEpoch(Store):
    """One for all topics."""

    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        return Position("one", super().appended(topic, message, keep).offset)

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        own = self.inner.read_nowait(topic, keep).position.epoch
        if since is not None:
            since = Position(own if since.epoch == "one" else since.epoch, since.offset)
        replay = super().seen(topic, keep, since, last, limit)
        return Replay(Position("one", replay.position.offset), replay.entries)


class KeepsTheEpochOfWhatIsLost(Store):
    """It numbers from 1 again, in the epoch that was."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[str, str] = {}

    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        position = super().appended(topic, message, keep)
        return Position(self.epochs.setdefault(topic, position.epoch), position.offset)

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        own = self.inner.read_nowait(topic, keep).position.epoch
        shown = self.epochs.setdefault(topic, own)
        if since is not None:
            since = Position(own if since.epoch == shown else since.epoch, since.offset)
        replay = super().seen(topic, keep, since, last, limit)
        return Replay(Position(shown, replay.position.offset), replay.entries)


class KeepsMessagesForEver(Store):
    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        return super().appended(topic, message, History(keep.size, 10**6))


class KeepsFromTheFirst(Store):
    """The time of the first publish counts."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[str, float] = {}

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        begun = self.begun.setdefault(topic, trio.current_time())
        return replay if trio.current_time() < begun + keep.ttl else Replay(replay.position, [] if last else None)

    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        self.begun.setdefault(topic, trio.current_time())
        return super().appended(topic, message, keep)


class ForgetsThePositionWithTheMessages(Store):
    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        return super().appended(topic, message, History(keep.size, keep.ttl, keep.ttl))


class LosesAppends(Store):
    """A number for each, and of who was cancelled only the number."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: dict[str, int] = {}

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.extra[topic] = self.extra.get(topic, 0) + 1
            raise
        position = self.appended(topic, message, keep)
        return Position(position.epoch, position.offset + self.extra.get(topic, 0))


class ReadsBeforeItCounts(Store):
    """Two steps for what must be one."""

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        offset = self.inner.read_nowait(topic, keep).position.offset
        await trio.lowlevel.checkpoint()
        position = self.appended(topic, message, keep)
        return Position(position.epoch, offset + 1)


class ReadsInTwoSteps(Store):
    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        position = self.inner.read_nowait(topic, keep).position
        await trio.lowlevel.checkpoint()
        return Replay(position, self.seen(topic, keep, since, last, limit).entries)


class GivesTheFirstForTheLast(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        if since is not None:
            return super().seen(topic, keep, since, last, limit)
        replay = super().seen(topic, keep, None, keep.size if last else 0, limit)
        return Replay(replay.position, None if replay.entries is None else replay.entries[:last])


class GivesTheNewestFirst(Store):
    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        return Replay(replay.position, None if replay.entries is None else replay.entries[::-1])


class KeepsOneTooMany(Store):
    def appended(self, topic: str, message: bytes, keep: History) -> Position:
        return super().appended(topic, message, History(keep.size + 1, keep.ttl, keep.keep_position))


class KeepsText(Store):
    """Not bytes."""

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        if replay.entries is None:
            return replay
        return Replay(
            replay.position,
            [Entry(one.offset, one.message.decode(errors="replace").encode()) for one in replay.entries],
        )


class BeginsAtNothing(Store):
    """A topic that is only read has another epoch each time."""

    def seen(self, topic: str, keep: History, since: Position | None, last: int, limit: int) -> Replay:
        replay = super().seen(topic, keep, since, last, limit)
        if replay.position.offset == 0:
            self.inner.clear()
        return replay


MUTANTS = (
    GivesAPart,
    BelievesEveryEpoch,
    BelievesTheFuture,
    CountsFromOneToMany,
    KnowsNoLimit,
    CutsAtTheLimit,
    HasOneEpoch,
    KeepsTheEpochOfWhatIsLost,
    KeepsMessagesForEver,
    KeepsFromTheFirst,
    ForgetsThePositionWithTheMessages,
    LosesAppends,
    ReadsBeforeItCounts,
    ReadsInTwoSteps,
    GivesTheFirstForTheLast,
    GivesTheNewestFirst,
    KeepsOneTooMany,
    KeepsText,
    BeginsAtNothing,
)


async def check(make: Callable[[], Any]) -> None:
    opened: list[Any] = []

    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        opened.append(make())
        await trio.lowlevel.checkpoint()
        yield opened[-1]

    async def lose() -> None:
        await trio.lowlevel.checkpoint()
        (opened[-1].lose if isinstance(opened[-1], Store) else opened[-1].clear)()

    await check_history(factory, lose=lose)


@pytest.mark.parametrize("make", [MemoryHistory, Store])
async def test_what_is_right_passes(make: Any, autojump_clock: MockClock) -> None:
    await check(make)


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_what_is_wrong_is_caught(mutant: Any, autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError) as caught:
        await check(mutant)
    assert "while checking" in caught.value.__notes__[0]


async def test_a_store_that_cannot_lose_anything_need_not(autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        await trio.lowlevel.checkpoint()
        yield MemoryHistory()

    await check_history(factory)
