"""Tokens taken from the store before they are asked for, to be handed out here without asking."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import attrs
import trio

from trio_wskit.errors import ConfigError

__all__ = ["Lease", "LeaseBook"]


def _tokens(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ConfigError(f"Lease(tokens=…) takes a whole number above 1, not {value!r}")


def _seconds(_: object, __: object, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ConfigError(f"Lease(seconds=…) takes a number above 0, not {value!r}")


@final
@attrs.frozen
class Lease:
    """Take several tokens of a bucket at once, and hand them out without asking: less exact, and far less to ask.

    No token is spent twice, but one may be spent `seconds` after it was taken. So what all processes together grant
    for a key in t seconds is at most ``capacity + rate * t``, and what they held at the start: less than `tokens`
    each. What is left of a lease when it runs out is lost.

    Attributes:
        tokens: how many are taken at once, at least 2. Where they are not there, only what is asked for is taken.
        seconds: how long they may be handed out, above 0.
    """

    tokens: int = attrs.field(validator=_tokens)
    seconds: float = attrs.field(validator=_seconds)


@attrs.define
class _Held:
    left: int
    until: float


@final
class LeaseBook:
    """The leases of this process, and who is getting one.

    Args:
        terms: of every lease.
        most: how many are held at once, at least 1. The oldest makes room for another, and what is left of it is lost.
    """

    __slots__ = ("_getting", "_held", "_most", "_terms")

    def __init__(self, terms: Lease, most: int = 100_000) -> None:
        self._terms = terms
        self._most = most
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._getting: dict[str, trio.Event] = {}

    def take(self, key: str, cost: int, now: float) -> int | None:
        """Spend from a lease: what is left of it then, or None if it does not suffice."""
        held = self._held.get(key)
        if held is None:
            return None
        if now >= held.until:
            del self._held[key]
            return None
        if held.left < cost:
            return None
        held.left -= cost
        return held.left

    def worth(self, cost: int, capacity: int) -> int:
        """How many tokens to ask the store for, in the place of `cost`."""
        return min(self._terms.tokens, capacity) if cost < self._terms.tokens else cost

    def add(self, key: str, tokens: int, asked: float) -> int:
        """Keep what was taken more than was needed.

        Args:
            key: the bucket's name.
            tokens: how many.
            asked: when they were asked for: their time runs from then.

        Returns:
            All that is held of the bucket.
        """
        held = self._held.pop(key, None)
        if held is None or held.left == 0 or asked >= held.until:
            held = _Held(0, asked + self._terms.seconds)
        # The oldest tokens say when it ends, so that none is held for longer than was said.
        held.left += tokens
        self._held[key] = held
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return held.left

    def forget(self, key: str) -> None:
        """Give up a lease."""
        self._held.pop(key, None)

    async def turn(self, key: str) -> bool:
        """Wait until nobody gets a lease for the key.

        Returns:
            True if that was so from the start: then you get it, until `done`. False: look again, there may be one now.

        Cancelled: it is not your turn.
        """
        getting = self._getting.get(key)
        if getting is not None:
            await getting.wait()
            return False
        self._getting[key] = trio.Event()
        return True

    def done(self, key: str) -> None:
        """Whoever waits for your lease may look again."""
        self._getting.pop(key).set()
