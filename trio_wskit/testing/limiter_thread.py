"""A rate limiter for callers that are not async: it lives in a Trio run of its own, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from queue import SimpleQueue
from typing import TypeVar, final

import trio
from outcome import Error, Outcome, Value, acapture

from trio_wskit._core.bucket import Decision, Decisions, Spend
from trio_wskit.abc import RateLimiter
from trio_wskit.errors import WsKitError

__all__ = ["HeldReservation", "LimiterThread"]

T = TypeVar("T")


class _WorkFailed(Exception):
    pass


@final
class HeldReservation:
    """A block under `RateLimiter.reserve` that is in the middle of its work.

    Attributes:
        decision: what the limiter said.
    """

    def __init__(self) -> None:
        self.decision: Decision | None = None
        self._ended = trio.Event()
        self._done = trio.Event()
        self._actual: int | None = None
        self._failed = False

    async def hold(self, limiter: RateLimiter, key: str, cost: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Enter the block, and leave it when told to."""
        try:
            async with limiter.reserve(key, cost) as reservation:
                self.decision = reservation.decision
                task_status.started()
                await self._ended.wait()
                if self._actual is not None:
                    reservation.settle(self._actual)
                if self._failed:
                    raise _WorkFailed
        except _WorkFailed:
            pass
        self._done.set()

    async def end(self, actual: int | None, failed: bool) -> None:
        """Leave the block: settled for `actual` or not at all, by an exception or well."""
        self._actual, self._failed = actual, failed
        self._ended.set()
        await self._done.wait()


@final
class LimiterThread:
    """Opens a limiter, and does with it what it is told, one thing after another. Close it, or its thread remains."""

    def __init__(self, manager: AbstractAsyncContextManager[RateLimiter]) -> None:
        self._manager = manager
        self._answers: SimpleQueue[Outcome[None]] = SimpleQueue()
        self._limiter: RateLimiter
        self._nursery: trio.Nursery
        self._thread = threading.Thread(target=self._run, name="rate limiter under test")
        self._thread.start()
        self._answers.get().unwrap()

    def consume(self, key: str, cost: int) -> Decision:
        """See `trio_wskit.abc.RateLimiter.consume`."""
        return self._call(lambda: self._limiter.consume(key, cost))

    def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        """See `trio_wskit.abc.RateLimiter.consume_many`."""
        return self._call(lambda: self._limiter.consume_many(spends))

    def reset(self, key: str) -> None:
        """See `trio_wskit.abc.RateLimiter.reset`."""
        self._call(lambda: self._limiter.reset(key))

    def wait(self, key: str, cost: int, patience: float) -> Decision | None:
        """See `trio_wskit.abc.RateLimiter.wait`; cancelled after `patience` seconds, and then None."""

        async def wait() -> Decision | None:
            with trio.move_on_after(patience):
                return await self._limiter.wait(key, cost)
            return None

        return self._call(wait)

    def reserve(self, key: str, cost: int) -> HeldReservation | WsKitError:
        """Enter a block under `trio_wskit.abc.RateLimiter.reserve`, or be refused."""

        async def reserve() -> HeldReservation | WsKitError:
            held = HeldReservation()
            try:
                await self._nursery.start(held.hold, self._limiter, key, cost)
            except WsKitError as refused:
                return refused
            return held

        return self._call(reserve)

    def end(self, held: HeldReservation, actual: int | None, *, failed: bool) -> None:
        """Leave such a block."""
        self._call(lambda: held.end(actual, failed))

    def close(self) -> None:
        """Cancel what is still held, close the limiter, and end the thread."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._calls.close)
            self._thread.join()
            self._answers.get().unwrap()

    def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        answers: list[T] = []

        async def capture() -> None:
            answers.append(await call())

        self._token.run_sync_soon(self._calls.send_nowait, capture)
        self._answers.get().unwrap()
        return answers[0]

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as broken:
            self._answers.put(Error(broken))
        else:
            self._answers.put(Value(None))

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._calls, calls = trio.open_memory_channel[Callable[[], Awaitable[None]]](1)
        async with self._manager as self._limiter, trio.open_nursery() as self._nursery:
            self._answers.put(Value(None))
            async for call in calls:
                self._answers.put(await acapture(call))
            self._nursery.cancel_scope.cancel()  # blocks that nobody told to end
