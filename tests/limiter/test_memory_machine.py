from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from hypothesis import settings

from trio_wskit.abc import RateLimiter
from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.testing.limiter_machine import RateLimiterStateMachine


class MemoryMachine(RateLimiterStateMachine):
    def open(self, policy: Policy, clock: Callable[[], float]) -> AbstractAsyncContextManager[RateLimiter]:
        @asynccontextmanager
        async def open_memory() -> AsyncGenerator[RateLimiter]:
            yield MemoryRateLimiter(policy, clock=clock)

        return open_memory()


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=25, stateful_step_count=30)
