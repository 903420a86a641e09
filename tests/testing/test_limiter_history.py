from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import trio
import trio.testing

from trio_wskit.abc import RateLimiter
from trio_wskit.limiter import Decision, MemoryRateLimiter, Policy
from trio_wskit.testing import ManualClock, RateLimiterHistory

POLICY = Policy(3, 1)
SECOND = 10**9


def yes(remaining: int) -> Decision:
    return Decision(True, remaining, 0.0)


def no(remaining: int) -> Decision:
    return Decision(False, remaining, 1.0)


class Told:
    """A limiter that answers one request, what it is told and when it is told."""

    def __init__(self) -> None:
        self.told = trio.Event()
        self.answer = yes(0)

    async def consume(self, key: str, cost: int = 1) -> Decision:
        await self.told.wait()
        return self.answer


class Play:
    """Steps on a stage: a caller asks (a cost), or is answered (a decision), or something else happens."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.clock.ticks = 100 * SECOND
        self.history = RateLimiterHistory(POLICY, self.clock)

    async def run(self, *steps: tuple[int, int | Decision | Callable[[ManualClock], None]]) -> list[Decision]:
        limiters: dict[int, Told] = {}
        async with trio.open_nursery() as nursery:
            for caller, step in steps:
                if isinstance(step, int):
                    limiters[caller] = Told()
                    nursery.start_soon(self.history.consume, cast("RateLimiter", limiters[caller]), "k", step)
                elif isinstance(step, Decision):
                    limiters[caller].answer = step
                    limiters[caller].told.set()
                else:
                    step(self.clock)
                await trio.testing.wait_all_tasks_blocked()
        return self.history.explain()


async def test_answers_in_another_order_than_the_calls_are_explained() -> None:
    answers = await Play().run((1, 1), (2, 1), (2, yes(2)), (1, yes(1)))
    assert answers == [yes(2), yes(1)]


async def test_one_token_that_two_callers_got_is_not_explained() -> None:
    with pytest.raises(AssertionError, match=r"no order of these calls of 'k' explains.*\n.*cost 3"):
        await Play().run((1, 3), (2, 3), (1, yes(0)), (2, yes(0)))


async def test_a_refusal_of_what_was_there_is_not_explained() -> None:
    with pytest.raises(AssertionError, match="no order"):
        await Play().run((1, 1), (1, no(3)))


async def test_a_call_that_was_answered_came_before_one_that_began_later() -> None:
    # In the other order both answers would be right; but the first was over before the second began.
    with pytest.raises(AssertionError, match="no order"):
        await Play().run((1, 1), (1, yes(1)), (2, 1), (2, yes(2)))
    assert await Play().run((1, 1), (2, 1), (1, yes(1)), (2, yes(2))) == [yes(2), yes(1)]


async def test_a_call_may_have_been_served_at_any_time_while_it_waited() -> None:
    def later(clock: ManualClock) -> None:
        clock.advance(1)

    steps = ((1, 3), (1, yes(0)), (2, 1), (0, later), (2, yes(0)))
    assert await Play().run(*steps) == [yes(0), yes(0)]
    with pytest.raises(AssertionError, match="no order"):
        await Play().run((1, 3), (1, yes(0)), (0, later), (2, 1), (2, no(0)))


async def test_many_refusals_at_once_are_explained_quickly() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(POLICY, clock=clock)
    history = RateLimiterHistory(POLICY, clock)
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(history.consume, limiter, "k")
    assert [bool(answer) for answer in history.explain()] == [True] * 3 + [False] * 197
