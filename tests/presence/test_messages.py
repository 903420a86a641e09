"""Diffs as messages: of a bounded size, and a chain that shows what is missing."""

from __future__ import annotations

from trio_wskit._core.presence import TopicDiff
from trio_wskit.presence import PresenceDiff, PresenceList, PresenceMember, PresenceView
from trio_wskit.presence._messages import messages_of


def diff_of(joins: int, leaves: int, *, state: bytes = b"1", previous: int = 1000, version: int = 9000) -> TopicDiff:
    return TopicDiff(
        "t",
        previous,
        version,
        joins,
        tuple((f"j{number}", state) for number in range(joins)),
        tuple(f"l{number}" for number in range(leaves)),
    )


def view(version: int = 1000, *names: str) -> PresenceView:
    return PresenceView(PresenceList("t", version, [PresenceMember(name) for name in names]))


def test_a_small_diff_is_one_message() -> None:
    assert list(messages_of(diff_of(1, 2))) == [
        PresenceDiff("t", 1000, 9000, 1, [PresenceMember("j0", 1)], ["l0", "l1"])
    ]


def test_a_large_diff_is_a_chain_of_messages() -> None:
    messages = list(messages_of(diff_of(700, 600)))
    assert [len(one.joins) + len(one.leaves) for one in messages] == [500, 500, 300]
    assert [(one.previous, one.version) for one in messages] == [(1000, 8200), (8200, 8700), (8700, 9000)]
    seen = view(1000, *(f"l{number}" for number in range(600)))
    assert all(map(seen.apply, messages))
    assert sorted(seen.members) == sorted(f"j{number}" for number in range(700))
    assert seen.version == 9000


def test_the_bytes_of_states_are_bounded_too() -> None:
    messages = list(messages_of(diff_of(200, 0, state=b'"' + b"x" * 1000 + b'"')))
    assert [len(one.joins) for one in messages] == [66, 66, 66, 2]


def test_a_diff_that_misses_one_before_it_changes_nothing() -> None:
    seen = view(1000, "ann")
    late = PresenceDiff("t", 1500, 2000, 1, [PresenceMember("bob")], ["ann"])
    assert not seen.apply(late)
    assert (seen.members, seen.version) == ({"ann": None}, 1000)


def test_an_old_diff_and_one_of_another_topic_change_nothing() -> None:
    seen = view(1000, "ann")
    assert seen.apply(PresenceDiff("t", 0, 1000, 0, [], ["ann"]))
    assert seen.apply(PresenceDiff("u", 1000, 2000, 0, [], ["ann"]))
    assert seen.apply(PresenceDiff("t", 500, 900, 0, [], ["ann"]))
    assert seen.members == {"ann": None}


def test_where_nobody_was_the_list_begins_anew() -> None:
    seen = view(1000, "ann", "bob")
    assert seen.apply(PresenceDiff("t", 0, 2000, 1, [PresenceMember("cid", 3)], ["never there"]))
    assert (seen.members, seen.version) == ({"cid": 3}, 2000)
