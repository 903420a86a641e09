"""Handlers of one connection that may not all run at the same time, and wait for each other in order.

Rules
- A place is given in the order of `enter`. Who leaves hands the place to who waits longest: nobody slips in between.
- A free place is taken without waiting: only who has to wait costs a task.
- A key that nobody holds is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import final

import trio

__all__ = ["Lanes"]


@final
class _Places:
    __slots__ = ("taken", "waiting")

    def __init__(self) -> None:
        self.taken = 0
        self.waiting: deque[trio.lowlevel.Task] = deque()


@final
class Lanes:
    """The lanes of one connection, by route and key."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Places] = {}

    def __len__(self) -> int:
        """Keys that somebody holds."""
        return len(self._lanes)

    async def enter(self, key: Hashable, places: int) -> None:
        """Take one of the `places` of a key; waits only while all are taken. Cancelled: none was taken."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Places()
        if lane.taken < places:
            lane.taken += 1
            return
        task = trio.lowlevel.current_task()
        lane.waiting.append(task)

        def give_up(_: object) -> trio.lowlevel.Abort:
            lane.waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def leave(self, key: Hashable) -> None:
        """Give the place back, or to who waits longest."""
        lane = self._lanes[key]
        if lane.waiting:
            trio.lowlevel.reschedule(lane.waiting.popleft())
            return
        lane.taken -= 1
        if not lane.taken:
            del self._lanes[key]
