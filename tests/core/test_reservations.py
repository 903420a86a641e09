from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.bucket import Decision
from trio_wskit._core.reservations import Ledger, Reservation
from trio_wskit.errors import WsKitError


def plain(spends: list[tuple[int, int]], full_at: int = 0) -> int:
    """What a bucket is after these spendings, by the definition."""
    for now, cost in spends:
        full_at = max(full_at, now) + cost
    return full_at


def test_a_reservation_given_back_leaves_no_trace() -> None:
    ledger = Ledger(100)
    number = ledger.reserve(50, 30)
    assert (ledger.full_at, ledger.open) == (130, 1)
    ledger.settle(number, 0)
    assert (ledger.full_at, ledger.open) == (100, 0)


def test_giving_back_creates_no_token_that_the_brim_would_have_cost() -> None:
    # Reserved 5 of a full bucket; by 5 it is full again. Another spends 8; without the reservation it would owe 8 too.
    ledger = Ledger(0)
    number = ledger.reserve(0, 5)
    ledger.spend(5, 8)
    ledger.settle(number, 0)
    assert ledger.full_at == 13


def test_giving_back_loses_no_token_that_was_never_over_the_brim() -> None:
    ledger = Ledger(0)
    number = ledger.reserve(0, 5)
    ledger.spend(0, 3)
    ledger.settle(number, 0)
    assert ledger.full_at == 3


actions = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(0, 15), st.sampled_from(["spend", "reserve", "settle"]), st.integers(0, 100)
    ),
    max_size=60,
)


@given(actions)
def test_settling_is_as_if_the_settled_cost_had_been_spent_from_the_start(
    actions: list[tuple[int, int, str, int]],
) -> None:
    ledger = Ledger(0)
    history: list[tuple[int, int]] = []
    open_at: dict[int, int] = {}
    now = 0
    for step, cost, kind, pick in actions:
        now += step
        if kind == "spend":
            ledger.spend(now, cost)
            history.append((now, cost))
        elif kind == "reserve":
            open_at[ledger.reserve(now, cost)] = len(history)
            history.append((now, cost))
        elif open_at:
            number = sorted(open_at)[pick % len(open_at)]
            place = open_at.pop(number)
            actual = min(cost, history[place][1])
            ledger.settle(number, actual)
            history[place] = (history[place][0], actual)
        assert ledger.full_at == plain(history)
        assert ledger.open == len(open_at)


def test_a_done_reservation_pays_all_and_a_failed_one_nothing() -> None:
    reservation = Reservation(5, Decision(True, 0, 0.0))
    assert reservation.owed(failed=False) == 5
    assert reservation.owed(failed=True) == 0


def test_a_settled_reservation_pays_what_was_settled_even_when_it_fails() -> None:
    reservation = Reservation(5, Decision(True, 0, 0.0))
    reservation.settle(4)
    reservation.settle(2)
    assert reservation.owed(failed=False) == 2
    assert reservation.owed(failed=True) == 2


@pytest.mark.parametrize("actual", [6, -1, 0.5, True, None])
def test_a_reservation_is_settled_for_no_more_than_was_reserved(actual: Any) -> None:
    reservation = Reservation(5, Decision(True, 0, 0.0))
    with pytest.raises(WsKitError) as caught:
        reservation.settle(actual)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert reservation.owed(failed=False) == 5


def test_a_later_reservation_is_settled_before_an_earlier_one() -> None:
    ledger = Ledger(0)
    first = ledger.reserve(0, 5)
    second = ledger.reserve(0, 7)
    ledger.settle(second, 2)
    assert ledger.full_at == plain([(0, 5), (0, 2)])
    ledger.settle(first, 0)
    assert ledger.full_at == plain([(0, 2)])
