"""What a policy is on Redis: the names of its keys, and its numbers in two words that a double can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from trio_wskit._core.bucket import Decision, Grid, Policy, take, tokens
from trio_wskit.errors import ConfigError

__all__ = ["TICKS_PER_SECOND", "WirePolicy"]

TICKS_PER_SECOND: Final = 10**6
# An instant is the present (2**50.6 in our days) and up to twice the time that a bucket takes to fill.
_MOST_TICKS: Final = 2**51
_MOST_PARTS: Final = 2**52


@final
class WirePolicy:
    """A policy as the script sees it, in microseconds.

    Raises:
        ConfigError: its numbers are too large for the script to be exact.

    Attributes:
        grid: the policy in whole numbers.
    """

    __slots__ = ("_head", "_prefix", "_suffix", "grid")

    def __init__(self, policy: Policy) -> None:
        self.grid: Grid = Grid.of(policy, TICKS_PER_SECOND)
        grid = self.grid
        fill, rest = divmod(grid.burst, grid.grains_per_tick)
        if fill >= _MOST_TICKS:
            raise ConfigError(
                f"{policy} takes more than 71 years to fill: on Redis, make the capacity less or the rate more"
            )
        if grid.grains_per_tick > _MOST_PARTS:
            raise ConfigError(f"the rate of {policy} has more digits than Redis can count: give fewer of them")
        self._head = f"{grid.grains_per_tick} {fill} {rest}"
        self._prefix = policy.prefix or ""
        # A bucket belongs to its policy: one of another policy has its own, and none is read by another's numbers.
        self._suffix = f"@{policy.capacity}@{policy.rate}"

    def key(self, key: str) -> str:
        """The name of a bucket on the server. What is in braces in `key` says where it lives in a cluster."""
        return f"{self._prefix}{key}{self._suffix}"

    def take(self, cost: int) -> str:
        """The words that take from a bucket, after ``t n`` or ``r id``."""
        return f"{self._head} {self.amount(cost)}"

    def lease(self, more: int, cost: int) -> str:
        """The words that take `more` if it is there, and else `cost`."""
        return f"l {self._head} {self.amount(more)} {self.amount(cost)}"

    def settle(self, number: str, cost: int) -> str:
        """The words that settle a reservation."""
        return f"s {number} {self.grid.grains_per_tick} {self.amount(cost)}"

    def amount(self, cost: int) -> str:
        """A cost as two words."""
        us, parts = divmod(cost * self.grid.grains_per_token, self.grid.grains_per_tick)
        return f"{us} {parts}"

    def full_at(self, state: Sequence[int]) -> int:
        """An instant in grains, from a bucket's answer: its present, and the instant as us and parts."""
        return state[1] * self.grid.grains_per_tick + state[2]

    def decide(self, cost: int, paid: bool, shown: int, state: Sequence[int]) -> Decision:
        """What a bucket's answer means to who asked for `cost`; all in all it was paid or not.

        Args:
            cost: what was asked for.
            paid: whether it was taken.
            shown: the present, as the clock shows it.
            state: the bucket's present, and its instant as us and parts, after what was done.
        """
        now, full_at = state[0], self.full_at(state)
        if paid:
            return Decision(True, tokens(self.grid, full_at, now), 0.0)
        return self.estimate(cost, full_at, now, shown)

    def estimate(self, cost: int, full_at: int, now: int, shown: int) -> Decision:
        """What this bucket would say: as far as is known here, and nothing is spent."""
        taken = take(self.grid, full_at, now, cost)[1]
        left = tokens(self.grid, full_at, now)
        if taken.allowed:
            return Decision(True, left, 0.0)
        return Decision(False, left, None if taken.due is None else (taken.due - shown) / TICKS_PER_SECOND)
