from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.patterns import MAX_SEGMENTS, SubscriptionIndex, TopicPattern, pattern_fault, pattern_matches

NAMES = ["a", "b", "a:a", "a:b", "b:a", "a:a:b", "a:b:a", "", "a:"]
PATTERNS = ["*", "**", "a:*", "a:**", "*:a", "*:*", "*:**", "a:*:*", "*:*:a", "a:*:**", ":**", "*:", "b:**"]


def matches(pattern: str, name: str) -> bool:
    """The rule, as a regular expression."""
    parts = ["[^:]*" if part == "*" else "[^:]*(?::[^:]*)*" if part == "**" else part for part in pattern.split(":")]
    return re.fullmatch(":".join(parts), name) is not None


@pytest.mark.parametrize(
    "pattern", ["room:*", "**", "tenant:**", "*:x:*", "a:*:**", "plain", ":".join("*" * MAX_SEGMENTS)]
)
def test_a_star_is_a_segment_and_two_are_the_last(pattern: str) -> None:
    assert pattern_fault(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("room:a*", "plain"),
        ("***", "plain"),
        ("**:a", "only the last"),
        ("a:**:*", "only the last"),
        (":".join("*" * 9), "at most 8"),
    ],
)
def test_any_other_use_of_stars_is_a_fault(pattern: str, fault: str) -> None:
    assert fault in (pattern_fault(pattern) or "")


def test_a_pattern_is_its_text() -> None:
    assert TopicPattern("room:*") == "room:*"
    assert hash(TopicPattern("room:*")) == hash("room:*")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_finds_what_it_matches_and_nothing_else(pattern: str, name: str) -> None:
    index = SubscriptionIndex()
    index.add("c", pattern)
    assert list(index.subscribers(name)) == (["c"] if matches(pattern, name) else [])


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("xyz"), st.sampled_from([*NAMES, *PATTERNS])), max_size=60),
)
def test_the_index_agrees_with_a_list_of_pairs(steps: list[tuple[bool, str, str]]) -> None:
    index = SubscriptionIndex()
    pairs: list[tuple[str, str]] = []
    for adds, client, name in steps:
        pair = (client, name)
        if adds:
            assert index.add(client, name) == (pair not in pairs)
            pairs += [pair] if pair not in pairs else []
        else:
            assert index.remove(client, name) == (pair in pairs)
            pairs = [other for other in pairs if other != pair]
    assert len(index) == len(pairs)
    assert set(index.names()) == {name for _, name in pairs}
    for name in NAMES:
        found = index.subscribers(name)
        assert sorted(found) == sorted({client for client, held in pairs if held == name or matches(held, name)})
        assert (name in index) == any(held == name for _, held in pairs)
    for client, name in pairs:
        assert index.remove(client, name)
    assert index._root.is_empty()  # pyright: ignore[reportPrivateUsage]
    assert not index._patterns  # pyright: ignore[reportPrivateUsage]


def test_who_matches_twice_is_found_once_and_the_topics_own_come_first() -> None:
    index = SubscriptionIndex()
    for client, name in [("p", "a:*"), ("both", "a:**"), ("e", "a:b"), ("both", "a:b"), ("both", "*:b")]:
        index.add(client, name)
    assert list(index.subscribers("a:b"))[:2] == ["e", "both"]
    assert sorted(index.subscribers("a:b")) == ["both", "e", "p"]


@pytest.mark.parametrize(
    ("patterns", "name", "matching"),
    [
        (["a:b"], "a:b", "exact"),
        (["a:b", "c:*"], "a:b", "exact"),
        (["a:b", "a:**"], "a:b", "prefix"),
        (["**"], "a:b", "prefix"),
        (["a:**", "a:*"], "a:b", "pattern"),
        (["*:**"], "a:b", "pattern"),
        (["a:*"], "a:*", "pattern"),
        (["c:*"], "a:*", "pattern"),
    ],
)
def test_the_widest_kind_of_match_is_told(patterns: list[str], name: str, matching: str) -> None:
    index = SubscriptionIndex()
    for pattern in patterns:
        index.add("c", pattern)
    assert index.match(name)[1] == matching


def test_a_patterns_own_subscribers_can_be_asked_for() -> None:
    index = SubscriptionIndex()
    index.add("c", "a:*")
    index.add("d", "**")
    assert list(index.subscribers("a:*")) == ["c"]
    assert list(index.subscribers("b:*")) == []


class _Counted(dict[str, object]):
    """A dictionary that counts who asks."""

    asked = 0

    def get(self, key: str, default: object = None) -> object:
        type(self).asked += 1
        return super().get(key, default)


@pytest.mark.parametrize("others", [0, 10, 10_000])
def test_patterns_that_do_not_match_cost_nothing(others: int) -> None:
    index = SubscriptionIndex()
    index.add("c", "room:*:typing")
    for n in range(others):
        index.add(f"c{n}", f"room{n}:*:typing")
        index.add(f"c{n}", f"room:*:typing{n}")
        index.add(f"c{n}", f"other:{n}:**")
    nodes = [index._root]  # pyright: ignore[reportPrivateUsage]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children.values())
        node.children = _Counted(node.children)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    _Counted.asked = 0
    assert list(index.subscribers("room:1:typing")) == ["c"]
    assert _Counted.asked == 6  # two at each of three nodes


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_one_pattern_by_itself_matches_as_in_the_index(pattern: str, name: str) -> None:
    assert pattern_matches(pattern, name) == matches(pattern, name)
