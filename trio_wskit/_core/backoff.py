"""How long to wait before trying again, and whether to try at all. Pure: clock and chance are arguments."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from math import inf, isfinite
from typing import Any, Final, Literal, final

import attrs

from trio_wskit.errors import ConfigError

__all__ = ["Backoff", "Jitter", "RetryBudget", "retry_after_seconds"]

Jitter = Literal["full", "none"]

_MAX_EXPONENT: Final = 60  # beyond it every maximum is reached, and a float is not


def _seconds(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < inf:
        raise ConfigError(f"{field.name} takes seconds of at least 0, not {value!r}")


def _jitter(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("full", "none"):
        raise ConfigError(f"jitter takes 'full' or 'none', not {value!r}")


@final
@attrs.frozen(kw_only=True)
class Backoff:
    """Exponential backoff. The defaults are those of ws-kit's client.

    Attributes:
        initial_delay: seconds before the first retry.
        max_delay: seconds; the delay doubles with each attempt until it is this.
        jitter: ``full`` takes a delay between nothing and the whole, so that many who lost the same server do not
            come back at the same time (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/);
            ``none`` takes the whole.
    """

    initial_delay: float = attrs.field(default=0.3, validator=_seconds)
    max_delay: float = attrs.field(default=10.0, validator=_seconds)
    jitter: Jitter = attrs.field(default="full", validator=_jitter)

    def delay(self, attempt: int, randomness: float) -> float:
        """Seconds to wait.

        Args:
            attempt: how many attempts in a row have failed, from 1.
            randomness: uniform in 0 to 1.
        """
        whole = min(self.max_delay, self.initial_delay * 2.0 ** min(attempt - 1, _MAX_EXPONENT))
        return whole * randomness if self.jitter == "full" else whole


@final
class RetryBudget:
    """Keeps retries a small share of all requests, so that they do not finish off a server that is struggling.

    gRPC's rule (proposal A6, "throttling retry attempts"): each failure takes a token, each success gives back a part
    of one; there are no retries while half or less of the tokens are left.

    Args:
        max_tokens: how many there are at first, and at most.
        token_ratio: what a success gives back.
    """

    def __init__(self, max_tokens: float = 10.0, token_ratio: float = 0.1) -> None:
        if not (0 < max_tokens < inf and 0 < token_ratio < inf):
            raise ConfigError(f"RetryBudget takes numbers above 0, not {max_tokens!r} and {token_ratio!r}")
        self._max_tokens = max_tokens
        self._token_ratio = token_ratio
        self.tokens = max_tokens

    def succeeded(self) -> None:
        """A request was answered."""
        self.tokens = min(self._max_tokens, self.tokens + self._token_ratio)

    def failed(self) -> bool:
        """A request failed in a way that may be retried. True where it should be."""
        self.tokens = max(0.0, self.tokens - 1.0)
        return self.tokens > self._max_tokens / 2


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` field (RFC 9110 section 10.2.3).

    Args:
        value: the field: whole seconds or an HTTP date; None where there was none.
        now: seconds since 1970.

    Returns:
        Seconds from now, at least 0; None where the field is absent or says nothing that can be understood.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = float(value)
        return seconds if isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
