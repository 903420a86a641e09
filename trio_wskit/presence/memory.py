"""Presence within one process, in virtual time too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import final

import trio

from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceSnapshot, PresenceTable

__all__ = ["MemoryPresence"]


@final
class MemoryPresence:
    """A `trio_wskit.abc.PresenceStore` in memory. Several apps of one process may share it.

    Args:
        clock: gives seconds; None means Trio's.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = trio.current_time if clock is None else clock
        # Microseconds: no client may take a version of this process for an older one of the process before it.
        self._table = PresenceTable(time.time_ns() // 1000)

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        """See `trio_wskit.abc.PresenceStore.beat`. Waits for nothing. Cancelled: nothing has changed."""
        await trio.lowlevel.checkpoint()
        return self._table.beat(beat, self._now())

    async def retire(self, node: str, seconds: float) -> None:
        """See `trio_wskit.abc.PresenceStore.retire`. Waits for nothing. Cancelled: nothing has changed."""
        await trio.lowlevel.checkpoint()
        self._table.retire(node, seconds, self._now())

    async def members(self, topic: str) -> PresenceSnapshot:
        """See `trio_wskit.abc.PresenceStore.members`. Waits for nothing."""
        await trio.lowlevel.checkpoint()
        return self._table.members(topic, self._now())

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        """See `trio_wskit.abc.PresenceStore.count`. Waits for nothing."""
        await trio.lowlevel.checkpoint()
        return self._table.count(topic, self._now(), besides)

    def _now(self) -> int:
        return round(self._clock() * 1000)
