"""A Trio run that a state machine drives step by step, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, TypeVar, final

import trio
from outcome import Outcome, acapture
from trio.testing import MockClock, wait_all_tasks_blocked

__all__ = ["GuestRun"]

T = TypeVar("T")
Job = Callable[[], Awaitable[Any]]


@final
class GuestRun:
    """Runs jobs one after the other; after each, everything runs until it waits. Close it, or its thread remains."""

    def __init__(self) -> None:
        self.clock = MockClock()
        self._turns: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._jobs, self._taken = trio.open_memory_channel[Job](1)
        self._answers: list[Outcome[Any]] = []
        self._ended: list[Outcome[None]] = []
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._turns.put,
            done_callback=self._ended.append,
            clock=self.clock,
        )

    async def _main(self) -> None:
        async for job in self._taken:
            answer = await acapture(job)
            await wait_all_tasks_blocked()
            self._answers.append(answer)

    def do(self, job: Callable[[], Awaitable[T]]) -> T:
        """Run a job, and everything that it sets in motion."""
        self._jobs.send_nowait(job)
        while not self._answers:
            assert not self._ended, self._ended
            self._turns.get()()
        result: T = self._answers.pop().unwrap()
        return result

    def sleep(self, seconds: float) -> None:
        """Let time pass, a deadline at a time."""

        async def sleep() -> None:
            end = trio.current_time() + seconds
            while (now := trio.current_time()) < end:
                await wait_all_tasks_blocked()
                until = trio.lowlevel.current_statistics().seconds_to_next_deadline
                self.clock.jump(min(max(until, 0.0), end - now))
                await wait_all_tasks_blocked()

        self.do(sleep)

    def close(self) -> None:
        """End the run; raises what it ended with."""
        self._jobs.close()
        while not self._ended:
            self._turns.get()()
        self._ended.pop().unwrap()
