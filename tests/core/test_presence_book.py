"""What this process knows of its members, and when the store hears of it."""

from __future__ import annotations

from math import inf

import pytest

from trio_wskit._core.presence import PresenceChange
from trio_wskit._core.presence_book import PresenceBook


@pytest.fixture
def book() -> PresenceBook:
    return PresenceBook(debounce=1, linger=5)


def tell(book: PresenceBook, now: float) -> list[PresenceChange]:
    """Tell a store that takes everything."""
    changes, doubtful = book.take(now)
    assert not doubtful
    assert book.confirm(changes, (), now) == set()
    return changes


def test_changes_wait_for_the_end_of_one_window(book: PresenceBook) -> None:
    assert book.due() == inf
    book.join("c1", "t", "ann", b"1", 10)
    book.join("c2", "t", "bob", b"2", 10.5)
    assert book.due() == 11
    assert book.pending("t") == {"ann": b"1", "bob": b"2"}
    assert book.unconfirmed("t") == ["ann", "bob"]
    assert tell(book, 11) == [("t", "ann", b"1"), ("t", "bob", b"2")]
    assert (book.due(), book.held, book.doubts) == (inf, 2, 0)
    assert book.pending("t") == {}
    assert book.unconfirmed("t") == []
    assert (book.members("t"), book.members("other")) == (2, 0)


def test_what_the_store_was_told_and_has_not_confirmed_it_may_not_know(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    tell(book, 1)
    book.join("c1", "t", "ann", b"2", 2)
    book.join("c2", "t", "bob", b"1", 2)
    assert book.unconfirmed("t") == ["bob"]  # of ann it knows an older state
    changes, _ = book.take(3)
    assert book.unconfirmed("t") == ["ann", "bob"]
    book.confirm(changes, (), 3)
    assert book.unconfirmed("t") == book.unconfirmed("elsewhere") == []
    book.leave("c1", "t", 4)
    changes, _ = book.take(9)
    assert book.unconfirmed("t") == []  # who is on the way out is not there


def test_what_nobody_has_heard_of_goes_without_a_word(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 10)
    assert book.leave("c1", "t", 10.5)
    assert (book.due(), book.members("t"), book.places("c1")) == (inf, 0, 0)
    assert not book.leave("c1", "t", 10.5)


def test_who_loses_the_last_device_lingers(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    tell(book, 1)
    book.leave("c1", "t", 2)
    assert book.due() == 8  # two, five of lingering, and a window
    assert book.has("t", "ann")
    assert book.pending("t") == {}
    assert tell(book, 6.9) == []
    assert tell(book, 8) == [("t", "ann", None)]
    assert (book.members("t"), book.held) == (0, 0)


def test_who_is_back_in_time_was_never_away(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    tell(book, 1)
    book.leave("c1", "t", 2)
    book.join("c2", "t", "ann", b"1", 6)
    assert book.due() == inf
    book.leave("c2", "t", 7)
    assert book.due() == 13


def test_the_device_that_spoke_last_says_the_state(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c2", "t", "ann", b"2", 0)
    assert tell(book, 1) == [("t", "ann", b"2")]
    book.join("c1", "t", "ann", b"3", 2)
    assert tell(book, 3) == [("t", "ann", b"3")]
    book.leave("c1", "t", 4)
    assert tell(book, 5) == [("t", "ann", b"2")]
    book.join("c1", "t", "ann", b"4", 6)
    book.leave("c1", "t", 6.5)  # back to what the store has
    assert book.due() == inf


def test_a_change_that_is_undone_leaves_the_others_in_their_window(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c2", "t", "bob", b"1", 0.5)
    book.leave("c1", "t", 0.7)
    assert book.due() == 1


def test_a_client_has_devices_in_several_topics_and_blocks(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c1", "t", "ann", b"1", 0, block=7)
    book.join("c1", "u", "ann", b"1", 0)
    assert book.places("c1") == 3
    assert book.is_present("c1", "t", 7)
    assert not book.is_present("c1", "u", 7)
    assert not book.is_present("c2", "t")
    tell(book, 1)
    book.leave("c1", "t", 2)
    assert book.due() == inf
    book.leave_all("c1", 3)
    book.leave_all("c1", 3)
    assert tell(book, 9) == [("t", "ann", None), ("u", "ann", None)]


def test_a_client_that_calls_itself_otherwise_is_the_other_one(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c1", "t", "bob", b"1", 0)
    assert tell(book, 1) == [("t", "bob", b"1")]


def test_the_store_hears_a_thousand_at_once(book: PresenceBook) -> None:
    for number in range(1500):
        book.join(f"c{number}", "t", f"i{number}", b"1", 0)
    assert len(tell(book, 1)) == 1000
    assert book.due() == 1
    assert len(tell(book, 1)) == 500
    assert book.due() == inf


def test_what_failed_is_told_again_with_the_word_that_it_may_be_known(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c2", "t", "bob", b"2", 0)
    tell(book, 1)
    book.leave("c2", "t", 2)
    book.join("c1", "t", "ann", b"3", 7)
    changes, doubtful = book.take(8)
    assert (changes, doubtful) == ([("t", "bob", None), ("t", "ann", b"3")][::-1], False)
    assert (book.held, book.doubts) == (0, 2)
    book.doubt(changes, 8)
    assert book.due() == 9
    assert book.pending("t") == {"ann": b"3"}
    assert book.take(9) == (changes, True)
    assert book.confirm(changes, (), 9) == set()
    assert (book.held, book.doubts, book.members("t")) == (1, 0, 1)


def test_who_comes_back_while_the_store_is_told_of_the_leave_is_told_again(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    tell(book, 1)
    book.leave("c1", "t", 2)
    changes, _ = book.take(7)
    assert changes == [("t", "ann", None)]
    book.join("c2", "t", "ann", b"1", 7)
    book.confirm(changes, (), 7.5)
    assert tell(book, 9) == [("t", "ann", b"1")]


def test_who_leaves_while_the_store_is_told_of_the_join_lingers(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    changes, _ = book.take(1)
    book.leave("c1", "t", 1.5)
    book.confirm(changes, (), 2)
    assert book.due() == 7.5
    assert tell(book, 7.5) == [("t", "ann", None)]


def test_who_leaves_while_a_call_fails_lingers(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    changes, _ = book.take(1)
    book.leave("c1", "t", 1.5)
    book.doubt(changes, 2)
    assert book.due() == 7.5
    assert book.take(7.5) == ([("t", "ann", None)], True)


def test_who_comes_and_goes_again_while_the_store_is_told_of_the_leave_is_forgotten(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    tell(book, 1)
    book.leave("c1", "t", 2)
    changes, _ = book.take(7)
    book.join("c2", "t", "ann", b"1", 7)
    book.leave("c2", "t", 7)
    book.confirm(changes, (), 7.5)
    assert (book.due(), book.members("t")) == (inf, 0)


def test_the_refused_are_not_there(book: PresenceBook) -> None:
    book.join("c1", "t", "ann", b"1", 0)
    book.join("c2", "t", "ann", b"1", 0)
    book.join("c3", "t", "bob", b"1", 0)
    book.join("c4", "t", "cid", b"1", 0)
    changes, _ = book.take(1)
    book.leave("c3", "t", 1)
    assert book.confirm(changes, [("t", "ann"), ("t", "bob")], 1) == {("c1", "t"), ("c2", "t")}
    assert (book.members("t"), book.held, book.due()) == (1, 1, inf)
    assert (book.places("c1"), book.places("c3")) == (0, 0)


def test_a_store_that_knows_nothing_is_told_of_all(book: PresenceBook) -> None:
    for name in ("ann", "bob", "cid"):
        book.join(f"c-{name}", "t", name, b"1", 0)
    tell(book, 1)
    book.leave("c-bob", "t", 2)
    book.leave("c-cid", "t", 4)
    changes, _ = book.take(7.5)
    assert changes == [("t", "bob", None)]
    book.start_again(7.5)
    assert (book.held, book.doubts) == (0, 2)
    assert book.take(8.5) == ([("t", "ann", b"1"), ("t", "bob", None)], True)
    book.confirm([("t", "ann", b"1"), ("t", "bob", None)], (), 8.5)
    assert book.take(10) == ([("t", "cid", None)], True)
