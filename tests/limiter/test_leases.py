from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from trio_wskit.errors import ConfigError
from trio_wskit.limiter._leases import Lease, LeaseBook


@pytest.mark.parametrize("tokens", [1, 0, -1, 2.0, True, None])
def test_a_lease_of_less_than_two_tokens_is_refused(tokens: Any) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        Lease(tokens, 1.0)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "1"])
def test_a_lease_for_no_time_or_for_ever_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="seconds"):
        Lease(10, seconds)


def test_a_lease_is_handed_out_until_it_is_empty() -> None:
    book = LeaseBook(Lease(10, 5.0))
    assert book.take("k", 1, 0.0) is None
    assert book.add("k", 9, 0.0) == 9
    assert [book.take("k", 4, 1.0) for _ in range(3)] == [5, 1, None]
    assert book.take("k", 1, 1.0) == 0
    assert book.take("other", 1, 1.0) is None


def test_a_lease_is_lost_when_its_time_is_over() -> None:
    book = LeaseBook(Lease(10, 5.0))
    book.add("k", 9, 0.0)
    assert book.take("k", 1, 4.999) == 8
    assert book.take("k", 1, 5.0) is None
    assert book.add("k", 9, 5.0) == 9


def test_tokens_that_join_a_lease_end_with_it() -> None:
    book = LeaseBook(Lease(10, 5.0))
    book.add("k", 2, 0.0)
    assert book.add("k", 9, 4.0) == 11
    assert book.take("k", 1, 4.5) == 10
    assert book.take("k", 1, 5.0) is None


def test_tokens_that_join_an_empty_lease_have_their_own_time() -> None:
    book = LeaseBook(Lease(10, 5.0))
    book.add("k", 1, 0.0)
    assert book.take("k", 1, 1.0) == 0
    book.add("k", 9, 4.0)
    assert book.take("k", 1, 8.9) == 8


def test_tokens_that_come_after_the_end_begin_a_new_lease() -> None:
    book = LeaseBook(Lease(10, 5.0))
    book.add("k", 9, 0.0)
    assert book.add("k", 9, 6.0) == 9
    assert book.take("k", 1, 10.0) == 8


def test_more_is_asked_for_up_to_the_capacity_and_never_less_than_is_needed() -> None:
    book = LeaseBook(Lease(10, 5.0))
    assert book.worth(1, 100) == 10
    assert book.worth(1, 4) == 4
    assert book.worth(10, 100) == 10
    assert book.worth(25, 100) == 25


def test_a_forgotten_lease_is_gone() -> None:
    book = LeaseBook(Lease(10, 5.0))
    book.add("k", 9, 0.0)
    book.forget("k")
    book.forget("k")
    assert book.take("k", 1, 0.0) is None


def test_the_oldest_lease_makes_room_for_another() -> None:
    book = LeaseBook(Lease(10, 5.0), most=2)
    for key in ("a", "b", "a", "c"):
        book.add(key, 3, 0.0)
    assert [book.take(key, 1, 1.0) for key in "abc"] == [5, None, 2]


async def test_one_at_a_time_gets_a_lease_and_the_others_look_again() -> None:
    book = LeaseBook(Lease(10, 5.0))
    turns: list[bool] = []

    async def turn() -> None:
        turns.append(await book.turn("k"))

    assert await book.turn("k")
    assert await book.turn("other")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(turn)
        await trio.testing.wait_all_tasks_blocked()
        assert turns == []
        book.done("k")
    assert turns == [False] * 3
    assert await book.turn("k")
