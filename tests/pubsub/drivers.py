"""A driver that does as it is told."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import trio

from trio_wskit._core.history import History, Position, Replay
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.pubsub.history import MemoryHistory

__all__ = ["ScriptedDriver", "SlowStore"]


@final
class ScriptedDriver:
    """A `MemoryPubSub` that can be slow, and can fail.

    Attributes:
        calls: what it was asked, such as ``("subscribe", "a")``, in order.
        failing: the operations that fail, such as ``subscribe``, or ``subscribe a`` for one topic alone.
        pause: seconds that every operation takes before anything of it happens.
        answer: what `publish` returns; None for what is true.
        envelopes: what was published.
        error: what is raised.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failing: set[str] = set()
        self.pause = 0.0
        self.answer: PublishResult | None = None
        self.envelopes: list[PublishEnvelope] = []
        self.error = OSError("the broker is gone")
        self._index = MemoryPubSub()

    async def _asked(self, what: str, topic: str) -> None:
        self.calls.append((what, topic))
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.pause:
            await trio.sleep(self.pause)
        if self.failing & {what, f"{what} {topic}"}:
            raise self.error

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        self.envelopes.append(envelope)
        await self._asked("publish", envelope.topic)
        return self.answer or await self._index.publish(envelope)

    async def subscribe(self, client_id: str, topic: str) -> None:
        await self._asked("subscribe", topic)
        await self._index.subscribe(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        await self._asked("unsubscribe", topic)
        await self._index.unsubscribe(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        return self._index.local_subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        return self._index.list_topics()

    def has_topic(self, topic: str) -> bool:
        return self._index.has_topic(topic)

    async def aclose(self) -> None:
        await self._index.aclose()


@final
class SlowStore:
    """A `MemoryHistory` behind a wire: every call waits, and can fail.

    Attributes:
        inner: what is kept.
        append_delays: for the next messages: seconds before each is kept, and until whoever appended it knows.
        before_append: the same for all others.
        read_delays: for the next readings: seconds before each, and until whoever reads knows.
        before_read: seconds before all other readings.
        after_read: seconds until whoever reads knows.
        error: what is raised, if anything.
        read_error: the same, by readings alone.
    """

    def __init__(self) -> None:
        self.inner = MemoryHistory()
        self.before_append = 0.0
        self.append_delays: list[tuple[float, float]] = []
        self.read_delays: list[tuple[float, float]] = []
        self.before_read = 0.0
        self.after_read = 0.0
        self.error: Exception | None = None
        self.read_error: Exception | None = None

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        before, after = self.append_delays.pop() if self.append_delays else (self.before_append, 0.0)
        await trio.sleep(before)
        if self.error is not None:
            raise self.error
        position = self.inner.append_nowait(topic, message, keep)
        await trio.sleep(after)
        return position

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        before, after = self.read_delays.pop() if self.read_delays else (self.before_read, self.after_read)
        await trio.sleep(before)
        replay = self.inner.read_nowait(topic, keep, since, last, limit)
        await trio.sleep(after)
        error = self.error or self.read_error
        if error is not None:
            raise error
        return replay
