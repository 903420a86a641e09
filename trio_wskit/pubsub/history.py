"""The history of topics in the memory of one process."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, final

import trio

from trio_wskit._core.history import Entry, History, Position, Replay
from trio_wskit.errors import ConfigError

__all__ = ["MemoryHistory"]

_SWEPT_PER_STEP: Final = 2  # so what is over goes faster than what is new comes, and nobody waits for it


@final
class _Log:
    """One topic. Its entries have the last offsets, without holes."""

    __slots__ = ("entries", "entries_until", "epoch", "newest", "size", "until")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.newest = 0
        self.entries: deque[Entry] = deque()
        self.size = 0  # bytes of the entries
        self.entries_until = 0.0
        self.until = 0.0


@final
class MemoryHistory:
    """A `trio_wskit.abc.HistoryStore` within one process: it never waits, and ends with the process.

    What is over its time goes a few topics at a time, with each use.

    Args:
        max_topics: topics that are remembered; for one more, the one that was not used for longest is forgotten whole.
            Each client that subscribes to a topic with a history uses one.
        max_bytes: of all messages together; forgets topics likewise, and of the last one its oldest messages.
        clock: gives seconds; by default Trio's.

    Raises:
        ConfigError: a bound is not a whole number above 0.
    """

    def __init__(
        self,
        *,
        max_topics: int = 10_000,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        for name, value in (("max_topics", max_topics), ("max_bytes", max_bytes)):
            given: Any = value
            if not isinstance(given, int) or isinstance(given, bool) or given < 1:
                raise ConfigError(f"MemoryHistory({name}=…) takes a whole number above 0, not {value!r}")
        self._max_topics = max_topics
        self._max_bytes = max_bytes
        self._clock = clock
        self._logs: OrderedDict[str, _Log] = OrderedDict()  # the one that was used last is the last
        self._round: deque[tuple[str, _Log]] = deque()  # who is looked at next, for being over its time
        self._bytes = 0
        self._evicted = 0

    def __len__(self) -> int:
        """Topics that are remembered, those included that are over their time and not yet forgotten."""
        return len(self._logs)

    @property
    def stored_bytes(self) -> int:
        """Of all messages together."""
        return self._bytes

    @property
    def evicted(self) -> int:
        """Topics that were forgotten before their time, for there were too many or too large ones."""
        return self._evicted

    def append_nowait(self, topic: str, message: bytes, keep: History) -> Position:
        """See `trio_wskit.abc.HistoryStore.append`."""
        now = self._clock()
        log = self._log_of(topic, now)
        log.newest += 1
        log.entries.append(Entry(log.newest, message))
        log.size += len(message)
        self._bytes += len(message)
        while len(log.entries) > keep.size:
            self._drop_oldest(log)
        log.entries_until = now + keep.ttl
        log.until = now + keep.position_ttl
        while self._bytes > self._max_bytes and len(self._logs) > 1:
            self._evict()
        while self._bytes > self._max_bytes:
            self._drop_oldest(log)
        return Position(log.epoch, log.newest)

    def read_nowait(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        """See `trio_wskit.abc.HistoryStore.read`."""
        now = self._clock()
        log = self._log_of(topic, now)
        log.until = max(log.until, now + keep.position_ttl)
        position = Position(log.epoch, log.newest)
        entries = log.entries
        if since is None:
            count = min(last, len(entries))
        elif since.epoch != log.epoch or since.offset > log.newest:
            return Replay(position, None)
        else:
            count = log.newest - since.offset
        if count > len(entries) or count > limit:
            return Replay(position, None)
        return Replay(position, list(islice(entries, len(entries) - count, None)))

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        """See `trio_wskit.abc.HistoryStore.append`. Never waits; it is a checkpoint. Cancelled: not appended."""
        await trio.lowlevel.checkpoint()
        return self.append_nowait(topic, message, keep)

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        """See `trio_wskit.abc.HistoryStore.read`. Never waits; it is a checkpoint."""
        await trio.lowlevel.checkpoint()
        return self.read_nowait(topic, keep, since, last, limit)

    def clear(self) -> None:
        """Forget everything, as if the process had been started again: every topic begins a new epoch."""
        self._logs.clear()
        self._round.clear()
        self._bytes = 0

    def _log_of(self, topic: str, now: float) -> _Log:
        self._sweep(now)
        log = self._logs.get(topic)
        if log is not None and log.until <= now:
            self._forget(topic, log)
            log = None
        if log is None:
            log = self._logs[topic] = _Log(secrets.token_hex(8))
            self._round.append((topic, log))
            if len(self._logs) > self._max_topics:
                self._evict()
        elif log.entries_until <= now:
            self._drop_all(log)
        self._logs.move_to_end(topic)
        return log

    def _sweep(self, now: float) -> None:
        for _ in range(min(_SWEPT_PER_STEP, len(self._round))):
            topic, log = self._round.popleft()
            if self._logs.get(topic) is not log:
                continue  # it was evicted
            if log.until <= now:
                self._forget(topic, log)
                continue
            if log.entries_until <= now:
                self._drop_all(log)
            self._round.append((topic, log))

    def _drop_oldest(self, log: _Log) -> None:
        size = len(log.entries.popleft().message)
        log.size -= size
        self._bytes -= size

    def _drop_all(self, log: _Log) -> None:
        self._bytes -= log.size
        log.entries.clear()
        log.size = 0

    def _forget(self, topic: str, log: _Log) -> None:
        self._drop_all(log)
        del self._logs[topic]

    def _evict(self) -> None:
        topic, log = next(iter(self._logs.items()))
        self._forget(topic, log)
        self._evicted += 1
