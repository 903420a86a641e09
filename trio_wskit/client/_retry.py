"""Asking again, where the server's answer says that it may help."""

from __future__ import annotations

from typing import final

import attrs

from trio_wskit._core.backoff import Backoff
from trio_wskit.errors import ConfigError, ConnectFailed, ConnectionClosed, ServerError

__all__ = ["Retry"]


@final
@attrs.frozen(kw_only=True)
class Retry:
    """Which requests are sent again, and when.

    A request whose error is retryable is sent again after what the server asked for, and not before the backoff's
    delay. Where it is not known whether the server did the work (no answer in time, or the connection was lost), it is
    sent again only with an idempotency key. The client's retry budget stops all retries when most requests fail.

    Attributes:
        max_attempts: the first one included.
        backoff: the delays.
    """

    max_attempts: int = 3
    backoff: Backoff = attrs.field(factory=lambda: Backoff(initial_delay=0.1, max_delay=5.0))

    def __attrs_post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"Retry(max_attempts=…) takes a number of at least 1, not {self.max_attempts!r}")

    def delay_after(self, error: Exception, attempt: int, randomness: float, *, has_key: bool) -> float | None:
        """Seconds until the next attempt; None where there is none.

        Args:
            error: what the last attempt ended with.
            attempt: how many there have been.
            randomness: uniform in 0 to 1.
            has_key: the request has an idempotency key.
        """
        if attempt >= self.max_attempts:
            return None
        if isinstance(error, ServerError):
            if not error.retryable or (error.code == "DEADLINE_EXCEEDED" and not has_key):
                return None
            return max(self.backoff.delay(attempt, randomness), error.retry_after or 0.0)
        if isinstance(error, ConnectionClosed) and has_key and not isinstance(error, ConnectFailed):
            return self.backoff.delay(attempt, randomness)
        return None
