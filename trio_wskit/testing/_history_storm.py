"""Many append and resume while a store's server is killed, paused and started again: nobody is told what is not so."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from trio_wskit._core.history import History, Position, Replay
from trio_wskit.abc import HistoryStore

__all__ = ["check_storm"]

_KEEP: Final = History(size=1000, ttl=600)
_TOPICS: Final = ("square", "park:{x}")
_WRITERS: Final = 3  # for each topic
_READERS: Final = 3
_STEPS: Final = 100  # of each, at least
_PAUSE: Final = 0.02  # seconds between two of its steps, at most
_PATIENCE: Final = 20.0  # for the store to work again


def _expect(condition: object, promise: str, got: object) -> None:
    if not condition:
        raise AssertionError(f"{promise}; got {got!r}")


@final
class _Topic:
    """What everybody together was told of one topic."""

    def __init__(self, store: HistoryStore, name: str) -> None:
        self._store = store
        self.name = name
        self.positions: list[Position] = []  # that somebody knows
        self._sent: set[bytes] = set()
        self._messages: dict[tuple[str, int], bytes] = {}
        self._places: dict[tuple[str, bytes], int] = {}
        self._newest: dict[str, int] = {}  # that anybody knows of, by epoch
        self._calls = 0  # begun or ended: the order of events
        self._seen: dict[str, int] = {}  # when an epoch was first heard of
        self._over: dict[str, int] = {}  # when another one was heard of that came after it

    async def append(self, message: bytes) -> Position:
        self._sent.add(message)
        began = self._count()
        position = await self._store.append(self.name, message, _KEEP)
        self._knows(position, began)
        self._learn(position.epoch, position.offset, message)
        return position

    async def read(self, since: Position | None) -> Replay:
        known = dict(self._newest)
        began = self._count()
        replay = await self._store.read(self.name, _KEEP, since)
        now = replay.position
        self._knows(now, began)
        promise = "what was told once is not forgotten within an epoch"
        _expect(now.offset >= known.get(now.epoch, 0), f"{promise}: {known.get(now.epoch)} was there", now)
        if since is not None and replay.entries is not None:
            _expect(now.epoch == since.epoch, f"nobody resumes from {since} in another epoch", now)
            offsets = [entry.offset for entry in replay.entries]
            wanted = [*range(since.offset + 1, now.offset + 1)]
            _expect(offsets == wanted, f"who resumes from {since} gets all up to {now.offset}, in order", offsets)
            for entry in replay.entries:
                self._learn(now.epoch, entry.offset, bytes(entry.message))
        return replay

    def _count(self) -> int:
        self._calls += 1
        return self._calls

    def _knows(self, position: Position, began: int) -> None:
        """A call that began then has been answered with this position."""
        epoch, ended = position.epoch, self._count()
        over = self._over.get(epoch, ended)
        _expect(over > began, "an epoch does not come back after another one", position)
        for other, seen in self._seen.items():
            if other != epoch and seen < began:
                self._over.setdefault(other, ended)
        self._seen.setdefault(epoch, ended)
        self._newest[epoch] = max(self._newest.get(epoch, 0), position.offset)
        self.positions.append(position)

    def _learn(self, epoch: str, offset: int, message: bytes) -> None:
        _expect(message in self._sent, "nothing is kept that nobody appended", message[:40])
        there = self._messages.setdefault((epoch, offset), message)
        _expect(there == message, f"one message stands at {offset} of {epoch}: {there!r}", message)
        place = self._places.setdefault((epoch, message), offset)
        _expect(place == offset, f"{message!r} is kept once, at {place} of {epoch}", offset)


async def check_storm(store: HistoryStore, disturb: Callable[[], Awaitable[object]], *, seed: int = 7) -> None:
    """See the module.

    Args:
        store: in which nothing is kept.
        disturb: breaks what it stands on and mends it, meanwhile.
        seed: of what people do.

    Raises:
        AssertionError: somebody was told what is not so.
    """
    chance = random.Random(seed)
    topics = [_Topic(store, name) for name in _TOPICS]
    undisturbed = trio.Event()
    failures: list[AssertionError] = []

    async def again(step: Callable[[int], Awaitable[object]]) -> None:
        number = 0
        while not failures and (number < _STEPS or not undisturbed.is_set()):
            try:
                await step(number)
            except AssertionError as broken:
                failures.append(broken)
            except Exception:  # the store says that it has failed: then nobody was told anything
                await trio.lowlevel.checkpoint()
            number += 1
            await trio.sleep(chance.random() * _PAUSE)

    async def write(topic: _Topic, writer: int) -> None:
        await again(lambda number: topic.append(b"%d:%d" % (writer, number)))

    async def resume(number: int) -> None:
        topic = chance.choice(topics)
        await topic.read(chance.choice(topic.positions) if topic.positions and number % 10 else None)

    async with trio.open_nursery() as nursery:
        for writer in range(_WRITERS):
            for topic in topics:
                nursery.start_soon(write, topic, writer)
        for _ in range(_READERS):
            nursery.start_soon(again, resume)
        await disturb()
        undisturbed.set()
    if failures:
        raise failures[0]
    for topic in topics:
        await _works_again(topic)


async def _works_again(topic: _Topic) -> None:
    """In the end all is as if nothing had been, but for what was lost."""
    first = await _append_in_the_end(topic)
    last = first
    for number in range(3):
        last = await topic.append(b"after the end:%d" % number)
    _expect(last == Position(first.epoch, first.offset + 3), f"numbers go on after {first}", last)
    replay = await topic.read(first)
    _expect(replay.position == last, "the last message is the newest", replay.position)
    _expect(replay.entries is not None, f"who resumes from {first} recovers in the end", replay)


async def _append_in_the_end(topic: _Topic) -> Position:
    deadline = trio.current_time() + _PATIENCE
    while True:
        try:
            return await topic.append(b"the end:%f" % trio.current_time())
        except AssertionError:
            raise
        except Exception as error:
            if trio.current_time() > deadline:
                raise AssertionError(f"in the end the store works again, and it says {error!r}") from error
        await trio.sleep(0.1)
