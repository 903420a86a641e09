"""The leases of several nodes, merged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trio_wskit._core.presence import (
    MAX_CHANGES,
    PresenceAnswer,
    PresenceBeat,
    PresenceChange,
    PresenceSnapshot,
    PresenceTable,
    TopicDiff,
)
from trio_wskit.errors import ConfigError


class Nodes:
    """Several nodes at one table; their clock is in milliseconds."""

    def __init__(self) -> None:
        self.table = PresenceTable()
        self.now = 1_000_000
        self.numbers: dict[str, int] = {}

    def beat(
        self, node: str, *changes: PresenceChange, ttl: float = 10, doubtful: bool = False, max_members: int = 100
    ) -> PresenceAnswer:
        first = node not in self.numbers
        self.numbers[node] = self.numbers.get(node, 0) + 1
        return self.table.beat(
            PresenceBeat(
                node=node,
                number=self.numbers[node],
                first=first,
                changes=changes,
                doubtful=doubtful,
                ttl=ttl,
                max_members=max_members,
            ),
            self.now,
        )

    def members(self, topic: str = "t") -> dict[str, bytes]:
        snapshot = self.table.members(topic, self.now)
        assert self.table.count(topic, self.now) == len(snapshot.members)
        everybody = {*snapshot.members, "ann", "nobody"}
        assert self.table.count(topic, self.now, everybody) == len(everybody)
        return dict(snapshot.members)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def sides(diffs: Sequence[TopicDiff]) -> list[tuple[dict[str, bytes], tuple[str, ...]]]:
    return [(dict(diff.joins), diff.leaves) for diff in diffs]


def test_a_join_and_a_leave_are_one_link_each_of_a_chain(nodes: Nodes) -> None:
    assert nodes.members() == {}
    joined = nodes.beat("a", ("t", "ann", b"1"), ("t", "bob", b"2"), ("u", "ann", b"1"))
    assert joined.known
    assert joined.held == 3
    assert joined.diffs == (
        TopicDiff("t", 0, 1_000_000, 2, (("ann", b"1"), ("bob", b"2")), ()),
        TopicDiff("u", 0, 1_000_001, 1, (("ann", b"1"),), ()),
    )
    assert nodes.table.members("t", nodes.now) == PresenceSnapshot(1_000_000, {"ann": b"1", "bob": b"2"})
    left = nodes.beat("a", ("t", "ann", None))
    assert left.diffs == (TopicDiff("t", 1_000_000, 1_000_002, 1, (), ("ann",)),)
    assert (left.held, nodes.members()) == (2, {"bob": b"2"})
    assert nodes.beat("a", ("t", "bob", None)).diffs == (TopicDiff("t", 1_000_002, 1_000_003, 0, (), ("bob",)),)
    assert len(nodes.table) == 1
    assert nodes.beat("a", ("t", "bob", b"2")).diffs[0].previous == 0


def test_a_version_leaves_room_for_a_link_for_each_entry(nodes: Nodes) -> None:
    first = nodes.beat("a", ("t", "ann", b"1")).diffs[0]
    many = nodes.beat("a", *(("t", f"i{number}", b"1") for number in range(50))).diffs[0]
    assert many.version - first.version == 50


def test_an_identity_is_there_while_one_node_says_so(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"))
    assert sides(nodes.beat("b", ("t", "ann", b"1")).diffs) == []
    assert nodes.beat("a", ("t", "ann", None)).diffs == ()
    assert nodes.members() == {"ann": b"1"}
    assert sides(nodes.beat("b", ("t", "ann", None)).diffs) == [({}, ("ann",))]
    assert nodes.beat("b", ("t", "ann", None)).diffs == ()


def test_the_state_is_what_was_told_last(nodes: Nodes) -> None:
    nodes.beat("b", ("t", "ann", b"1"))
    assert sides(nodes.beat("a", ("t", "ann", b"2")).diffs) == [({"ann": b"2"}, ())]
    nodes.now -= 500  # a clock that was set back
    assert sides(nodes.beat("b", ("t", "ann", b"3")).diffs) == [({"ann": b"3"}, ())]
    assert sides(nodes.beat("b", ("t", "ann", None)).diffs) == [({"ann": b"2"}, ())]


def test_a_node_whose_lease_is_over_is_swept_away_by_another(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), ("t", "bob", b"1"), ttl=2)
    nodes.beat("b", ("t", "ann", b"2"), ttl=60)
    nodes.now += 1_999
    assert nodes.members() == {"ann": b"2", "bob": b"1"}
    nodes.now += 1
    assert nodes.members() == {"ann": b"2"}
    swept = nodes.beat("b", ttl=60)
    assert (sides(swept.diffs), swept.more) == ([({}, ("bob",))], False)
    assert nodes.members() == {"ann": b"2"}
    late = nodes.beat("a", ("t", "bob", b"1"))
    assert (late.known, late.diffs) == (False, ())


def test_a_beat_renews_all_of_a_node(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), ttl=2)
    for _ in range(5):
        nodes.now += 1_900
        assert nodes.beat("a", ttl=2).held == 1
    assert nodes.members() == {"ann": b"1"}


def test_a_node_finds_its_own_lease_over(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), ttl=2)
    nodes.now += 2_000
    late = nodes.beat("a", ("t", "ann", b"2"))
    assert (late.known, sides(late.diffs)) == (False, [({}, ("ann",))])


def test_sweeping_is_bounded(nodes: Nodes) -> None:
    for node in range(3):
        nodes.beat(f"n{node}", *(("t", f"{node}-{number}", b"1") for number in range(MAX_CHANGES)), max_members=9_999)
    nodes.now += 10_000
    seen: list[int] = []
    for last in (False, False, True):
        answer = nodes.beat("b", ttl=60)
        assert answer.more is not last
        seen.append(sum(len(diff.leaves) for diff in answer.diffs))
    assert seen == [1000, 1000, 1000]
    assert len(nodes.table) == 0


def test_a_doubtful_beat_reports_what_may_have_been_reported(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), ("u", "bob", b"1"))
    nodes.beat("a", ("u", "bob", None))
    again = nodes.beat("a", ("t", "ann", b"1"), ("u", "bob", None), doubtful=True)
    assert sides(again.diffs) == [({"ann": b"1"}, ()), ({}, ("bob",))]
    assert (again.diffs[1].previous, again.diffs[1].count) == (0, 0)
    assert again.diffs[1].version > again.diffs[0].version


def test_a_beat_that_was_overtaken_does_nothing(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"))
    nodes.beat("a", ("t", "ann", None))
    nodes.numbers["a"] = 0
    assert nodes.beat("a", ("t", "ann", b"1")) == PresenceAnswer()
    assert nodes.members() == {}


def test_a_table_that_was_set_back_says_so(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"))
    nodes.beat("a", ("t", "ann", b"2"))
    going_on = PresenceBeat(node="a", number=3, answered=2)
    assert nodes.table.beat(going_on, nodes.now).known
    set_back = PresenceBeat(node="a", number=9, answered=8, changes=[("t", "ann", b"3")])
    assert not nodes.table.beat(set_back, nodes.now).known
    assert nodes.members() == {"ann": b"2"}


def test_one_member_too_many_is_refused_and_no_other(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), max_members=2)
    answer = nodes.beat("b", ("t", "bob", b"1"), ("t", "cid", b"1"), ("t", "ann", b"2"), max_members=2)
    assert answer.refused == (("t", "cid"),)
    assert (answer.held, nodes.members()) == (2, {"ann": b"2", "bob": b"1"})


def test_a_retired_node_has_a_shorter_lease(nodes: Nodes) -> None:
    nodes.beat("a", ("t", "ann", b"1"), ttl=10)
    nodes.table.retire("a", 60, nodes.now)
    nodes.table.retire("a", 3, nodes.now)
    nodes.table.retire("nobody", 3, nodes.now)
    nodes.now += 2_999
    assert nodes.members() == {"ann": b"1"}
    nodes.now += 1
    assert nodes.members() == {}


def test_a_beat_is_bounded() -> None:
    with pytest.raises(ConfigError, match="at most 1000 changes, not 1001"):
        PresenceBeat(node="a", number=1, changes=[("t", "i", b"1")] * 1001)
