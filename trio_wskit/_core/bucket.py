"""The token bucket in whole numbers: what a policy is, what a decision is, and the arithmetic between them.

A bucket is one integer: the instant at which it will be full again, if nobody spends (the "theoretical arrival time"
of the Generic Cell Rate Algorithm, ITU-T I.371). To spend is to move that instant forward; a bucket whose instant has
passed is full and need not be kept.

Time is counted in *ticks*, the unit of the clock (nanoseconds in memory, microseconds on Redis). One token takes
``ticks a second / rate`` ticks to come back, seldom a whole number; so each tick is cut into as many *grains* as make
it whole. At 3 tokens a second a tick has 3 grains, and a token takes exactly 1,000,000,000 of them. Nothing here is
ever rounded, but what is told to people: `remaining` down to whole tokens, and a wait up to whole ticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias, final

import attrs

from trio_wskit.errors import ConfigError, WsKitError

__all__ = [
    "Decision",
    "Decisions",
    "Grid",
    "Policy",
    "Rate",
    "Spend",
    "Taken",
    "check_cost",
    "due",
    "merge_spends",
    "refusal",
    "seconds_until",
    "take",
    "tokens",
]

Rate: TypeAlias = "int | float | Decimal | Fraction"


def _capacity(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"Policy(capacity=…) takes a whole number of tokens, not {value!r}")
    if value < 1:
        raise ConfigError(f"Policy(capacity={value!r}): the capacity must be ≥ 1 token")


def _prefix(_: object, __: object, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"Policy(prefix=…) takes text or None, not {value!r}")


def _exact(value: object) -> Fraction:
    """The rate as a fraction: a float means the decimal that it prints as, so 0.1 is one token in ten seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, Fraction)):
        raise ConfigError(f"Policy(tokens_per_second=…) takes an int, float, Decimal or Fraction, not {value!r}")
    if (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, Decimal) and not value.is_finite()
    ):
        raise ConfigError(f"Policy(tokens_per_second={value!r}): the rate must be finite")
    if value <= 0:
        raise ConfigError(f"Policy(tokens_per_second={value!r}): tokens_per_second must be > 0")
    return Fraction(float.__repr__(value) if isinstance(value, float) else value)


def _rate_of(policy: Policy) -> Fraction:
    return _exact(policy.tokens_per_second)


@final
@attrs.frozen
class Policy:
    """How much may be spent: `capacity` tokens at once, `tokens_per_second` in the long run.

    Two policies are equal when they mean the same: ``Policy(10, 0.5) == Policy(10, Fraction(1, 2))``.

    Attributes:
        capacity: the most tokens that a bucket holds, and what it starts with; at least 1.
        tokens_per_second: how fast they come back; above 0, finite, as an int, float, `decimal.Decimal` or
            `fractions.Fraction`. A float is taken as the shortest decimal that prints like it: 0.1 is exactly a tenth.
        prefix: put before every key, to keep apart the buckets of limiters that share a store.
        rate: `tokens_per_second`, exactly.

    Raises:
        ConfigError: a value is of the wrong type or out of its bounds.
    """

    capacity: int = attrs.field(validator=_capacity)
    tokens_per_second: Rate = attrs.field(eq=False)
    prefix: str | None = attrs.field(default=None, validator=_prefix)
    rate: Fraction = attrs.field(init=False, repr=False, default=attrs.Factory(_rate_of, takes_self=True))


# A named tuple, not an attrs class: made for every refusal, and made in a third of the time.
@final
class Decision(NamedTuple):
    """What a limiter says to one request. It is true when the request is allowed.

    Attributes:
        allowed: whether the tokens were spent. A refused request has spent nothing.
        remaining: whole tokens left in the bucket, after spending.
        retry_after: seconds, rounded up to the clock's unit, after which the same request succeeds if nobody else
            spends; 0.0 when it was allowed, None when it can never succeed: it costs more than the capacity.
    """

    allowed: bool
    remaining: int
    retry_after: float | None

    def __bool__(self) -> bool:
        return self.allowed


@final
@attrs.frozen
class Decisions:
    """What a limiter says to several requests of which all or none are paid. It is true when they are allowed.

    Attributes:
        allowed: whether all of them were paid; otherwise nothing was spent.
        retry_after: seconds after which all of them can be paid, if nobody else spends; 0.0 when they were paid, None
            when they never can be.
        each: for every request, in the order asked, what its bucket says to it: where only some refuse, the others
            allow, and yet nothing was spent. Requests to one bucket are one request with the sum of their costs.
    """

    allowed: bool
    retry_after: float | None
    each: tuple[Decision, ...]

    def __bool__(self) -> bool:
        return self.allowed

    @classmethod
    def of(cls, each: Sequence[Decision]) -> Decisions:
        """Sum up what the buckets say."""
        waits = [one.retry_after for one in each]
        longest = None if None in waits else max((wait for wait in waits if wait is not None), default=0.0)
        return cls(all(one.allowed for one in each), longest, tuple(each))


Spend: TypeAlias = "tuple[str, int] | tuple[str, int, Policy]"
"""One request of several: key, cost, and the policy of its bucket where it is not the limiter's own."""


def check_cost(cost: object) -> int:
    """A cost as a limiter takes it.

    Raises:
        WsKitError: INVALID_ARGUMENT: not an integer, or below zero. A bool is no cost.
    """
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 0:
        raise WsKitError("INVALID_ARGUMENT", "Rate limit cost must be a non-negative integer")
    return int(cost)


def merge_spends(spends: Sequence[Spend], own: Policy) -> dict[tuple[Policy, str], int]:
    """What each bucket is asked for, all in all, in the order in which they are first named.

    Raises:
        WsKitError: INVALID_ARGUMENT: see `check_cost`.
    """
    costs: dict[tuple[Policy, str], int] = {}
    for spend in spends:
        bucket = (spend[2] if len(spend) == 3 else own, spend[0])
        costs[bucket] = costs.get(bucket, 0) + check_cost(spend[1])
    return costs


@final
@attrs.frozen
class Grid:
    """A policy in whole numbers, for a clock of so many ticks a second.

    Attributes:
        grains_per_tick: into how many grains a tick is cut.
        grains_per_token: how many grains a token takes to come back.
        capacity: the tokens of a full bucket.
        burst: how many grains an empty bucket takes to be full.
    """

    grains_per_tick: int
    grains_per_token: int
    capacity: int
    burst: int

    @classmethod
    def of(cls, policy: Policy, ticks_per_second: int) -> Grid:
        """The coarsest grid on which the policy is exact."""
        ticks_per_token = ticks_per_second / policy.rate
        grains = ticks_per_token.numerator
        return cls(ticks_per_token.denominator, grains, policy.capacity, policy.capacity * grains)


class Taken(NamedTuple):
    """What `take` decided, in the units of the clock; see `Decision`."""

    allowed: bool
    remaining: int
    due: int | None


def tokens(grid: Grid, full_at: int, now: int) -> int:
    """The whole tokens in a bucket. `full_at` is in grains, `now` in ticks."""
    instant = now * grid.grains_per_tick
    return (instant + grid.burst - max(full_at, instant)) // grid.grains_per_token


def due(grid: Grid, full_at: int, cost: int) -> int:
    """The first tick at which `cost` tokens are in the bucket, if nobody spends. It may have passed."""
    return -((grid.burst - full_at - cost * grid.grains_per_token) // grid.grains_per_tick)


def take(grid: Grid, full_at: int, now: int, cost: int) -> tuple[int, Taken]:
    """Spend `cost` tokens if they are there.

    Args:
        grid: the policy's.
        full_at: the instant, in grains, at which the bucket is full; any instant that has passed means that it is.
        now: the present, in ticks. The caller sees to it that it never goes back: for a clock that did, the present
            is the latest that it ever showed, so that going back neither refills nor takes.
        cost: tokens, at least 0. Nothing is free for 0, and nothing refused.

    Returns:
        The new `full_at`, and the decision; its `due` is the tick at which a refused request would succeed.
    """
    if cost > grid.capacity:
        return full_at, Taken(False, tokens(grid, full_at, now), None)
    spent = max(full_at, now * grid.grains_per_tick) + cost * grid.grains_per_token
    if spent <= now * grid.grains_per_tick + grid.burst:
        return (spent if cost else full_at), Taken(True, tokens(grid, spent, now), now)
    return full_at, Taken(False, tokens(grid, full_at, now), due(grid, full_at, cost))


def seconds_until(due: int, now: float, ticks_per_second: float) -> float:
    """How long from `now` to a tick, such that ``now + seconds``, computed in floats, is not before it.

    Args:
        due: the tick, not in the past.
        now: the clock's reading, in seconds. It counts as the nearest tick.
        ticks_per_second: the unit.
    """
    wait = (due - round(now * ticks_per_second)) / ticks_per_second
    # A real clock reads between ticks, and a sum of floats may fall short of what it stands for.
    while round((now + wait) * ticks_per_second) < due:
        wait += max(math.ulp(wait), math.ulp(now + wait))
    return wait


def refusal(decision: Decision, cost: int, policy: Policy) -> WsKitError:
    """The error that a refused request becomes, as ws-kit words it.

    Returns:
        RESOURCE_EXHAUSTED with ``details`` of cost, capacity and remaining, and the time to wait; or
        FAILED_PRECONDITION with cost and capacity, for a request that can never succeed.
    """
    if decision.retry_after is None:
        details = {"cost": cost, "capacity": policy.capacity}
        return WsKitError("FAILED_PRECONDITION", "Operation cost exceeds capacity", details)
    details = {"cost": cost, "capacity": policy.capacity, "remaining": decision.remaining}
    return WsKitError("RESOURCE_EXHAUSTED", "Rate limit exceeded", details, retry_after=decision.retry_after)
