"""What a rate limiter is, said as plainly as can be: a clock that is set by hand, and a model to compare with.

The model keeps everything that ever happened and works it out anew for each question, in fractions. It is slow, and
right by reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import final

import attrs

from trio_wskit._core.bucket import Decision, Decisions, Policy, Spend, check_cost, merge_spends

__all__ = ["ManualClock", "ModelRateLimiter"]


@final
class ManualClock:
    """A clock that moves when it is told to. Call it for the present in seconds.

    Args:
        ticks_per_second: its unit, which should be that of the limiter that reads it.

    Attributes:
        ticks: the present, in whole units. Set it to whatever you like. Up to 2**51 every tick is a float of its own.
    """

    __slots__ = ("ticks", "ticks_per_second")

    def __init__(self, ticks_per_second: int = 10**9) -> None:
        self.ticks_per_second: int = ticks_per_second
        self.ticks: int = 0

    def __call__(self) -> float:
        """The present, in seconds."""
        return self.ticks / self.ticks_per_second

    def advance(self, seconds: float) -> None:
        """Move by so many seconds, to the nearest tick; back, when they are below 0."""
        self.ticks += round(seconds * self.ticks_per_second)


@attrs.define
class _Bucket:
    # Every spending: when, in ticks, and how much.
    spent: list[list[int]] = attrs.field(factory=list[list[int]])
    # The latest tick at which anybody asked: time does not go back.
    latest: int | None = None


@final
class ModelRateLimiter:
    """A token bucket for each key, by the definition: a level that rises with time, up to the capacity.

    Args:
        policy: of every bucket for which no other is named.
        clock: the present, in seconds; counts as the nearest tick.
        ticks_per_second: the unit of time: waits are whole ticks.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float], *, ticks_per_second: int = 10**9) -> None:
        self.policy = policy
        self._clock = clock
        self._ticks_per_second = ticks_per_second
        self._buckets: dict[tuple[Policy, str], _Bucket] = {}

    def consume(self, key: str, cost: int = 1) -> Decision:
        """What `trio_wskit.abc.RateLimiter.consume` has to answer."""
        return self.consume_many([(key, cost)]).each[0]

    def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        """What `trio_wskit.abc.RateLimiter.consume_many` has to answer."""
        costs = merge_spends(spends, self.policy)
        said = {bucket: self._ask(bucket, cost) for bucket, cost in costs.items()}
        paid = all(said.values())
        for bucket, cost in costs.items():
            if paid and cost:
                self._record(bucket, cost)
            elif said[bucket]:
                said[bucket] = self._ask(bucket, 0)
        return Decisions.of([said[spend[2] if len(spend) == 3 else self.policy, spend[0]] for spend in spends])

    def reserve(self, key: str, cost: int = 1) -> tuple[Decision, Callable[[int], None] | None]:
        """Spend on approval. When it is allowed, what comes with the decision settles it: for how many tokens."""
        bucket = (self.policy, key)
        decision = self._ask(bucket, check_cost(cost))
        if not decision.allowed:
            return decision, None
        entry = self._record(bucket, cost)

        return decision, partial(entry.__setitem__, 1)

    def reset(self, key: str) -> None:
        """Make a bucket full."""
        self._buckets.pop((self.policy, key), None)

    def _record(self, bucket: tuple[Policy, str], cost: int) -> list[int]:
        entry = [self._now(bucket), cost]
        self._buckets[bucket].spent.append(entry)
        return entry

    def _now(self, bucket: tuple[Policy, str]) -> int:
        tick = round(self._clock() * self._ticks_per_second)
        state = self._buckets.setdefault(bucket, _Bucket())
        state.latest = tick if state.latest is None else max(state.latest, tick)
        return state.latest

    def _level(self, bucket: tuple[Policy, str], now: int) -> Fraction:
        policy = bucket[0]
        level = Fraction(policy.capacity)
        then = now
        for tick, cost in self._buckets[bucket].spent:
            level = min(Fraction(policy.capacity), level + max(0, tick - then) * self._per_tick(policy)) - cost
            then = tick
        return min(Fraction(policy.capacity), level + (now - then) * self._per_tick(policy))

    def _per_tick(self, policy: Policy) -> Fraction:
        return policy.rate / self._ticks_per_second

    def _ask(self, bucket: tuple[Policy, str], cost: int) -> Decision:
        policy, now = bucket[0], self._now(bucket)
        level = self._level(bucket, now)
        if cost <= level:
            return Decision(True, math.floor(level - cost), 0.0)
        if cost > policy.capacity:
            return Decision(False, math.floor(level), None)
        # From what the clock shows, which may be less than `now`.
        then = now + math.ceil((cost - level) / self._per_tick(policy))
        shown = round(self._clock() * self._ticks_per_second)
        return Decision(False, math.floor(level), (then - shown) / self._ticks_per_second)
