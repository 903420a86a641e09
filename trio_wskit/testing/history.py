"""Prove a store of histories: `await check_history(factory)` in a test of your own.

Every check is a promise of `trio_wskit.abc.HistoryStore`; its failure says which, and what came instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias, final

import attrs
import trio

from trio_wskit._core.history import History, Position, Replay
from trio_wskit.abc import HistoryStore
from trio_wskit.testing._history_storm import check_storm

__all__ = ["HistoryFactory", "check_history"]

HistoryFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[HistoryStore]]"
"""Opens a store in which nothing is kept."""

_KEEP: Final = History(size=10, ttl=60)
_MESSAGES: Final = (b'{"type":"A"}', b"", b"\x00\xff\r\n$-1\r\n", "ä€😀".encode(), b"x" * 100_000)


@final
@attrs.frozen
class _Bench:
    open: HistoryFactory
    lose: Callable[[], Awaitable[object]] | None
    second: float  # what the checks take for one


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


def _told(replay: Replay) -> list[tuple[int, bytes]] | None:
    return None if replay.entries is None else [(one.offset, bytes(one.message)) for one in replay.entries]


def _same(replay: Replay, position: Position, entries: list[tuple[int, bytes]] | None, promise: str) -> None:
    _expect(replay.position == position, f"{promise}: the position is {position}", replay.position)
    told = _told(replay)
    _expect(told == entries, f"{promise}: the entries are {_short(entries)}", _short(told))


def _short(entries: list[tuple[int, bytes]] | None) -> object:
    return None if entries is None else [(offset, message[:20]) for offset, message in entries]


async def _fill(store: HistoryStore, topic: str, count: int, keep: History = _KEEP, first: int = 1) -> Position:
    """Append the texts of the numbers from `first` on."""
    position = None
    for number in range(first, first + count):
        position = await store.append(topic, b"%d" % number, keep)
    assert position is not None
    return position


def _numbers(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(number, b"%d" % number) for number in range(first, last + 1)]


async def check_history(
    factory: HistoryFactory,
    *,
    lose: Callable[[], Awaitable[object]] | None = None,
    seconds: float = 0.3,
    disturb: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Check everything that `trio_wskit.abc.HistoryStore` promises, on stores that `factory` opens.

    Run it where the store can work: a store in memory under a clock that jumps (`trio.testing.MockClock`), one on a
        server in real time, where it sleeps for less than twenty times `seconds` in all.

    Args:
        factory: called without arguments for a store in which nothing is kept.
        lose: makes the store that is open lose all that it keeps, as when its server starts again; None where that
            cannot happen while it is open.
        seconds: how long messages are kept in the checks that wait for their end; more than a call takes.
        disturb: breaks what the store stands on and mends it, and returns when it works again: kill, pause or restart
            a server. With it, only what holds through all that is checked, while many append and resume: nobody is
            told what is not so, and in the end it works again.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the stores it opened are closed.
    """
    if disturb is not None:
        async with factory() as store:
            await check_storm(store, disturb)
        return
    bench = _Bench(factory, lose, seconds)
    for check in _CHECKS:
        try:
            await check(bench)
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


async def _a_new_topic_has_a_position(bench: _Bench) -> None:
    async with bench.open() as store:
        begun = await store.read("t", _KEEP)
        _expect(begun.position.offset == 0, "a topic that nobody has heard of is at offset 0", begun.position)
        _same(await store.read("t", _KEEP), begun.position, [], "it stays as it is")
        _same(await store.read("t", _KEEP, last=5), begun.position, [], "it has no last messages")
        _same(await store.read("t", _KEEP, since=begun.position), begun.position, [], "nothing was missed there")
        first = await store.append("t", b"1", _KEEP)
        _expect(first == Position(begun.position.epoch, 1), "the first message is the first of that epoch", first)
        _same(await store.read("t", _KEEP, since=begun.position), first, _numbers(1, 1), "it was missed")


async def _offsets_have_no_holes(bench: _Bench) -> None:
    async with bench.open() as store:
        positions = [await store.append("t", b"x", History(3)) for _ in range(8)]
        _expect([one.offset for one in positions] == [*range(1, 9)], "offsets are 1 to 8", positions)
        _expect(len({one.epoch for one in positions}) == 1, "and of one epoch", positions)


async def _messages_come_back_as_they_were(bench: _Bench) -> None:
    async with bench.open() as store:
        begun = newest = (await store.read("t", _KEEP)).position
        for message in _MESSAGES:
            newest = await store.append("t", message, _KEEP)
        expected = list(enumerate(_MESSAGES, 1))
        _same(await store.read("t", _KEEP, since=begun), newest, expected, "every byte is kept")


async def _topics_are_apart(bench: _Bench) -> None:
    async with bench.open() as store:
        one, other = await _fill(store, "one", 3), await _fill(store, "other:{x}", 2)
        _expect(one.epoch != other.epoch, "two topics have two epochs", (one, other))
        _same(await store.read("one", _KEEP, last=9), one, _numbers(1, 3), "each has its own messages")
        _same(await store.read("other:{x}", _KEEP, since=one), other, None, "another topic's epoch is another epoch")


async def _a_resume_gives_what_came_after(bench: _Bench) -> None:
    async with bench.open() as store:
        newest = await _fill(store, "t", 8)
        for since in range(9):
            replay = await store.read("t", _KEEP, since=Position(newest.epoch, since))
            _same(replay, newest, _numbers(since + 1, 8), f"what came after {since}")


async def _a_resume_from_nowhere_gives_nothing(bench: _Bench) -> None:
    async with bench.open() as store:
        newest = await _fill(store, "t", 3)
        for offset in (4, 1000, 2**53 - 1):
            replay = await store.read("t", _KEEP, since=Position(newest.epoch, offset))
            _same(replay, newest, None, f"{offset} is of the future")
        for epoch in ("nobody's", newest.epoch + "x", newest.epoch[:-1] or "y"):
            for offset in (0, 2, 3):
                replay = await store.read("t", _KEEP, since=Position(epoch, offset))
                _same(replay, newest, None, f"{epoch!r} is another epoch")


async def _what_is_trimmed_is_never_given_in_part(bench: _Bench) -> None:
    keep = History(4)
    async with bench.open() as store:
        newest = await _fill(store, "t", 10, keep)
        for since in range(11):
            replay = await store.read("t", keep, since=Position(newest.epoch, since))
            _same(replay, newest, None if since < 6 else _numbers(since + 1, 10), f"4 of 10 are kept; after {since}")
        newest = await store.append("t", b"11", History(2))
        _same(await store.read("t", keep, last=9), newest, _numbers(10, 11), "the last call says how much is kept")


async def _the_last_ones(bench: _Bench) -> None:
    keep = History(5)
    async with bench.open() as store:
        newest = await _fill(store, "t", 9, keep)
        for last in (1, 2, 5, 6, 1000):
            replay = await store.read("t", keep, last=last)
            _same(replay, newest, _numbers(10 - min(last, 5), 9), f"the last {last}, of those that are kept")
        _same(await store.read("t", keep), newest, [], "nothing is given that was not asked for")


async def _a_limit_is_all_or_nothing(bench: _Bench) -> None:
    async with bench.open() as store:
        newest = await _fill(store, "t", 6)
        since = Position(newest.epoch, 2)
        _same(await store.read("t", _KEEP, since=since, limit=4), newest, _numbers(3, 6), "4 are in a limit of 4")
        _same(await store.read("t", _KEEP, since=since, limit=3), newest, None, "4 are not in a limit of 3")


async def _messages_end_and_positions_go_on(bench: _Bench) -> None:
    keep = History(10, ttl=bench.second, keep_position=3600)
    async with bench.open() as store:
        newest = await _fill(store, "t", 3, keep)
        await trio.sleep(1.5 * bench.second)
        _same(await store.read("t", keep, since=newest), newest, [], "who had all has missed nothing")
        _same(await store.read("t", keep, since=Position(newest.epoch, 2)), newest, None, "the messages are gone")
        _same(await store.read("t", keep, last=3), newest, [], "there are no last ones")
        after = await store.append("t", b"4", keep)
        _expect(after == Position(newest.epoch, 4), "the numbers go on", after)
        _same(await store.read("t", keep, last=3), after, _numbers(4, 4), "only the new message is there")
        _same(await store.read("t", keep, since=Position(newest.epoch, 2)), after, None, "3 is not")


async def _a_publish_keeps_all_for_longer(bench: _Bench) -> None:
    keep = History(10, ttl=2 * bench.second)
    async with bench.open() as store:
        await store.append("t", b"1", keep)
        await trio.sleep(1.2 * bench.second)
        newest = await store.append("t", b"2", keep)
        await trio.sleep(1.2 * bench.second)
        _same(await store.read("t", keep, last=9), newest, _numbers(1, 2), "the last publish counts")


async def _a_position_is_forgotten_whole(bench: _Bench) -> None:
    keep = History(10, ttl=bench.second, keep_position=bench.second)
    async with bench.open() as store:
        newest = await _fill(store, "t", 3, keep)
        await trio.sleep(1.5 * bench.second)
        late = await store.read("t", keep, since=newest)
        _expect(late.position.epoch != newest.epoch, "a topic that was forgotten has a new epoch", late.position)
        _same(late, Position(late.position.epoch, 0), None, "and begins anew")
        first = await store.append("t", b"1", keep)
        _expect(first == Position(late.position.epoch, 1), "its first message is of that epoch", first)


async def _a_reader_keeps_the_position(bench: _Bench) -> None:
    keep = History(10, ttl=2 * bench.second, keep_position=2 * bench.second)
    async with bench.open() as store:
        begun = (await store.read("t", keep)).position
        for _ in range(3):
            await trio.sleep(1.2 * bench.second)
            _same(await store.read("t", keep, since=begun), begun, [], "a subscription counts as a use")


async def _many_append_at_once(bench: _Bench) -> None:
    keep = History(1000)
    async with bench.open() as store:
        given: list[tuple[int, bytes]] = []
        seen: list[Replay] = []
        begun = (await store.read("t", keep)).position

        async def append(number: int) -> None:
            for round_ in range(10):
                message = b"%d:%d" % (number, round_)
                position = await store.append("t", message, keep)
                given.append((position.offset, message))

        async def read() -> None:
            while len(given) < 200:
                seen.append(await store.read("t", keep, since=begun))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(append, number)
            for _ in range(3):
                nursery.start_soon(read)
        offsets = sorted(offset for offset, _ in given)
        _expect(offsets == [*range(1, 201)], "offsets have no holes and none is given twice, whoever appends", offsets)
        expected = sorted(given)
        for replay in (*seen, await store.read("t", keep, since=begun)):
            told = _told(replay)
            promise = "a reading is as it is at one instant, and each message where its publisher was told"
            _expect(told == expected[: replay.position.offset], promise, (replay.position, _short(told)))


async def _who_is_cancelled_leaves_no_hole(bench: _Bench) -> None:
    keep = History(1000)
    async with bench.open() as store:
        begun = (await store.read("t", keep)).position
        told: dict[int, bytes] = {}
        for number in range(30):
            with trio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                else:
                    scope.deadline = trio.current_time() + number % 5 / 10_000
                position = await store.append("t", b"%d" % number, keep)
                told[position.offset] = b"%d" % number
        position = await store.append("t", b"end", keep)
        replay = await store.read("t", keep, since=begun)
        entries: Any = _told(replay)
        _expect(entries is not None, "all of it is kept")
        offsets = [offset for offset, _ in entries]
        _expect(offsets == [*range(1, position.offset + 1)], "there is no hole", offsets)
        kept = dict(entries)
        for offset, message in told.items():
            _expect(kept[offset] == message, f"the message at {offset} is {message!r}", kept[offset])


async def _who_lost_all_says_so(bench: _Bench) -> None:
    if bench.lose is None:
        return
    async with bench.open() as store:
        newest = await _fill(store, "t", 3)
        quiet = (await store.read("quiet", _KEEP)).position
        await bench.lose()
        late = await store.read("t", _KEEP, since=newest)
        _expect(late.position.epoch != newest.epoch, "what was lost begins a new epoch", late.position)
        _expect(late.entries is None, "nothing can be given", late.entries)
        first = await store.append("quiet", b"1", _KEEP)
        _expect(first.epoch != quiet.epoch, "a message too begins a new epoch", first)
        _same(await store.read("quiet", _KEEP, since=quiet), first, None, "and no one is told that it missed just that")


_CHECKS: Final[tuple[Callable[[_Bench], Awaitable[None]], ...]] = (
    _a_new_topic_has_a_position,
    _offsets_have_no_holes,
    _messages_come_back_as_they_were,
    _topics_are_apart,
    _a_resume_gives_what_came_after,
    _a_resume_from_nowhere_gives_nothing,
    _what_is_trimmed_is_never_given_in_part,
    _the_last_ones,
    _a_limit_is_all_or_nothing,
    _messages_end_and_positions_go_on,
    _a_publish_keeps_all_for_longer,
    _a_position_is_forgotten_whole,
    _a_reader_keeps_the_position,
    _many_append_at_once,
    _who_is_cancelled_leaves_no_hole,
    _who_lost_all_says_so,
)
