"""One client's operations on topics take turns: two that share a topic run in the order in which they came."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, final

import trio

__all__ = ["Turn", "Turns"]

_NOTHING: Final[frozenset[str]] = frozenset()


@final
class Turn:
    """One operation, waiting or running.

    Attributes:
        topics: what it is about; None for all there are.
        adds: the topics that it subscribes to, as far as that is known.
        removes: the topics that it unsubscribes from.
        reserved: how many topics the connection will have more, once the limit has let it pass.
    """

    __slots__ = ("_done", "adds", "removes", "reserved", "topics")

    def __init__(self, topics: frozenset[str] | None) -> None:
        self.topics: frozenset[str] | None = topics
        self.adds: Collection[str] = _NOTHING
        self.removes: Collection[str] = _NOTHING
        self.reserved: int = 0
        self._done: trio.Event | None = None

    def concerns(self, topics: frozenset[str] | None) -> bool:
        """True where it shares a topic with these."""
        return self.topics is None or topics is None or not self.topics.isdisjoint(topics)

    async def done(self) -> None:
        """Wait until it is over, however it ended."""
        if self._done is None:
            self._done = trio.Event()
        await self._done.wait()

    def finish(self) -> None:
        """Wake who waits for it."""
        if self._done is not None:
            self._done.set()


@final
class Turns:
    """The operations of one client, in the order in which they were asked for.

    Whoever is earlier goes first, so a batch needs no order of its own to be free of deadlocks, and none starves.
    """

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: list[Turn] = []

    async def begin(self, turn: Turn) -> None:
        """Queue up, and wait for every earlier turn that shares a topic. Cancelled: it has left the queue."""
        self.all.append(turn)
        try:
            while (earlier := self._before(turn)) is not None:
                await earlier.done()
        except BaseException:
            self.end(turn)
            raise

    def _before(self, turn: Turn) -> Turn | None:
        for other in self.all:
            if other is turn:
                break
            if other.concerns(turn.topics):
                return other
        return None

    def end(self, turn: Turn) -> None:
        """The turn is over."""
        self.all.remove(turn)
        turn.finish()

    def about(self, topic: str) -> Turn | None:
        """The latest turn that subscribes to the topic, or unsubscribes from it."""
        for turn in reversed(self.all):
            if topic in turn.adds or topic in turn.removes:
                return turn
        return None

    async def settle(self, topics: frozenset[str] | None) -> None:
        """Wait for every turn that is there now and concerns these topics."""
        for turn in [turn for turn in self.all if turn.concerns(topics)]:
            if turn in self.all:
                await turn.done()
