"""`MemoryHistory`: its bounds, and how it forgets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_wskit import ConfigError
from trio_wskit._core.history import History, Position
from trio_wskit.abc import HistoryStore, ImmediateHistoryStore
from trio_wskit.pubsub import MemoryHistory
from trio_wskit.testing import check_history

KEEP = History(size=3, ttl=10, keep_position=100)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_it_keeps_its_promises(autojump_clock: MockClock) -> None:
    opened: list[MemoryHistory] = []

    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        await trio.lowlevel.checkpoint()
        opened.append(MemoryHistory())
        yield opened[-1]

    async def lose() -> None:
        await trio.lowlevel.checkpoint()
        opened[-1].clear()

    await check_history(factory, lose=lose)


def test_it_answers_at_once() -> None:
    assert isinstance(MemoryHistory(), ImmediateHistoryStore)


@pytest.mark.parametrize("options", [{"max_topics": 0}, {"max_topics": True}, {"max_bytes": 1.5}, {"max_bytes": -1}])
def test_its_bounds_are_whole_numbers_above_0(options: Any) -> None:
    with pytest.raises(ConfigError, match=f"MemoryHistory\\({next(iter(options))}="):
        MemoryHistory(**options)


def test_of_too_many_topics_the_one_that_was_not_used_for_longest_goes() -> None:
    store = MemoryHistory(max_topics=3, clock=Clock())
    first = {topic: store.append_nowait(topic, b"x", KEEP) for topic in "abc"}
    store.read_nowait("a", KEEP)
    store.append_nowait("d", b"x", KEEP)
    assert (len(store), store.evicted, store.stored_bytes) == (3, 1, 3)
    assert store.read_nowait("a", KEEP, first["a"]).entries == []
    assert store.read_nowait("c", KEEP, first["c"]).entries == []
    assert store.read_nowait("b", KEEP, first["b"]).entries is None  # which makes room for b again
    assert (len(store), store.evicted) == (3, 2)


def test_too_many_bytes_take_other_topics_first_and_then_the_oldest_messages() -> None:
    store = MemoryHistory(max_bytes=100, clock=Clock())
    store.append_nowait("a", b"x" * 40, KEEP)
    store.append_nowait("b", b"x" * 40, KEEP)
    newest = store.append_nowait("b", b"x" * 40, KEEP)
    assert (len(store), store.stored_bytes, store.evicted) == (1, 80, 1)
    newest = store.append_nowait("b", b"y" * 40, KEEP)
    assert store.stored_bytes == 80
    assert store.read_nowait("b", KEEP, Position(newest.epoch, 0)).entries is None
    assert [one.offset for one in store.read_nowait("b", KEEP, Position(newest.epoch, 1)).entries or ()] == [2, 3]
    huge = store.append_nowait("b", b"z" * 101, KEEP)
    assert store.stored_bytes == 0
    assert huge.offset == 4
    assert store.read_nowait("b", KEEP, huge).entries == []


def test_what_is_over_its_time_goes_with_the_use_of_others() -> None:
    clock = Clock()
    store = MemoryHistory(clock=clock)
    for number in range(100):
        store.append_nowait(f"old:{number}", b"x" * 10, KEEP)
    assert store.stored_bytes == 1000
    clock.now += 10
    for _ in range(51):
        store.append_nowait("new", b"", KEEP)
    assert (len(store), store.stored_bytes) == (101, 0)  # the positions stay
    clock.now += 90
    for _ in range(51):
        store.append_nowait("new", b"", KEEP)
    assert len(store) == 1
    assert store.evicted == 0


def test_one_use_forgets_two_topics_at_most() -> None:
    clock = Clock()
    store = MemoryHistory(clock=clock)
    for number in range(100):
        store.append_nowait(f"old:{number}", b"x", KEEP)
    clock.now += 200
    store.append_nowait("new", b"", KEEP)
    assert len(store) == 99


def test_topics_that_come_and_go_leave_nothing_behind() -> None:
    clock = Clock()
    store = MemoryHistory(max_topics=10, clock=clock)
    for number in range(10_000):
        store.append_nowait(f"t:{number}", b"x" * 10, KEEP)
    inside: Any = store
    assert len(store) == 10
    assert store.stored_bytes == 100
    assert len(inside._round) <= 20


def test_an_entry_is_the_same_object_each_time() -> None:
    store = MemoryHistory(clock=Clock())
    store.append_nowait("t", b"x", KEEP)
    one, again = (store.read_nowait("t", KEEP, last=1).entries for _ in range(2))
    assert one
    assert again
    assert one[0] is again[0]


async def test_appending_cancelled_has_not_happened(autojump_clock: MockClock) -> None:
    store = MemoryHistory()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.append("t", b"x", KEEP)
    assert store.read_nowait("t", KEEP).position.offset == 0
