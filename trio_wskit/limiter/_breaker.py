"""When to stop asking a store that does not answer."""

from __future__ import annotations

from typing import final

__all__ = ["Breaker"]


@final
class Breaker:
    """Closed while the store answers; open for a while after some failures in a row; then one call is let through.

    Times are seconds of one clock.

    Args:
        failures: how many in a row open it, at least 1.
        seconds: how long it stays open.

    Attributes:
        openings: how often it was opened.
    """

    __slots__ = ("_failed", "_failures", "_open_until", "_seconds", "openings")

    def __init__(self, failures: int, seconds: float) -> None:
        self._failures = failures
        self._seconds = seconds
        self._failed = 0
        self._open_until: float | None = None
        self.openings: int = 0

    def closed_after(self, now: float, *, busy: bool) -> float:
        """Seconds until the store may be asked; 0 when it may be now.

        Args:
            now: the present.
            busy: whether a call is under way. While it is that one which is to show that the store is back, others
                wait.
        """
        if self._open_until is None:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        return self._seconds if busy else 0.0

    def succeeded(self) -> None:
        """The store has answered."""
        self._failed = 0
        self._open_until = None

    def failed(self, now: float) -> None:
        """The store has not."""
        self._failed += 1
        if self._failed >= self._failures:
            self._open_until = now + self._seconds
            self.openings += 1
