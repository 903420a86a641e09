"""Prove a rate limiter: `await check_rate_limiter(factory)` in a test of your own.

Every check is a promise of `trio_wskit.abc.RateLimiter`; its failure says which, what was answered, and what should
have been.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from fractions import Fraction
from typing import Any, Final, TypeAlias, final

import attrs
import trio

from trio_wskit._core.bucket import Decision, Policy
from trio_wskit.abc import RateLimiter
from trio_wskit.errors import WsKitError
from trio_wskit.testing.limiter_history import RateLimiterHistory
from trio_wskit.testing.limiter_model import ManualClock, ModelRateLimiter

__all__ = ["RateLimiterFactory", "check_rate_limiter"]

RateLimiterFactory: TypeAlias = (
    "Callable[[Policy, Callable[[], float] | None], AbstractAsyncContextManager[RateLimiter]]"
)
"""Opens a limiter of a policy, all buckets full, with a clock in seconds or (None) the clock that it has by itself."""


@final
@attrs.frozen
class _Bench:
    open: RateLimiterFactory
    ticks_per_second: int

    def clock(self) -> ManualClock:
        clock = ManualClock(self.ticks_per_second)
        # Not 0, so that it can go back; and not so large that floats are coarser than the ticks.
        clock.ticks = 1_000 * self.ticks_per_second
        return clock


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


async def check_rate_limiter(factory: RateLimiterFactory, *, ticks_per_second: int = 10**9) -> None:
    """Check everything that `trio_wskit.abc.RateLimiter` promises, on limiters that `factory` opens.

    Run it where the store can work: a store in memory under a clock that jumps (`trio.testing.MockClock`), one on a
        server in real time, where it sleeps for less than a second in all.

    Args:
        factory: called with a policy and a clock (a function that gives seconds, or None), for a new limiter with
            full buckets.
        ticks_per_second: the unit of the limiter's time: what `retry_after` is rounded up to.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the limiters it opened are closed.
    """
    bench = _Bench(factory, ticks_per_second)
    for check in _CHECKS:
        try:
            await check(bench)
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


async def _spends_and_refills(bench: _Bench) -> None:
    clock = bench.clock()
    async with bench.open(Policy(10, 2), clock) as limiter:
        _expect(limiter.policy == Policy(10, 2), "a limiter shows its policy", limiter.policy)
        _same(await limiter.consume("k", 6), Decision(True, 4, 0.0), "6 of 10 leave 4")
        _same(await limiter.consume("k", 5), Decision(False, 4, 0.5), "at 2 a second one more takes half a second")
        _same(await limiter.consume("k", 4), Decision(True, 0, 0.0), "a refused request has cost nothing")
        clock.advance(1.75)
        _same(await limiter.consume("k", 0), Decision(True, 3, 0.0), "3.5 tokens are 3 whole ones")
        clock.advance(0.25)
        _same(await limiter.consume("k"), Decision(True, 3, 0.0), "two halves are a token, whoever looked in between")
        clock.advance(1000)
        _same(await limiter.consume("k"), Decision(True, 9, 0.0), "a bucket holds no more than its capacity")


async def _retry_after_is_tight(bench: _Bench) -> None:
    for policy in (Policy(5, 3), Policy(5, 0.1), Policy(5, Fraction(7, 11)), Policy(5, 999_983)):
        clock = bench.clock()
        async with bench.open(policy, clock) as limiter:
            _expect((await limiter.consume("k", 5)).allowed, "a bucket starts full")
            refused = await limiter.consume("k", 2)
            _expect(not refused.allowed and refused.retry_after, "an empty bucket says until when", refused)
            clock.ticks += round((refused.retry_after or 0) * bench.ticks_per_second) - 1
            _expect(not await limiter.consume("k", 2), f"one tick before retry_after, {policy} still refuses", refused)
            clock.ticks += 1
            _expect(await limiter.consume("k", 2), f"after retry_after, {policy} allows the same", refused)


async def _the_impossible_and_the_free(bench: _Bench) -> None:
    async with bench.open(Policy(5, 1), bench.clock()) as limiter:
        _same(await limiter.consume("k", 6), Decision(False, 5, None), "more than the capacity is never possible")
        await limiter.consume("k", 5)
        _same(await limiter.consume("k", 6), Decision(False, 0, None), "nor later")
        _same(await limiter.consume("k", 0), Decision(True, 0, 0.0), "what costs nothing is always allowed")


async def _bad_costs(bench: _Bench) -> None:
    async with bench.open(Policy(5, 1), bench.clock()) as limiter:
        bad: list[Any] = [-1, 0.5, 1.0, True, "1", None]

        async def reserve(cost: Any) -> None:
            async with limiter.reserve("k", cost):
                pass

        ways: list[Callable[[Any], Awaitable[object]]] = [
            lambda cost: limiter.consume("k", cost),
            lambda cost: limiter.consume_many([("other", 1), ("k", cost)]),
            lambda cost: limiter.wait("k", cost),
            reserve,
        ]
        for cost in bad:
            for way in ways:
                try:
                    answer = await way(cost)
                except WsKitError as error:
                    _expect(error.code == "INVALID_ARGUMENT", f"a cost of {cost!r} is INVALID_ARGUMENT", error.code)
                else:
                    raise AssertionError(f"a cost of {cost!r} is INVALID_ARGUMENT, not {answer!r}")
        _same(await limiter.consume("k", 0), Decision(True, 5, 0.0), "a bad cost spends nothing")
        _same(await limiter.consume("other", 0), Decision(True, 5, 0.0), "nor does what came with it")


async def _keys_are_apart(bench: _Bench) -> None:
    async with bench.open(Policy(2, 1), bench.clock()) as limiter:
        await limiter.consume("one", 2)
        for key in ("two", "", "one ", "ONE", "{one}", "{one}:x", "ключ", "a" * 300):
            _same(await limiter.consume(key), Decision(True, 1, 0.0), f"{key!r} is a bucket of its own")


async def _clocks_that_stand_or_go_back(bench: _Bench) -> None:
    clock = bench.clock()
    async with bench.open(Policy(5, 1), clock) as limiter:
        await limiter.consume("k", 3)
        _same(await limiter.consume("k"), Decision(True, 1, 0.0), "a clock that stands still refills nothing")
        clock.advance(1)
        _same(await limiter.consume("k", 0), Decision(True, 2, 0.0), "a second is a token")
        clock.advance(-500)
        _same(await limiter.consume("k", 0), Decision(True, 2, 0.0), "a clock that goes back takes nothing")
        _same(await limiter.consume("k", 3), Decision(False, 2, 501.0), "retry_after counts from what the clock shows")
        _same(await limiter.consume("k"), Decision(True, 1, 0.0), "and what is there can be spent")
        clock.advance(500)
        _same(await limiter.consume("k"), Decision(True, 0, 0.0), "a clock that catches up refills nothing")
        clock.advance(1)
        _same(await limiter.consume("k"), Decision(True, 0, 0.0), "and then goes on")


async def _all_or_nothing(bench: _Bench) -> None:
    clock = bench.clock()
    slow = Policy(3, 1, "slow:")
    async with bench.open(Policy(5, 2), clock) as limiter:
        many = await limiter.consume_many([("{u}:a", 2), ("{u}:b", 1), ("{u}:a", 1, slow)])
        _expect(many.allowed and many.retry_after == 0.0, "several requests are paid when all can be", many)
        _expect([one.remaining for one in many.each] == [3, 4, 2], "each bucket pays its own", many)
        many = await limiter.consume_many([("{u}:b", 1), ("{u}:a", 3, slow), ("{u}:a", 5)])
        _expect(not many, "one that cannot be paid refuses all", many)
        _expect(many.each[0] == Decision(True, 4, 0.0), "a bucket that could have paid has not", many)
        _expect([one.allowed for one in many.each] == [True, False, False], "it says who refused", many)
        _expect(many.retry_after == max(one.retry_after or 0 for one in many.each), "all wait for the slowest", many)
        clock.advance(many.retry_after or 0)
        many = await limiter.consume_many([("{u}:b", 1), ("{u}:a", 3, slow), ("{u}:a", 5)])
        _expect(many, "and then it succeeds", many)
        many = await limiter.consume_many([("{u}:c", 1), ("{u}:c", 6)])
        _expect(many.retry_after is None and not many, "costs of one bucket add up; 7 of 5 are never possible", many)
        many = await limiter.consume_many([("{u}:c", 2), ("{u}:c", 3), ("{u}:d", 0)])
        _expect([one.remaining for one in many.each] == [0, 0, 5], "and 5 are", many)
        _expect(await limiter.consume_many([]), "nothing at all is always allowed")


async def _concurrent_callers(bench: _Bench) -> None:
    clock = bench.clock()
    policy = Policy(20, Fraction(1, 1000))
    async with bench.open(policy, clock) as limiter:
        history = RateLimiterHistory(policy, clock, ticks_per_second=bench.ticks_per_second)
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(history.consume, limiter, "k", 1 + number % 3)
        answers = history.explain()
        _expect(len(answers) == 40, "every caller is answered")
        _expect(any(answers) and not all(answers), "some of 40 callers get the 20 tokens", answers)


async def _waits_in_turn(bench: _Bench) -> None:
    async with bench.open(Policy(1, 50), None) as limiter:
        await limiter.consume("k")
        served: list[int] = []

        async def wait(number: int) -> None:
            decision = await limiter.wait("k")
            _expect(decision.allowed, "a wait ends when it is allowed", decision)
            served.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(wait, number)
                await trio.sleep(0.002)
        _expect(served == [0, 1, 2, 3], "those who wait are served in the order in which they came", served)
        try:
            await limiter.wait("k", 2)
        except WsKitError as error:
            _expect(error.code == "FAILED_PRECONDITION", "a wait for more than the capacity fails", error.code)
        else:
            raise AssertionError("a wait for more than the capacity fails at once")


async def _cancelled_waits_leave_no_trace(bench: _Bench) -> None:
    async with bench.open(Policy(3, Fraction(1, 1000)), None) as limiter:
        await limiter.consume("k", 2)
        with trio.CancelScope() as scope:
            scope.cancel()
            await limiter.wait("k")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.wait, "k", 2)
            await trio.sleep(0.02)
            nursery.start_soon(limiter.wait, "k", 1)
            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        answer = await limiter.consume("k", 0)
        _expect(answer.remaining == 1, "a wait that is cancelled holds nothing", answer)
        answer = await limiter.wait("k")
        _expect(answer.remaining == 0, "and stands in nobody's way", answer)


async def _reservations(bench: _Bench) -> None:
    clock = bench.clock()
    model = ModelRateLimiter(Policy(10, 1), clock, ticks_per_second=bench.ticks_per_second)
    async with bench.open(Policy(10, 1), clock) as limiter:
        async with limiter.reserve("k", 6) as reservation:
            _same(reservation.decision, Decision(True, 4, 0.0), "what is reserved is taken")
            _same(await limiter.consume("k", 5), Decision(False, 4, 1.0), "nobody else has it")
            reservation.settle(2)
        _same(await limiter.consume("k", 0), Decision(True, 8, 0.0), "what was not needed goes back")
        async with limiter.reserve("k", 3):
            pass
        _same(await limiter.consume("k", 0), Decision(True, 5, 0.0), "who does not settle pays all")
        try:
            async with limiter.reserve("k", 5):
                raise _Failure
        except _Failure:
            pass
        _same(await limiter.consume("k", 0), Decision(True, 5, 0.0), "work that fails pays nothing")
        with trio.CancelScope() as scope:
            async with limiter.reserve("k", 5):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        _same(await limiter.consume("k", 0), Decision(True, 5, 0.0), "nor does work that is cancelled")
        for cost, code in ((6, "RESOURCE_EXHAUSTED"), (11, "FAILED_PRECONDITION")):
            try:
                async with limiter.reserve("k", cost):
                    raise AssertionError(f"{cost} tokens of 5 cannot be reserved")
            except WsKitError as error:
                _expect(error.code == code, f"reserving {cost} tokens of 5 is {code}", error.code)
        clock.advance(100)
        # A full bucket; 5 reserved; full again; 8 spent by another: what comes back must not come on top.
        settle = model.reserve("k", 5)[1]
        async with limiter.reserve("k", 5) as reservation:
            clock.advance(5)
            _same(await limiter.consume("k", 8), model.consume("k", 8), "a reserved bucket goes on filling")
            reservation.settle(0)
        _expect(settle is not None, "the model has reserved too")
        if settle is not None:
            settle(0)
        _same(await limiter.consume("k", 0), model.consume("k", 0), "giving back creates no token")


async def _reset_and_close(bench: _Bench) -> None:
    async with bench.open(Policy(5, 1), bench.clock()) as limiter:
        await limiter.consume("k", 5)
        await limiter.consume("other", 5)
        await limiter.reset("k")
        await limiter.reset("never heard of")
        _same(await limiter.consume("k"), Decision(True, 4, 0.0), "a bucket that was reset is full")
        _expect(not await limiter.consume("other"), "and it alone")
        async with limiter.reserve("k", 2) as reservation:
            await limiter.reset("k")
            await limiter.consume("k", 3)
            reservation.settle(0)
        _same(await limiter.consume("k", 0), Decision(True, 2, 0.0), "a reset leaves nothing to give back")
        await limiter.aclose()
        await limiter.aclose()
        try:
            await limiter.consume("k")
        except trio.ClosedResourceError:
            pass
        else:
            raise AssertionError("a closed limiter raises trio.ClosedResourceError")


class _Failure(Exception):
    pass


def _same(answer: Decision, right: Decision, promise: str) -> None:
    _expect(answer == right, f"{promise}: {right!r}", answer)


_CHECKS: Final = (
    _spends_and_refills,
    _retry_after_is_tight,
    _the_impossible_and_the_free,
    _bad_costs,
    _keys_are_apart,
    _clocks_that_stand_or_go_back,
    _all_or_nothing,
    _concurrent_callers,
    _waits_in_turn,
    _cancelled_waits_leave_no_trace,
    _reservations,
    _reset_and_close,
)
