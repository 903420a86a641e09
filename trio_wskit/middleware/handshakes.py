"""A budget on handshakes: who comes too often is refused with 429 before anything is done for them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, final

from trio_wskit._core.bucket import Decision
from trio_wskit._core.handshake import Request
from trio_wskit.abc import RateLimiter
from trio_wskit.errors import Reject, WsKitError
from trio_wskit.middleware.counts import RateLimitCounts
from trio_wskit.middleware.keys import address_key

__all__ = ["HandshakeLimit", "limit_handshakes", "remote_address"]


def remote_address(request: Request) -> str | None:
    """One budget for each address, an IPv6 address counting as its /64; None, for no limit, where there is none."""
    return None if request.remote is None else address_key(request.remote)


@final
class HandshakeLimit:
    """What `App` takes for ``authenticate``; see `limit_handshakes`.

    Attributes:
        counts: what it has done so far. Who has no key has passed.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        authenticate: Callable[[Request], Awaitable[Any]] | None,
        key: Callable[[Request], str | None],
        on_refused: Callable[[Request, Decision], None] | None,
    ) -> None:
        self._limiter = limiter
        self._authenticate = authenticate
        self._key = key
        self._on_refused = on_refused
        self.counts: RateLimitCounts = RateLimitCounts()

    async def __call__(self, request: Request) -> Any:
        """Take a token, and ask `authenticate`; or raise `Reject`."""
        try:
            decision = await self._decide(request)
        except Exception as error:
            self.counts.failed += 1
            if isinstance(error, WsKitError):
                raise Reject(503, "Service unavailable", _retry_after(error.retry_after)) from error
            raise
        if decision is not None and not decision.allowed:
            self.counts.turned_away(decision)
            if self._on_refused is not None:
                self._on_refused(request, decision)
            raise Reject(429, "Too many connections", _retry_after(decision.retry_after))
        self.counts.passed += 1
        self.counts.spent += decision is not None
        return {} if self._authenticate is None else await self._authenticate(request)

    async def _decide(self, request: Request) -> Decision | None:
        bucket = self._key(request)
        return None if bucket is None else await self._limiter.consume(bucket)


def limit_handshakes(
    limiter: RateLimiter,
    authenticate: Callable[[Request], Awaitable[Any]] | None = None,
    *,
    key: Callable[[Request], str | None] = remote_address,
    on_refused: Callable[[Request, Decision], None] | None = None,
) -> HandshakeLimit:
    """Let a handshake go on only if its address has a token: ``App(…, authenticate=limit_handshakes(limiter, auth))``.

    The others are refused with 429 and ``Retry-After``, and `authenticate` is not asked. Where the limiter's store does
    not answer, and it raises that, they are refused with 503. (How many connections there may be at the same time is a
    matter of ``Limits``.)

    Args:
        limiter: who decides.
        authenticate: asked after that; without it everybody gets in, and the data is an empty dict.
        key: gives the bucket's key for a handshake, or None to let it pass. Behind a proxy every address is the
            proxy's: read the header which your proxy sets.
        on_refused: told of every refusal; a plain function that must not wait.

    Returns:
        What `App` takes for ``authenticate``, with counters.
    """
    return HandshakeLimit(limiter, authenticate, key, on_refused)


def _retry_after(seconds: float | None) -> dict[str, str]:
    # RFC 9110 section 10.2.3: whole seconds.
    return {"Retry-After": str(max(1, math.ceil(seconds or 0)))}
