from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_wskit._core.bucket import (
    Decision,
    Decisions,
    Grid,
    Policy,
    check_cost,
    due,
    merge_spends,
    refusal,
    seconds_until,
    take,
    tokens,
)
from trio_wskit.errors import ConfigError, WsKitError

NANOSECONDS = 10**9

rates = st.one_of(
    st.integers(1, 10**12),
    st.fractions(min_value=Fraction(1, 10**9), max_value=10**12),
    st.floats(min_value=1e-6, max_value=1e12),
    st.decimals(min_value=Decimal("0.000001"), max_value=Decimal(10**12), places=6),
)
policies = st.builds(Policy, st.integers(1, 10**6), rates)
grids = st.builds(Grid.of, policies, st.sampled_from([1_000, 1_000_000, NANOSECONDS]))
# Steps from one nanosecond to three years.
steps = st.lists(st.tuples(st.one_of(st.integers(0, 100), st.integers(0, 10**17)), st.integers(0, 10)), max_size=40)


class Naive:
    """The definition: a level that rises with time up to the capacity, in fractions."""

    def __init__(self, policy: Policy, ticks_per_second: int) -> None:
        self.policy = policy
        self.rate = policy.rate / ticks_per_second
        self.level = Fraction(policy.capacity)
        self.then = 0

    def take(self, now: int, cost: int) -> tuple[bool, int]:
        self.level = min(Fraction(self.policy.capacity), self.level + (now - self.then) * self.rate)
        self.then = now
        allowed = self.level >= cost
        if allowed:
            self.level -= cost
        return allowed, math.floor(self.level)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1, -(10**30)])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match="capacity must be ≥ 1"):
        Policy(capacity, 1)


@pytest.mark.parametrize("capacity", [True, 1.0, "1", None, Decimal(1)])
def test_a_capacity_that_is_no_integer_is_refused(capacity: Any) -> None:
    with pytest.raises(ConfigError, match="whole number of tokens"):
        Policy(capacity, 1)


@pytest.mark.parametrize("rate", [0, -1, 0.0, -0.5, Decimal("-0.1"), Fraction(-1, 3)])
def test_a_rate_that_is_not_above_zero_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="tokens_per_second must be > 0"):
        Policy(1, rate)


@pytest.mark.parametrize("rate", [math.inf, -math.inf, math.nan, Decimal("inf"), Decimal("nan"), Decimal("snan")])
def test_a_rate_that_is_not_finite_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        Policy(1, rate)


@pytest.mark.parametrize("rate", [True, "1", None, 1j, [1]])
def test_a_rate_of_a_wrong_type_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="takes an int, float, Decimal or Fraction"):
        Policy(1, rate)


@pytest.mark.parametrize("prefix", [1, b"api:"])
def test_a_prefix_that_is_no_text_is_refused(prefix: Any) -> None:
    with pytest.raises(ConfigError, match="takes text or None"):
        Policy(1, 1, prefix)


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (10, Fraction(10)),
        (10**400, Fraction(10**400)),
        (0.1, Fraction(1, 10)),
        (1e-7, Fraction(1, 10**7)),
        (1 / 3, Fraction("0.3333333333333333")),
        (Decimal("0.1"), Fraction(1, 10)),
        (Decimal("1e999"), Fraction(10**999)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_a_rate_is_what_it_prints_as(rate: Any, exact: Fraction) -> None:
    assert Policy(1, rate).rate == exact


def test_a_subclass_of_float_is_read_by_its_value_not_by_its_own_repr() -> None:
    class Loud(float):
        def __repr__(self) -> str:
            return f"Loud({float.__repr__(self)})"

    assert Policy(1, Loud(0.1)).rate == Fraction(1, 10)


def test_policies_that_mean_the_same_are_equal() -> None:
    assert Policy(10, 0.5) == Policy(10, Fraction(1, 2))
    assert hash(Policy(10, 0.5)) == hash(Policy(10, Fraction(1, 2)))
    assert Policy(10, 0.5) != Policy(10, 0.5, "api:")
    assert Policy(10, 0.5) != Policy(11, 0.5)
    assert Policy(10, 0.5) != Policy(10, 0.25)


def test_a_policy_is_frozen_and_shows_what_it_was_given() -> None:
    policy = Policy(10, 0.5, "api:")
    assert (policy.capacity, policy.tokens_per_second, policy.prefix) == (10, 0.5, "api:")
    assert repr(policy) == "Policy(capacity=10, tokens_per_second=0.5, prefix='api:')"
    with pytest.raises(AttributeError):
        policy.capacity = 11  # type: ignore[misc]


# --- costs and decisions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [-1, 0.5, 1.0, True, False, "1", None, Decimal(1)])
def test_a_cost_that_is_no_count_is_an_invalid_argument(cost: Any) -> None:
    with pytest.raises(WsKitError, match="Rate limit cost must be a non-negative integer") as caught:
        check_cost(cost)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_cost_is_an_integer_from_zero_up() -> None:
    assert [check_cost(cost) for cost in (0, 1, 10**30)] == [0, 1, 10**30]


def test_a_decision_is_true_when_it_allows() -> None:
    assert Decision(True, 0, 0.0)
    assert not Decision(False, 3, 1.0)


def test_decisions_allow_when_all_allow_and_wait_for_the_slowest() -> None:
    yes, later, never = Decision(True, 3, 0.0), Decision(False, 0, 1.5), Decision(False, 4, None)
    assert Decisions.of([]) == Decisions(True, 0.0, ())
    assert Decisions.of([yes, yes]) == Decisions(True, 0.0, (yes, yes))
    assert Decisions.of([later, yes]) == Decisions(False, 1.5, (later, yes))
    assert Decisions.of([yes, never, later]) == Decisions(False, None, (yes, never, later))
    assert Decisions.of([yes])
    assert not Decisions.of([later])


def test_requests_to_one_bucket_are_one_request() -> None:
    own, other = Policy(5, 1), Policy(5, 1, "other:")
    assert merge_spends([("a", 1), ("b", 2), ("a", 3), ("a", 4, other), ("a", 5, Policy(5, 1.0))], own) == {
        (own, "a"): 9,
        (own, "b"): 2,
        (other, "a"): 4,
    }


def test_one_bad_cost_among_several_is_an_invalid_argument() -> None:
    with pytest.raises(WsKitError, match="non-negative integer"):
        merge_spends([("a", 1), ("a", -1)], Policy(5, 1))


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_three_tokens_a_second_take_three_grains_a_tick() -> None:
    assert Grid.of(Policy(5, 3), NANOSECONDS) == Grid(3, NANOSECONDS, 5, 5 * NANOSECONDS)


def test_a_thousand_million_tokens_a_second_take_one_tick_each() -> None:
    assert Grid.of(Policy(5, 10**9), NANOSECONDS) == Grid(1, 1, 5, 5)


@given(policies, st.sampled_from([1_000, 1_000_000, NANOSECONDS]), steps)
def test_a_bucket_grants_exactly_what_its_definition_grants(
    policy: Policy, unit: int, steps: list[tuple[int, int]]
) -> None:
    grid, naive = Grid.of(policy, unit), Naive(policy, unit)
    now = full_at = 0
    for step, cost in steps:
        now += step
        full_at, taken = take(grid, full_at, now, cost)
        assert (taken.allowed, taken.remaining) == naive.take(now, cost)


@given(grids, steps, st.integers(0, 10**6))
def test_a_refused_request_succeeds_at_the_tick_it_is_told_and_not_one_before(
    grid: Grid, steps: list[tuple[int, int]], cost: int
) -> None:
    now = full_at = 0
    for step, spent in steps:
        now += step
        full_at, _ = take(grid, full_at, now, spent)
    taken = take(grid, full_at, now, cost)[1]
    if taken.allowed:
        assert taken.due == now
    elif cost > grid.capacity:
        assert taken.due is None
    else:
        assert taken.due is not None
        assert taken.due > now
        assert take(grid, full_at, taken.due, cost)[1].allowed
        assert not take(grid, full_at, taken.due - 1, cost)[1].allowed


@given(grids, st.integers(0, 10**9), st.integers(0, 10**18), st.integers(0, 10**7))
def test_a_refused_or_free_request_changes_nothing(grid: Grid, full_at: int, now: int, cost: int) -> None:
    # No bucket owes more than it holds.
    full_at = min(full_at, now * grid.grains_per_tick + grid.burst)
    after, taken = take(grid, full_at, now, cost)
    if cost == 0 or not taken.allowed:
        assert after == full_at
    assert take(grid, full_at, now, 0)[1] == (True, tokens(grid, full_at, now), now)


@given(grids, st.integers(0, 10**18), st.integers(1, 10**6))
def test_remaining_tokens_can_all_be_spent_and_not_one_more(grid: Grid, now: int, cost: int) -> None:
    full_at, taken = take(grid, 0, now, cost)
    assert take(grid, full_at, now, taken.remaining)[1].allowed
    assert not take(grid, full_at, now, taken.remaining + 1)[1].allowed


@given(policies, st.lists(st.integers(0, 10**16), max_size=100))
def test_no_window_gets_more_than_capacity_and_rate(policy: Policy, gaps: list[int]) -> None:
    grid = Grid.of(policy, NANOSECONDS)
    now = full_at = 0
    grants: list[int] = []
    for gap in gaps:
        now += gap
        full_at, taken = take(grid, full_at, now, 1)
        if taken.allowed:
            grants.append(now)
    for first, start in enumerate(grants):
        for last, end in enumerate(grants[first:], first):
            assert last - first + 1 <= policy.capacity + policy.rate * (end - start) / NANOSECONDS


def test_a_year_of_tokens_at_the_clock_s_own_rate_drifts_by_nothing() -> None:
    grid = Grid.of(Policy(1, Fraction(1, 3)), NANOSECONDS)
    year = 366 * 24 * 3600
    full_at = 0
    # Spend at the very instant each token is back, for the last hours of a year after a year.
    for second in range(year - 9_999, year, 3):
        full_at, taken = take(grid, full_at, second * NANOSECONDS, 1)
        assert taken.allowed
        assert not take(grid, full_at, (second + 3) * NANOSECONDS - 1, 1)[1].allowed


def test_a_cost_above_the_capacity_is_impossible_even_for_a_full_bucket() -> None:
    grid = Grid.of(Policy(5, 1), NANOSECONDS)
    assert take(grid, 0, 0, 6) == (0, (False, 5, None))


@given(grids, st.integers(-(10**12), 10**18), st.integers(1, 10**6))
def test_due_is_the_first_tick_with_enough_tokens(grid: Grid, full_at: int, cost: int) -> None:
    cost = min(cost, grid.capacity)
    tick = due(grid, full_at, cost)
    assert tokens(grid, full_at, tick) >= cost
    # A bucket that is full at its `full_at` has been full before it too; below that instant the level falls.
    if (tick - 1) * grid.grains_per_tick < full_at:
        assert tokens(grid, full_at, tick - 1) < cost


# --- the clock's floats ----------------------------------------------------------------------------------------------


@given(st.floats(0, 4e9), st.one_of(st.integers(1, 10**6), st.integers(1, 10**16)), st.sampled_from([1e6, 1e9]))
@example(1_000_000.1, 1, 1e9)
@example(1_700_000_000.123456, 100_000_000, 1e9)
def test_a_wait_in_floats_never_ends_before_its_tick(now: float, ticks: int, unit: float) -> None:
    tick = round(now * unit) + ticks
    wait = seconds_until(tick, now, unit)
    assert round((now + wait) * unit) >= tick


@given(st.integers(0, 10**13), st.integers(1, 10**15))
def test_a_wait_on_a_clock_of_whole_microseconds_is_tight(start: int, ticks: int) -> None:
    now = start / 1e6
    wait = seconds_until(start + ticks, now, 1e6)
    assert round((now + wait) * 1e6) == start + ticks
    assert wait == pytest.approx(ticks / 1e6, rel=0, abs=1e-6)


def test_a_wait_is_the_plain_number_where_floats_allow_it() -> None:
    assert seconds_until(100_000_000, 0.0, 1e9) == 0.1
    assert seconds_until(334 * 10**6, 0.0, 1e9) == 0.334


def test_a_wait_is_mended_where_the_sum_of_floats_falls_short() -> None:
    # 2**-53 is half of what can be told apart at 1.0: the sum would round down to the instant that it started from.
    now, unit = 1.0, 2.0**53
    wait = seconds_until(round(now * unit) + 1, now, unit)
    assert now + wait > now


def test_a_refusal_says_when_to_come_back_or_that_it_is_pointless() -> None:
    later = refusal(Decision(False, 2, 1.5), 3, Policy(5, 1))
    assert (later.code, later.message, later.retry_after) == ("RESOURCE_EXHAUSTED", "Rate limit exceeded", 1.5)
    assert later.details == {"cost": 3, "capacity": 5, "remaining": 2}
    never = refusal(Decision(False, 5, None), 10, Policy(5, 1))
    assert (never.code, never.message) == ("FAILED_PRECONDITION", "Operation cost exceeds capacity")
    assert (never.details, never.retry_after) == ({"cost": 10, "capacity": 5}, None)
