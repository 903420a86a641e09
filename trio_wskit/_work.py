"""What the connections of an app do together: the bounds that they share, and the end that comes to all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import attrs
import trio

from trio_wskit._core.options import Limits
from trio_wskit.errors import ErrorCode, WsKitError

__all__ = ["Drain", "DrainReport", "Runner", "Work"]


class Runner(Protocol):
    """A task in which a handler waits."""

    scope: trio.CancelScope

    def cancel(self, code: ErrorCode | None) -> None:
        """Cancel the handler; `code` is what its client is told, if anything."""
        ...


@final
@attrs.frozen(kw_only=True)
class DrainReport:
    """What came of a drain.

    Attributes:
        finished: handlers that ran when it began, and came to their own end.
        cancelled: those that did not: their time was over, their client left, or it gave up.
        refused: messages that came too late, and were answered with UNAVAILABLE.
        closed: connections that were closed.
    """

    finished: int
    cancelled: int
    refused: int
    closed: int


@final
class Drain:
    """The end of an app, as its dispatchers see it.

    Args:
        retry_after: gives the seconds after which a refused client may try elsewhere; not the same for all.
    """

    def __init__(self, retry_after: Callable[[], float]) -> None:
        self._retry_after = retry_after
        self._running: set[Runner] = set()
        self._idle: trio.Event | None = None
        self.finished: int = 0
        self.cancelled: int = 0
        self.refused: int = 0

    @property
    def running(self) -> tuple[Runner, ...]:
        """Those that have not ended yet."""
        return tuple(self._running)

    def watch(self, runners: set[Runner]) -> None:
        """Wait for these as well."""
        self._running |= runners

    def ended(self, runner: Runner) -> None:
        """The handler that waited in it has ended."""
        if runner not in self._running:
            return
        self._running.discard(runner)
        if runner.scope.cancel_called:
            self.cancelled += 1
        else:
            self.finished += 1
        if not self._running and self._idle is not None:
            self._idle.set()

    def refusal(self) -> WsKitError:
        """What new work is answered with."""
        self.refused += 1
        return WsKitError("UNAVAILABLE", "the server is shutting down", retry_after=self._retry_after())

    async def idle(self) -> None:
        """Wait until all have ended."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._running:
            self._idle = trio.Event()
            await self._idle.wait()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()


@final
class Work:
    """What the connections of one app share.

    Attributes:
        calls: how many calls wait at the same time, but detached ones; all only where ``max_calls`` bounds them.
        detached: the handlers that outlive their connection.
        nursery: the app's; it owns those.
        drain: set when the app begins to end.
    """

    __slots__ = ("calls", "detached", "drain", "limits", "nursery")

    def __init__(self, limits: Limits, nursery: trio.Nursery) -> None:
        self.limits: Limits = limits
        self.nursery: trio.Nursery = nursery
        self.calls: int = 0
        self.detached: set[Runner] = set()
        self.drain: Drain | None = None

    def reached(self, *, detached: bool, call: bool) -> int | None:
        """The bound that one more handler would pass, if there is one."""
        limits = self.limits
        if detached:
            return limits.max_detached if len(self.detached) >= limits.max_detached else None
        if call and limits.max_calls is not None and self.calls >= limits.max_calls:
            return limits.max_calls
        return None
