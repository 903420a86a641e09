"""Rate limits in this process's memory: exact, quick, and bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, final

import trio
from trio.lowlevel import checkpoint

from trio_wskit._core.bucket import Decision, Decisions, Policy, Spend, check_cost, merge_spends, refusal
from trio_wskit._core.reservations import Reservation
from trio_wskit.errors import ConfigError
from trio_wskit.limiter._buckets import Buckets
from trio_wskit.limiter._queue import Queue

__all__ = ["MemoryRateLimiter"]


def _count(max_keys: Any) -> int:
    if not isinstance(max_keys, int) or isinstance(max_keys, bool) or max_keys < 1:
        raise ConfigError(f"MemoryRateLimiter(max_keys=…) takes a whole number above 0, not {max_keys!r}")
    return max_keys


def _closed() -> float:
    raise trio.ClosedResourceError("this rate limiter is closed")


@final
class MemoryRateLimiter(Buckets):
    """A `trio_wskit.abc.RateLimiter` for one process. Every decision is one atomic step, with no lock and no wait.

    It starts nothing and needs no closing. All its buckets see one time, the latest that the clock has shown: a clock
    that goes back refills nothing until it has caught up, and loses nothing.

    Args:
        policy: of every bucket for which no other is named.
        clock: gives the present in seconds; None means Trio's own clock, and then the limiter can be used within Trio
            only; each run of Trio has a time of its own, and in a new run all buckets are full. A reading counts as
            the nearest nanosecond. Take a monotonic clock.
        max_keys: the most buckets of one policy held at once, at least 1, about 130 bytes each with the key. Buckets
            that are full again are forgotten, so only keys that have spent of late count. When as many as that have,
            a new key is refused (its `retry_after` is when the first place is free): to forget a bucket that is not
            full would be to give its tokens again. Keys are spread over ``max_keys / 4096`` shards that are bounded
            each, so with more than 4096, the first refusal may come when 95 % are in use. Buckets with open
            reservations come on top.

    Raises:
        ConfigError: `max_keys` is not a whole number above 0.
    """

    __slots__ = ("_others", "_queue")

    def __init__(self, policy: Policy, *, clock: Callable[[], float] | None = None, max_keys: int = 1_000_000) -> None:
        run_of = trio.lowlevel.current_clock if clock is None else None
        super().__init__(policy, trio.current_time if clock is None else clock, _count(max_keys), run_of)
        self._others: dict[Policy, Buckets] = {}
        self._queue = Queue()

    @property
    def policy(self) -> Policy:
        """The policy of every bucket for which no other is named."""
        return self._policy

    def consume_many_nowait(self, spends: Sequence[Spend]) -> Decisions:
        """Pay all requests or none, at once: `consume_many` for callers that cannot wait.

        Args:
            spends: ``(key, cost)``, or ``(key, cost, policy)`` for a bucket of another policy than the limiter's.

        Raises:
            WsKitError: INVALID_ARGUMENT: a cost is not an integer, or below 0.
        """
        now = self._clock()
        costs = merge_spends(spends, self._policy)
        said: dict[tuple[Policy, str], Decision] = {}
        for (policy, key), cost in costs.items():
            said[policy, key] = self._of(policy)._look(key, cost, now)  # noqa: SLF001 - our own base class
        paid = all(said.values())
        for (policy, key), cost in costs.items():
            buckets = self._of(policy)
            if paid and cost:
                buckets._spend(key, cost)  # noqa: SLF001
            elif not paid and said[policy, key]:
                said[policy, key] = buckets._look(key, 0, now)  # noqa: SLF001
        return Decisions.of([said[spend[2] if len(spend) == 3 else self._policy, spend[0]] for spend in spends])

    async def consume(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` tokens of the bucket `key` if they are there. See `trio_wskit.abc.RateLimiter.consume`.

        Waits for nothing, but is a checkpoint. Cancelled: nothing is spent.
        """
        await checkpoint()
        return self.consume_nowait(key, cost)

    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        """Pay all requests or none. See `trio_wskit.abc.RateLimiter.consume_many`.

        Waits for nothing, but is a checkpoint. Cancelled: nothing is spent.
        """
        await checkpoint()
        return self.consume_many_nowait(spends)

    async def wait(self, key: str, cost: int = 1) -> Decision:
        """Sleep until `cost` tokens are there, and spend them. See `trio_wskit.abc.RateLimiter.wait`.

        Cancelled: nothing is spent, and the next in line moves up.
        """
        return await self._queue.wait(self.consume, key, check_cost(cost), self._policy)

    @asynccontextmanager
    async def reserve(self, key: str, cost: int = 1) -> AsyncGenerator[Reservation]:
        """Take `cost` tokens for work whose price is known later. See `trio_wskit.abc.RateLimiter.reserve`.

        Cancelled, on entry or inside: nothing is spent, except what was settled.
        """
        await checkpoint()
        decision, ticket = self._reserve(key, check_cost(cost), self._clock())
        if ticket is None:
            raise refusal(decision, cost, self._policy)
        reservation = Reservation(cost, decision)
        failed = True
        try:
            yield reservation
            failed = False
        finally:
            self._settle(ticket, reservation.owed(failed=failed))

    async def reset(self, key: str) -> None:
        """Make the bucket `key` full. A checkpoint; cancelled, nothing has changed."""
        await checkpoint()
        self.reset_nowait(key)

    async def aclose(self) -> None:
        """Forget every bucket. Any later request raises `trio.ClosedResourceError`. Waits for nothing."""
        self._clock, self._run_of = _closed, None
        self._clear()
        self._others.clear()
        await checkpoint()

    def _of(self, policy: Policy) -> Buckets:
        if policy == self._policy:
            return self
        buckets = self._others.get(policy)
        if buckets is None:
            max_keys = self._limit * (self._mask + 1)
            buckets = self._others[policy] = Buckets(policy, self._clock, max_keys, self._run_of)
        return buckets
