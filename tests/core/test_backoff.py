from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.backoff import Backoff, RetryBudget, retry_after_seconds
from trio_wskit.errors import ConfigError


def test_the_delay_doubles_until_it_is_the_longest() -> None:
    backoff = Backoff(initial_delay=0.3, max_delay=2.0, jitter="none")
    assert [backoff.delay(attempt, 0.5) for attempt in range(1, 6)] == [0.3, 0.6, 1.2, 2.0, 2.0]


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_with_jitter_the_delay_is_a_part_of_what_it_is_without(attempt: int, randomness: float) -> None:
    whole = Backoff(jitter="none").delay(attempt, randomness)
    assert Backoff().delay(attempt, randomness) == whole * randomness
    assert 0.3 <= whole <= 10.0


@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan, "1", True])
def test_a_delay_is_a_finite_number_of_seconds(wrong: float) -> None:
    with pytest.raises(ConfigError, match="max_delay takes seconds"):
        Backoff(max_delay=wrong)


def test_there_are_two_kinds_of_jitter() -> None:
    with pytest.raises(ConfigError, match="'full' or 'none', not 'half'"):
        Backoff(jitter="half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_budget_allows_a_burst_of_retries_and_then_a_share_of_the_requests() -> None:
    budget = RetryBudget(max_tokens=4, token_ratio=0.25)
    assert [budget.failed() for _ in range(3)] == [True, False, False]
    for _ in range(8):
        budget.succeeded()
    assert budget.tokens == 3
    assert budget.failed() is False
    for _ in range(100):
        budget.succeeded()
    assert budget.tokens == 4


def test_a_budget_is_never_in_debt() -> None:
    budget = RetryBudget(max_tokens=1)
    assert [budget.failed(), budget.failed()] == [False, False]
    assert budget.tokens == 0


@pytest.mark.parametrize(("tokens", "ratio"), [(0, 1), (1, 0), (math.inf, 1), (1, math.nan)])
def test_a_budget_takes_numbers_above_nothing(tokens: float, ratio: float) -> None:
    with pytest.raises(ConfigError, match="RetryBudget"):
        RetryBudget(tokens, ratio)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 400, None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:10:00 GMT", 500.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Thu, 01 Jan 99999999 00:00:10 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, 100.0) == seconds
