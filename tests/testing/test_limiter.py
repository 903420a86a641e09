"""A proof that cannot fail proves nothing: every promise of the contract is broken here once, and must be missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from trio_wskit._core.bucket import check_cost, merge_spends
from trio_wskit.abc import RateLimiter
from trio_wskit.limiter import Decision, Decisions, MemoryRateLimiter, Policy, Reservation, Spend
from trio_wskit.testing import check_rate_limiter


class Sound:
    """Does everything as it should be done, by asking somebody who knows."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.real = MemoryRateLimiter(policy, clock=clock)

    @property
    def policy(self) -> Policy:
        return self.real.policy

    async def consume(self, key: str, cost: int = 1) -> Decision:
        return await self.real.consume(key, cost)

    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        return await self.real.consume_many(spends)

    async def wait(self, key: str, cost: int = 1) -> Decision:
        return await self.real.wait(key, cost)

    def reserve(self, key: str, cost: int = 1) -> AbstractAsyncContextManager[Reservation]:
        return self.real.reserve(key, cost)

    async def reset(self, key: str) -> None:
        await self.real.reset(key)

    async def aclose(self) -> None:
        await self.real.aclose()


class OtherPolicy(Sound):
    @property
    def policy(self) -> Policy:
        return Policy(1, 1)


class WholeSecondsOnly(Sound):
    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        super().__init__(policy, lambda: float(int(clock())))


class RefusalsCost(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        decision = await self.real.consume(key, cost)
        if decision.retry_after:
            await self.real.consume(key, decision.remaining)
        return decision


class WaitsInMilliseconds(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        decision = await self.real.consume(key, cost)
        wait = decision.retry_after
        return decision if not wait else decision._replace(retry_after=-(-wait // 0.001) * 0.001)


class WaitsTooShort(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        decision = await self.real.consume(key, cost)
        wait = decision.retry_after
        return decision if not wait or wait == 0.5 else decision._replace(retry_after=wait - 1e-9)


class ImpossibleIsLater(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        decision = await self.real.consume(key, cost)
        return decision if decision.retry_after is not None else decision._replace(retry_after=1.0)


class TakesFractions(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        return await self.real.consume(key, int(cost))


class OneBucketForAll(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        return await self.real.consume("k", cost)


class KeysWithoutCase(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        return await self.real.consume(key.lower(), cost)


class TimeHasNoDirection(Sound):
    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        first = clock()
        last = [first, 0.0]

        def elapsed() -> float:
            now = clock()
            last[1] += abs(now - last[0])
            last[0] = now
            return last[1]

        super().__init__(policy, elapsed)


class SomeOrAll(Sound):
    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        merge_spends(spends, self.policy)
        return Decisions.of([(await self.real.consume_many([spend])).each[0] for spend in spends])


class LooksThenTakes(Sound):
    async def consume(self, key: str, cost: int = 1) -> Decision:
        if cost not in range(4):
            return await self.real.consume(key, cost)
        left = (await self.real.consume(key, 0)).remaining
        await trio.lowlevel.checkpoint()
        if left < cost:
            return await self.real.consume(key, cost)
        await self.real.consume(key, cost)
        return Decision(True, left - cost, 0.0)


class LastComeFirstServed(Sound):
    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        super().__init__(policy, clock)
        self.busy = False
        self.stack: list[trio.Event] = []

    async def wait(self, key: str, cost: int = 1) -> Decision:
        if self.busy:
            self.stack.append(trio.Event())
            await self.stack[-1].wait()
        self.busy = True
        try:
            return await self.real.wait(key, cost)
        finally:
            self.busy = bool(self.stack)
            if self.stack:
                self.stack.pop().set()


class WaitsForTheImpossible(Sound):
    async def wait(self, key: str, cost: int = 1) -> Decision:
        return await self.real.wait(key, 1 if cost == 2 and self.policy.capacity == 1 else cost)


class PaysBeforeItWaits(Sound):
    async def wait(self, key: str, cost: int = 1) -> Decision:
        paid = self.real.consume_nowait(key, min(check_cost(cost), 1))
        await trio.lowlevel.checkpoint()
        return paid if paid.allowed else await self.real.wait(key, cost)


class KeepsWhatIsReserved(Sound):
    @asynccontextmanager
    async def reserve(self, key: str, cost: int = 1) -> AsyncGenerator[Reservation]:
        async with self.real.reserve(key, cost) as reservation:
            try:
                yield reservation
            finally:
                reservation.settle(cost)


class GivesBackOnTop(Sound):
    @asynccontextmanager
    async def reserve(self, key: str, cost: int = 1) -> AsyncGenerator[Reservation]:
        async with self.real.reserve(key, cost) as real:
            real.settle(cost)
            reservation = Reservation(cost, real.decision)
            failed = True
            try:
                yield reservation
                failed = False
            finally:
                # What is there now and what comes back, whatever ran over the brim in between.
                left = self.real.consume_nowait(key, 0).remaining + cost - reservation.owed(failed=failed)
                self.real.reset_nowait(key)
                self.real.consume_nowait(key, self.policy.capacity - min(left, self.policy.capacity))


class NeverResets(Sound):
    async def reset(self, key: str) -> None:
        await trio.lowlevel.checkpoint()


class ResetsEverything(Sound):
    async def reset(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.real = MemoryRateLimiter(self.policy, clock=self.clock)


class StaysOpen(Sound):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


BROKEN = [
    (OtherPolicy, "a limiter shows its policy"),
    (WholeSecondsOnly, "3.5 tokens are 3 whole ones"),
    (RefusalsCost, "a refused request has cost nothing"),
    (WaitsInMilliseconds, "one tick before retry_after"),
    (WaitsTooShort, "after retry_after"),
    (ImpossibleIsLater, "more than the capacity is never possible"),
    (TakesFractions, "a cost of 0.5 is INVALID_ARGUMENT"),
    (OneBucketForAll, "is a bucket of its own"),
    (KeysWithoutCase, "'ONE' is a bucket of its own"),
    (TimeHasNoDirection, "a clock that goes back takes nothing"),
    (SomeOrAll, "a bucket that could have paid has not"),
    (LooksThenTakes, "no order of these calls of 'k' explains their answers"),
    (LastComeFirstServed, "those who wait are served in the order in which they came"),
    (WaitsForTheImpossible, "a wait for more than the capacity fails"),
    (PaysBeforeItWaits, "a wait that is cancelled holds nothing"),
    (KeepsWhatIsReserved, "what was not needed goes back"),
    (GivesBackOnTop, "giving back creates no token"),
    (NeverResets, "a bucket that was reset is full"),
    (ResetsEverything, "and it alone"),
    (StaysOpen, "a closed limiter raises trio.ClosedResourceError"),
]


def opening(
    kind: type[Sound],
) -> Callable[[Policy, Callable[[], float] | None], AbstractAsyncContextManager[RateLimiter]]:
    @asynccontextmanager
    async def open_limiter(policy: Policy, clock: Callable[[], float] | None) -> AsyncGenerator[RateLimiter]:
        yield kind(policy, clock or trio.current_time)

    return open_limiter


async def test_a_sound_limiter_passes(autojump_clock: trio.testing.MockClock) -> None:
    await check_rate_limiter(opening(Sound))


@pytest.mark.parametrize(("kind", "promise"), BROKEN, ids=[kind.__name__ for kind, _ in BROKEN])
async def test_a_broken_promise_is_missed(
    autojump_clock: trio.testing.MockClock, kind: type[Sound], promise: str
) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match=promise.replace(".", r"\.")),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ) as caught:
        await check_rate_limiter(opening(kind))
    assert "while checking" in "".join(getattr(caught.value, "__notes__", []))
