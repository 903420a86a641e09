from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_wskit.limiter._breaker import Breaker


def test_it_is_closed_until_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        assert breaker.closed_after(0.0, busy=True) == 0.0
        breaker.succeeded()
    assert breaker.openings == 0


def test_open_it_lets_nobody_ask_until_its_time_is_over() -> None:
    breaker = Breaker(2, 10.0)
    breaker.failed(0.0)
    breaker.failed(1.0)
    assert breaker.openings == 1
    assert breaker.closed_after(1.0, busy=False) == 10.0
    assert breaker.closed_after(10.5, busy=False) == 0.5
    assert breaker.closed_after(11.0, busy=False) == 0.0


def test_half_open_it_lets_one_call_ask_and_the_others_wait() -> None:
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0)
    assert breaker.closed_after(10.0, busy=False) == 0.0
    assert breaker.closed_after(10.0, busy=True) == 10.0


def test_a_failure_while_half_open_opens_it_again_at_once() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(3):
        breaker.failed(0.0)
    breaker.failed(12.0)
    assert breaker.closed_after(12.0, busy=False) == 10.0
    assert breaker.openings == 2


def test_a_success_closes_it() -> None:
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0)
    breaker.succeeded()
    assert breaker.closed_after(0.0, busy=True) == 0.0


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40))
def test_it_is_never_open_for_longer_than_its_time(failures: int, calls: list[tuple[bool, int]]) -> None:
    breaker, now = Breaker(failures, 10.0), 0
    for works, gap in calls:
        now += gap
        assert 0.0 <= breaker.closed_after(now, busy=False) <= 10.0
        if breaker.closed_after(now, busy=False) == 0.0:
            breaker.succeeded() if works else breaker.failed(now)
