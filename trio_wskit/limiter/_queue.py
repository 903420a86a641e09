"""Waiting for tokens: first come, first served, for each key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

import attrs
import trio

from trio_wskit._core.bucket import Decision, Policy, refusal

__all__ = ["Queue"]


@attrs.define
class _Line:
    # trio.Lock is fair: it is handed over in the order in which it was asked for.
    turn: trio.Lock = attrs.field(factory=trio.Lock)
    length: int = 0


@final
class Queue:
    """Callers that sleep until their tokens are there; a line for each key that has anyone in it."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def keys_waited_for(self) -> int:
        """How many keys have anyone in line."""
        return len(self._lines)

    async def wait(
        self, consume: Callable[[str, int], Awaitable[Decision]], key: str, cost: int, policy: Policy
    ) -> Decision:
        """Call `consume`, sleeping in between, until it allows. Whoever is first in line alone asks and sleeps.

        Cancelled: the place in line is free, and nothing is spent if a cancelled `consume` spends nothing.
        """
        line = self._lines.setdefault(key, _Line())
        line.length += 1
        try:
            async with line.turn:
                while not (decision := await consume(key, cost)).allowed:
                    if decision.retry_after is None:
                        raise refusal(decision, cost, policy)
                    await trio.sleep(decision.retry_after)
                return decision
        finally:
            line.length -= 1
            if line.length == 0:
                del self._lines[key]
