from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from trio_wskit.errors import ConfigError
from trio_wskit.limiter import Decision, Policy
from trio_wskit.limiter._wire import WirePolicy


def test_a_bucket_s_name_has_prefix_key_and_policy() -> None:
    assert WirePolicy(Policy(10, 2.5, "api:")).key("user:1") == "api:user:1@10@5/2"
    assert WirePolicy(Policy(10, Decimal("2.50"))).key("user:1") == "user:1@10@5/2"
    assert WirePolicy(Policy(10, 2)).key("{user:1}:SEND") == "{user:1}:SEND@10@2"


def test_a_cost_is_whole_microseconds_and_parts_of_one() -> None:
    wire = WirePolicy(Policy(5, 3))
    assert wire.take(1) == "3 1666666 2 333333 1"
    assert wire.lease(3, 1) == "l 3 1666666 2 1000000 0 333333 1"
    assert wire.settle("n-1", 2) == "s n-1 3 666666 2"


def test_an_instant_comes_back_in_grains() -> None:
    wire = WirePolicy(Policy(5, 3))
    assert wire.full_at([0, 1_000_000, 2]) == 3_000_002


def test_an_answer_becomes_a_decision() -> None:
    wire = WirePolicy(Policy(5, 2))
    state = [1_000_000, 2_500_000, 0]  # three tokens owed, of five
    assert wire.decide(1, True, 1_000_000, state) == Decision(True, 2, 0.0)
    assert wire.decide(3, False, 1_000_000, state) == Decision(False, 2, 0.5)
    assert wire.decide(6, False, 1_000_000, state) == Decision(False, 2, None)
    assert wire.decide(2, False, 1_000_000, state) == Decision(True, 2, 0.0), "another bucket has refused"
    assert wire.decide(3, False, 400_000, state) == Decision(False, 2, 1.1), "the server's clock went back"


@pytest.mark.parametrize(
    "policy",
    [
        Policy(1, 10**9),
        Policy(10**9, 10**9),
        Policy(10**15, 10**12),
        Policy(2, 0.1),
        Policy(3, 1 / 3),
        Policy(1, Fraction(2**52, 3)),
    ],
    ids=str,
)
def test_policies_that_people_have_are_taken(policy: Policy) -> None:
    WirePolicy(policy)


def test_a_bucket_that_takes_71_years_to_fill_is_refused() -> None:
    WirePolicy(Policy(2**51 - 1, 10**6))
    with pytest.raises(ConfigError, match="more than 71 years"):
        WirePolicy(Policy(2**51, 10**6))


def test_a_rate_with_more_digits_than_a_double_is_refused() -> None:
    WirePolicy(Policy(1, Fraction(2**52 - 1, 7)))
    with pytest.raises(ConfigError, match="more digits"):
        WirePolicy(Policy(1, Fraction(2**53 - 1, 7)))
