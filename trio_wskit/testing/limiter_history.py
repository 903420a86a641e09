"""Were concurrent answers possible at all? A search for one order of the requests that explains every answer.

A history is *linearizable* (Herlihy and Wing, 1990) when each request can be given one instant between its call and
its answer, such that a single bucket, asked in that order, gives the answers that were given. A limiter that lets two
callers spend one token has a history for which no such order exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import attrs

from trio_wskit._core.bucket import Decision, Grid, Policy, take
from trio_wskit.abc import RateLimiter

__all__ = ["RateLimiterHistory"]


@final
@attrs.frozen
class _Call:
    key: str
    cost: int
    began: int
    ended: int
    # What the clock showed, in ticks, when the call began and when it ended.
    first_tick: int
    last_tick: int
    decision: Decision


@final
class RateLimiterHistory:
    """Records what limiters answer to concurrent callers, and finds out whether one bucket could have said all that.

    Args:
        policy: that of the limiters.
        clock: that of the limiters, in seconds. A clock that stands still makes the check sharpest.
        ticks_per_second: the limiters' unit of time.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float], *, ticks_per_second: int = 10**9) -> None:
        self._clock = clock
        self._ticks_per_second = ticks_per_second
        self._grid = Grid.of(policy, ticks_per_second)
        self._events = 0
        self._calls: list[_Call] = []

    async def consume(self, limiter: RateLimiter, key: str, cost: int = 1) -> Decision:
        """Ask, and take down the answer. Cancelled: as the limiter's; whether tokens were spent is then unknown.

        So check no history that has a cancelled call.
        """
        began, first_tick = self._event(), self._tick()
        decision = await limiter.consume(key, cost)
        self._calls.append(_Call(key, cost, began, self._event(), first_tick, self._tick(), decision))
        return decision

    def explain(self) -> list[Decision]:
        """Find an order that explains every answer, key by key, and return the answers in it.

        The search goes through every set of calls that may have come first; a few hundred calls, a dozen of them at a
        time, are well within reach.

        Raises:
            AssertionError: there is none; the message shows the calls of the key that cannot be explained.
        """
        order: list[Decision] = []
        for key in sorted({call.key for call in self._calls}):
            calls = sorted((call for call in self._calls if call.key == key), key=lambda call: call.began)
            found = self._search(calls)
            if found is None:
                shown = "\n".join(f"  [{call.began}, {call.ended}] cost {call.cost}: {call.decision}" for call in calls)
                raise AssertionError(f"no order of these calls of {key!r} explains their answers:\n{shown}")
            order += [call.decision for call in found]
        return order

    def _event(self) -> int:
        self._events += 1
        return self._events

    def _tick(self) -> int:
        return round(self._clock() * self._ticks_per_second)

    def _search(self, calls: list[_Call]) -> list[_Call] | None:
        # Depth first, by hand: (calls placed, the bucket, the present, what comes next), and what was tried already.
        start = -(1 << 200)
        tried: set[tuple[frozenset[int], int, int]] = set()
        readings = sorted({tick for call in calls for tick in (call.first_tick, call.last_tick)})
        stack: list[tuple[tuple[int, ...], int, int]] = [((), start, readings[0])]
        while stack:
            placed, full_at, now = stack.pop()
            if len(placed) == len(calls):
                return [calls[number] for number in placed]
            state = (frozenset(placed), full_at, now)
            if state in tried:
                continue
            tried.add(state)
            left = [number for number in range(len(calls)) if number not in state[0]]
            # Whoever was answered first was served before all that were called after that.
            first_end = min(calls[number].ended for number in left)
            steps: list[tuple[tuple[int, ...], int, int]] = []
            for number in left:
                call = calls[number]
                if call.began > first_end:
                    continue
                for tick in readings:
                    if max(now, call.first_tick) <= tick <= max(now, call.last_tick):
                        after, taken = take(self._grid, full_at, tick, call.cost)
                        if (taken.allowed, taken.remaining) == (call.decision.allowed, call.decision.remaining):
                            steps.append(((*placed, number), after, tick))
            # An answer that changes nothing can as well come first: without this, refusals alone make 2**n sets.
            idle = next((step for step in steps if step[1:] == (full_at, now)), None)
            stack += steps if idle is None else [idle]
        return None
