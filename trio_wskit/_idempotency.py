"""The same request twice is one request: the second gets the first one's answer.

Rules
- A key belongs to an identity, see ``App(identity=…)``: a client that comes back on a new connection is still itself.
- Only what the same request would be answered again is recorded: a reply, or an error whose retry is pointless. What
  was cancelled, timed out or failed may be tried again with the same key, and runs again.
- While the first one runs, the others wait for it. Where it leaves no answer, the one that waits longest runs.
- A key that comes with another request is refused with ALREADY_EXISTS.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, final

import outcome
import trio

from trio_wskit._core.idempotency import Recorded, Window
from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["MemoryIdempotency"]


@final
class _Running:
    __slots__ = ("fingerprint", "waiting")

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.waiting: deque[trio.lowlevel.Task] = deque()


@final
class MemoryIdempotency:
    """Remembers answers in this process; see `trio_wskit.abc.IdempotencyStore` for what it does.

    Args:
        max_keys: answers that are kept; the oldest makes room.
        max_bytes: bytes that they take together, keys and all.
        max_age: seconds that an answer is kept.
        clock: gives seconds; it should not go back.

    Raises:
        ConfigError: a bound is not above 0.
    """

    def __init__(
        self,
        *,
        max_keys: int = 10_000,
        max_bytes: int = 32 * 1024 * 1024,
        max_age: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bounds: dict[str, Any] = {"max_keys": max_keys, "max_bytes": max_bytes, "max_age": max_age}
        for name, bound in bounds.items():
            if not isinstance(bound, (int, float)) or isinstance(bound, bool) or not bound > 0:
                raise ConfigError(f"MemoryIdempotency({name}=…) takes a number above 0, not {bound!r}")
        self._window = Window(max_keys, max_bytes, max_age)
        self._clock = clock
        self._running: dict[str, _Running] = {}

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._window)

    @property
    def running(self) -> int:
        """Keys whose request runs now."""
        return len(self._running)

    async def begin(self, key: str, fingerprint: bytes) -> bytes | None:
        """Claim a key; see `trio_wskit.abc.IdempotencyStore`. Waits only while another request with the key runs."""
        recorded = self._window.find(key, self._clock())
        if recorded is not None:
            _check(fingerprint, recorded.fingerprint)
            return recorded.answer
        running = self._running.get(key)
        if running is None:
            self._running[key] = _Running(fingerprint)
            return None
        _check(fingerprint, running.fingerprint)
        task = trio.lowlevel.current_task()
        running.waiting.append(task)

        def give_up(_: object) -> trio.lowlevel.Abort:
            running.waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: bytes | None = await trio.lowlevel.wait_task_rescheduled(give_up)
        return answer

    async def finish(self, key: str, fingerprint: bytes, answer: bytes | None) -> None:
        """Give the key back, with its answer if there is one."""
        running = self._running[key]
        if answer is not None:
            self._window.add(key, Recorded(fingerprint, answer), self._clock())
            for task in running.waiting:
                trio.lowlevel.reschedule(task, outcome.Value(answer))
            running.waiting.clear()
        elif running.waiting:
            trio.lowlevel.reschedule(running.waiting.popleft(), outcome.Value(None))
            return
        del self._running[key]


def _check(fingerprint: bytes, other: bytes) -> None:
    if fingerprint != other:
        raise WsKitError("ALREADY_EXISTS", "this idempotencyKey belongs to another request")
