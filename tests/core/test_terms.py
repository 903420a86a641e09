from __future__ import annotations

import pytest

from trio_wskit._core.overflow import block, conflate
from trio_wskit._core.terms import Positions, Terms, TermsBook


def test_nothing_is_kept_of_a_client_without_terms() -> None:
    book = TermsBook()
    assert book.set("me", "a", Terms(gaps=True)) is None
    assert book.set("me", "b", Terms(conflate())) is None
    assert (len(book), book.gaps, book.conflating) == (1, 1, 1)
    assert book.set("me", "a", None) == Terms(gaps=True)
    book.forget("me", ["b", "c"])
    book.forget("you", ["b"])
    assert book.set("me", "a", None) is None
    assert (len(book), book.gaps, book.conflating) == (0, 0, 0)


def test_new_terms_replace_the_old_ones() -> None:
    book = TermsBook()
    book.set("me", "a", Terms(conflate(), gaps=True))
    assert book.set("me", "a", Terms("drop_oldest")) == Terms(conflate(), gaps=True)
    assert (book.gaps, book.conflating) == (0, 0)
    assert book.overflow_of("me", "a") == "drop_oldest"


def test_a_policy_is_that_of_the_topic_itself_before_those_of_patterns_the_oldest_first() -> None:
    book = TermsBook()
    book.set("me", "room:*", Terms("drop_newest"))
    book.set("me", "room:**", Terms(block(1)))
    assert book.overflow_of("me", "room:1") == "drop_newest"
    assert book.overflow_of("me", "room:1:typing") == block(1)
    assert book.overflow_of("me", "lobby") is None
    assert book.overflow_of("you", "room:1") is None
    book.set("me", "room:1", Terms("disconnect"))
    assert book.overflow_of("me", "room:1") == "disconnect"
    book.set("me", "room:1", Terms(gaps=True))
    assert book.overflow_of("me", "room:1") == "drop_newest"


def test_notices_are_wanted_by_whoever_asked_in_any_matching_subscription() -> None:
    book = TermsBook()
    book.set("me", "room:*", Terms(gaps=True))
    book.set("me", "room:1", Terms("drop_oldest"))
    book.set("you", "room:1", Terms("drop_oldest"))
    assert book.wants_gaps("me", "room:1")
    assert not book.wants_gaps("me", "lobby")
    assert not book.wants_gaps("you", "room:1")
    assert not book.wants_gaps("nobody", "room:1")
    assert book.seekers() == [("me", "room:*")]


def test_positions_count_from_one_for_each_topic() -> None:
    positions = Positions()
    assert [positions.next(topic) for topic in "aabaa"] == [1, 2, 1, 3, 4]
    positions.clear()
    assert len(positions) == 0
    assert positions.next("a") == 1


@pytest.mark.parametrize("count", [1, 3])
def test_positions_are_bounded_and_forget_the_topic_that_was_quiet_for_longest(count: int) -> None:
    positions = Positions(count)
    for n in range(5):
        positions.next(str(n))
        positions.next(str(n))
        assert len(positions) <= count
    assert positions.next("4") == 3
    assert positions.next("0") == 1
