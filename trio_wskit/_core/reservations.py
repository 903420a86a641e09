"""Tokens taken on approval: how to undo a spending as if it had never been, whatever was spent after it.

To give tokens back by moving `full_at` back would create tokens: those that would have run over the brim of a full
bucket in the meantime. So a bucket with open reservations remembers what came after each of them, which is little:
spending ``k`` at instant ``s`` makes of the bucket's instant x ``max(x, s) + k``, and any run of such steps is
``max(x + a, b)`` for two numbers a and b. Undoing one reservation is to leave it out and apply the rest again.
"""

from __future__ import annotations

from typing import final

import attrs

from trio_wskit._core.bucket import Decision, check_cost
from trio_wskit.errors import WsKitError

__all__ = ["Ledger", "Reservation"]


@final
class Reservation:
    """Tokens taken before it is known what the work costs. See `trio_wskit.abc.RateLimiter.reserve`.

    Attributes:
        cost: the tokens taken.
        decision: what the limiter said.
    """

    __slots__ = ("_actual", "cost", "decision")

    def __init__(self, cost: int, decision: Decision) -> None:
        self.cost: int = cost
        self.decision: Decision = decision
        self._actual: int | None = None

    def settle(self, actual: int) -> None:
        """Say what the work did cost; the rest goes back when the block ends, however it ends. The last word counts.

        Args:
            actual: tokens, from 0 to what was reserved.

        Raises:
            WsKitError: INVALID_ARGUMENT: not an integer in these bounds. Reserve the most that the work can cost.
        """
        actual = check_cost(actual)
        if actual > self.cost:
            raise WsKitError("INVALID_ARGUMENT", f"A reservation of {self.cost} tokens cannot be settled for {actual}")
        self._actual = actual

    def owed(self, *, failed: bool) -> int:
        """What the work is to pay: what was settled; otherwise all if it was done, and nothing if it failed."""
        if self._actual is not None:
            return self._actual
        return 0 if failed else self.cost


@attrs.define
class _Entry:
    at: int
    cost: int
    # What was spent after this entry and before the next, as the map x -> max(x + shift, floor).
    shift: int
    floor: int

    def __call__(self, full_at: int) -> int:
        return max(max(full_at, self.at) + self.cost + self.shift, self.floor)


@final
class Ledger:
    """A bucket with open reservations. All instants and costs are in grains; `now` never goes back.

    Attributes:
        full_at: the instant at which the bucket is full, with everything that is spent and reserved.
    """

    __slots__ = ("_base", "_entries", "_next", "full_at")

    def __init__(self, full_at: int) -> None:
        self.full_at = full_at
        self._base = full_at
        self._entries: dict[int, _Entry] = {}
        self._next = 0

    @property
    def open(self) -> int:
        """How many reservations are not settled."""
        return len(self._entries)

    def spend(self, now: int, cost: int) -> None:
        """Spend for good."""
        self.full_at = max(self.full_at, now) + cost
        last = next(reversed(self._entries.values()), None)
        if last is None:
            self._base = self.full_at
        else:
            last.shift += cost
            last.floor = max(last.floor, now) + cost

    def reserve(self, now: int, cost: int) -> int:
        """Spend on approval; returns the reservation's number."""
        self.full_at = max(self.full_at, now) + cost
        # Whatever the cost turns out to be, the bucket is not full before `now`: no floor is lower.
        self._entries[self._next] = _Entry(now, cost, 0, now)
        self._next += 1
        return self._next - 1

    def settle(self, number: int, cost: int) -> None:
        """Close a reservation as if `cost` had been spent in its place, when it was made."""
        numbers = list(self._entries)
        place = numbers.index(number)
        entry = self._entries.pop(number)
        entry.cost = cost
        if place == 0:
            self._base = entry(self._base)
        else:
            before = self._entries[numbers[place - 1]]
            before.floor = entry(before.floor)
            before.shift += entry.cost + entry.shift
        self.full_at = self._base
        for entry in self._entries.values():
            self.full_at = entry(self.full_at)
