"""Whether to connect again, and when."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf
from typing import Final, final

import attrs

from trio_wskit._core.backoff import Backoff, Jitter
from trio_wskit.errors import ConfigError, ConnectFailed, ConnectionClosed

__all__ = ["GIVE_UP_ON", "Reconnect"]

GIVE_UP_ON: Final = frozenset({401, 403, 4401})
"""HTTP statuses and close codes that say who we are is the problem: trying again does not change that."""

# The IANA registry of close codes on 1012: "should reconnect using a randomized delay of 5 - 30s"; 1013 asks for no
# less. (https://mailarchive.ietf.org/arch/msg/hybi/P_1vbD9uyHl63nbIIbFxKMfSwcM)
_ASKED_TO_WAIT: Final = frozenset({1012, 1013})


@final
@attrs.frozen(kw_only=True)
class Reconnect:
    """When a client connects again. The defaults are ws-kit's, where it has them.

    Attributes:
        max_attempts: in a row, after the connection that was lost or the first attempt.
        initial_delay: seconds before the first; see `Backoff`.
        max_delay: seconds; the delay doubles up to this.
        jitter: ``full`` or ``none``.
        give_up_on: further close codes and HTTP statuses that end the client, beside 401, 403 and 4401; or a function
            of the `ConnectionClosed` (a `ConnectFailed` where there was no connection) that is true for those.
        stable_after: seconds that a connection must live until the delays begin anew: a server that closes at once is
            not asked more and more often.
        restart_delay: seconds, least and most, of the random delay after 1012 (restart) and 1013 (try again later).
        max_retry_after: seconds; the longest ``Retry-After`` that is honoured.
    """

    max_attempts: float = inf
    initial_delay: float = 0.3
    max_delay: float = 10.0
    jitter: Jitter = "full"
    give_up_on: Collection[int] | Callable[[ConnectionClosed], bool] = ()
    stable_after: float = 5.0
    restart_delay: tuple[float, float] = (5.0, 30.0)
    max_retry_after: float = 3600.0
    _backoff: Backoff = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.max_attempts >= 0:
            raise ConfigError(f"max_attempts takes a number of at least 0, not {self.max_attempts!r}")
        if not 0 <= self.restart_delay[0] <= self.restart_delay[1] < inf:
            raise ConfigError(f"restart_delay takes the least and the most seconds, not {self.restart_delay!r}")
        backoff = Backoff(initial_delay=self.initial_delay, max_delay=self.max_delay, jitter=self.jitter)
        object.__setattr__(self, "_backoff", backoff)

    def delay_after(self, closed: ConnectionClosed, attempt: int, randomness: float) -> float | None:
        """Seconds until the next attempt; None to give up.

        Args:
            closed: why there is no connection.
            attempt: the number of the next attempt in a row, from 1.
            randomness: uniform in 0 to 1.
        """
        if attempt > self.max_attempts or self._gives_up(closed):
            return None
        delay = self._backoff.delay(attempt, randomness)
        if closed.code in _ASKED_TO_WAIT:
            least, most = self.restart_delay
            delay = max(delay, least + (most - least) * randomness)
        if closed.retry_after is not None:
            delay += min(closed.retry_after, self.max_retry_after)  # not sooner, and not all at the same moment
        return delay

    def _gives_up(self, closed: ConnectionClosed) -> bool:
        said = closed.status if isinstance(closed, ConnectFailed) else closed.code
        if said in GIVE_UP_ON:
            return True
        return self.give_up_on(closed) if callable(self.give_up_on) else said in self.give_up_on
