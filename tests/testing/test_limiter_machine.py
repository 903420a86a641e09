"""The state machine finds broken limiters, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from hypothesis import Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test

from trio_wskit.abc import RateLimiter
from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.testing import ManualClock, ModelRateLimiter
from trio_wskit.testing.limiter_machine import RateLimiterStateMachine, policies, schedules

# Not shrunk: what is asked is whether it is found, not how short it can be said.
BRIEF = settings(max_examples=100, stateful_step_count=30, database=None, phases=[Phase.generate])


class Generous(RateLimiterStateMachine):
    """Gives a bucket one token more."""

    def open(self, policy: Policy, clock: Callable[[], float]) -> AbstractAsyncContextManager[RateLimiter]:
        @asynccontextmanager
        async def open_limiter() -> AsyncGenerator[RateLimiter]:
            yield MemoryRateLimiter(Policy(policy.capacity + 1, policy.rate), clock=clock)

        return open_limiter()


class Drifting(RateLimiterStateMachine):
    """Has a clock that is a thousandth too fast."""

    def open(self, policy: Policy, clock: Callable[[], float]) -> AbstractAsyncContextManager[RateLimiter]:
        @asynccontextmanager
        async def open_limiter() -> AsyncGenerator[RateLimiter]:
            yield MemoryRateLimiter(policy, clock=lambda: clock() * 1.001)

        return open_limiter()


class Forgotten(RateLimiterStateMachine):
    """Overrides nothing."""


@pytest.mark.parametrize("machine", [Generous, Drifting])
def test_a_broken_limiter_is_found(machine: type[RateLimiterStateMachine]) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match="the model says"), allow_unwrapped=True, flatten_subgroups=True
    ):
        run_state_machine_as_test(machine, settings=BRIEF)


def test_a_machine_without_a_limiter_says_what_to_override() -> None:
    with pytest.raises(TypeError, match="override open"):
        run_state_machine_as_test(Forgotten, settings=BRIEF)


@given(policies(), schedules())
def test_schedules_drive_a_limiter_without_a_machine(policy: Policy, schedule: list[tuple[int, str, int]]) -> None:
    clock = ManualClock()
    limiter, model = MemoryRateLimiter(policy, clock=clock), ModelRateLimiter(policy, clock)
    for ticks, key, cost in schedule:
        clock.ticks = min(clock.ticks + ticks, 2**50)
        assert limiter.consume_nowait(key, cost)[:2] == model.consume(key, cost)[:2]
