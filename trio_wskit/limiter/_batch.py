"""Concurrent questions to a store become one call.

Rules:
- A question is *waiting* or *sent*. One that waits can be cancelled, and then was never asked. One that was sent can
  not: its answer, or the end of the store's time, comes within `max_wait`, so nobody has to guess what became of it.
- One task sends. All that was asked in one pass of the scheduler, and all that came while a call was under way, goes
  in the next call, up to a bound.
- Questions are sent in the order in which they were asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, final

import outcome
import trio

from trio_wskit.limiter._breaker import Breaker

__all__ = ["Batcher", "Question", "Store", "StoreError"]

# What one call carries at most: the server does nothing else meanwhile, about a millisecond for as many.
MOST_TOGETHER: Final = 256


class StoreError(Exception):
    """The store has not answered.

    Attributes:
        retry_after: seconds, at least, until it is asked again.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Store(Protocol):
    """Where the questions go."""

    async def call(self, questions: Sequence[Question]) -> None:
        """Answer every question, by `Question.answer`.

        Raises:
            StoreError: those that are not answered cannot be.
        """
        ...

    def drop(self) -> None:
        """A call was given up."""
        ...


@final
class Question:
    """One request to the script.

    Args:
        keys: the buckets.
        words: what to do with them.
        width: how many numbers of the reply are its answer.
    """

    __slots__ = ("_reply", "_task", "answered", "keys", "sent", "width", "words")

    def __init__(self, keys: tuple[str, ...], words: str, width: int) -> None:
        self.keys: tuple[str, ...] = keys
        self.words: str = words
        self.width: int = width
        self.sent: bool = False
        self.answered: bool = False
        self._task: trio.lowlevel.Task | None = None
        self._reply: outcome.Outcome[Sequence[int]] | None = None

    def answer(self, reply: Sequence[int]) -> None:
        """Wake whoever asked."""
        self._end(outcome.Value(reply))

    def fail(self, error: StoreError) -> None:
        """Wake whoever asked, with an error."""
        self._end(outcome.Error(error))

    def _end(self, reply: outcome.Outcome[Sequence[int]]) -> None:
        self.answered = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, reply)

    @property
    def nobody_waits(self) -> bool:
        """Whether it was told, not asked."""
        return self._task is None

    async def wait(self) -> Sequence[int]:
        """Sleep until it is answered. Cancelled before it is sent: it is not sent. Once sent, it is not cancelled."""
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            if self.sent:
                return trio.lowlevel.Abort.FAILED
            self.answered = True
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Sequence[int] = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply


@final
class Batcher:
    """Sends questions to a store, as many as there are, one call at a time.

    Args:
        store: where to.
        max_wait: seconds that one call may take.
        breaker: says when not to ask.

    Attributes:
        calls: how many were made.
        failures: how many of them failed.
        lost: questions that nobody waited for, and that were not answered.
    """

    def __init__(self, store: Store, max_wait: float, breaker: Breaker) -> None:
        self._store = store
        self._max_wait = max_wait
        self._breaker = breaker
        self._waiting: deque[Question] = deque()
        self._wake = trio.Event()
        self._quiet = trio.Event()
        self._busy = False
        self._closed = False
        self.calls: int = 0
        self.failures: int = 0
        self.lost: int = 0

    async def ask(self, question: Question) -> Sequence[int]:
        """Have a question answered. Cancelled before it is sent: it is not. Once sent, it is not cancelled.

        Raises:
            StoreError: it may have been done, or not.
            trio.ClosedResourceError: `close` was called.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check_open()
        wait = self._breaker.closed_after(trio.current_time(), busy=self._busy)
        if wait:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise StoreError("the rate limit store has not answered of late", wait)
        self._waiting.append(question)
        self._wake.set()
        return await question.wait()

    def tell(self, question: Question) -> None:
        """Have something done, some time, and before all that is asked later. Once closed, it is lost."""
        if self._closed:
            self.lost += 1
        else:
            self._waiting.append(question)
            self._wake.set()

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if `close` was called."""
        if self._closed:
            raise trio.ClosedResourceError("this rate limiter is closed")

    def close(self) -> None:
        """Take no more questions. Those that wait are sent."""
        self._closed = True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send, until cancelled: then what waits is not sent, and who waits is told so."""
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                await self._send()
                self._quiet.set()
                if not self._waiting:
                    self._wake = trio.Event()
        finally:
            self.close()
            self._fail(self._waiting, StoreError("the rate limiter is closed"))

    async def drain(self) -> None:
        """Wait until nothing waits to be sent, or `max_wait` has passed. Cancelled: no longer."""
        with trio.move_on_after(self._max_wait):
            while self._waiting or self._busy:
                self._quiet = trio.Event()
                await self._quiet.wait()

    async def _send(self) -> None:
        together: list[Question] = []
        while self._waiting and len(together) < MOST_TOGETHER:
            question = self._waiting.popleft()
            if not question.answered:
                question.sent = True
                together.append(question)
        if not together:
            return
        wait = self._breaker.closed_after(trio.current_time(), busy=False)
        if wait:
            self._fail(together, StoreError("the rate limit store has not answered of late", wait))
            return
        self._busy = True
        self.calls += 1
        error: StoreError | None = None
        try:
            with trio.move_on_after(self._max_wait) as scope:
                await self._store.call(together)
            if scope.cancelled_caught:
                self._store.drop()
                error = StoreError(f"the rate limit store has not answered within {self._max_wait} s")
        except StoreError as failed:
            error = failed
        finally:
            self._busy = False
            if error is None and all(question.answered for question in together):
                self._breaker.succeeded()
            else:
                self._failed(together, error or StoreError("the rate limiter was closed while it asked"))

    def _failed(self, together: Sequence[Question], error: StoreError) -> None:
        now = trio.current_time()
        self.failures += 1
        self._breaker.failed(now)
        error.retry_after = self._breaker.closed_after(now, busy=False)
        self._fail(together, error)
        if error.retry_after:
            # Whoever came meanwhile has waited as long.
            self._fail(self._waiting, error)
            self._waiting.clear()

    def _fail(self, questions: Iterable[Question], error: StoreError) -> None:
        for question in questions:
            if not question.answered:
                self.lost += question.nobody_waits
                question.fail(error)
