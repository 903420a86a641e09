from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_wskit._core.topics import MAX_TOPIC_LENGTH, TopicIndex, TopicRules, check_topic
from trio_wskit.errors import ConfigError, PubSubError


@pytest.mark.parametrize("topic", ["room:1", "A", "a/b.c-d_e", "0", "x" * MAX_TOPIC_LENGTH])
def test_a_usual_name_is_a_topic(topic: str) -> None:
    check_topic(topic)


@pytest.mark.parametrize("topic", ["", "room@invalid!topic", "a b", "é", "room:1\n", "\u017f", "\u212a"])
def test_a_name_must_match_as_a_whole_in_ascii(topic: str) -> None:
    with pytest.raises(PubSubError) as caught:
        check_topic(topic)
    assert caught.value.reason == "INVALID_TOPIC"
    assert caught.value.details == {"reason": "INVALID_TOPIC", "why": "pattern"}
    assert repr(topic) in caught.value.message


def test_a_long_name_is_refused_for_its_length_before_its_letters() -> None:
    with pytest.raises(PubSubError) as caught:
        check_topic("!" * 129)
    assert caught.value.details == {"reason": "INVALID_TOPIC", "why": "length", "length": 129, "max": 128}


@pytest.mark.parametrize("topic", [5, None, b"room", ["room"]])
def test_what_is_no_string_is_no_topic(topic: Any) -> None:
    with pytest.raises(PubSubError, match="a topic is a string") as caught:
        check_topic(topic)
    assert caught.value.details == {"reason": "INVALID_TOPIC", "why": "type"}


def test_pattern_and_length_can_be_the_callers() -> None:
    check_topic("ü" * 200, pattern=re.compile("ü+"), max_length=200)
    with pytest.raises(PubSubError, match="at most 3"):
        check_topic("room", max_length=3)


def test_the_first_subscription_counts_and_the_second_does_not() -> None:
    index = TopicIndex()
    assert index.add("c1", "t")
    assert not index.add("c1", "t")
    assert index.add("c2", "t")
    assert list(index.subscribers("t")) == ["c1", "c2"]
    assert len(index) == 2


def test_removing_what_is_not_there_is_no_change() -> None:
    index = TopicIndex()
    assert not index.remove("c1", "t")
    index.add("c1", "t")
    assert not index.remove("c2", "t")
    assert index.remove("c1", "t")
    assert not index.remove("c1", "t")


def test_nothing_is_kept_for_an_empty_topic_or_client() -> None:
    index = TopicIndex()
    index.add("c1", "t")
    index.add("c1", "u")
    index.add("c2", "t")
    index.remove("c1", "t")
    assert "t" in index
    index.remove("c2", "t")
    assert "t" not in index
    assert list(index.topics()) == ["u"]
    assert not index.topics_of("c2")
    index.remove("c1", "u")
    assert not index._by_topic  # pyright: ignore[reportPrivateUsage]
    assert not index._by_client  # pyright: ignore[reportPrivateUsage]


def test_an_unknown_topic_has_no_subscribers_and_an_unknown_client_no_topics() -> None:
    index = TopicIndex()
    assert not index.subscribers("t")
    assert not index.topics_of("c1")
    assert "t" not in index
    assert len(index) == 0


class IndexMachine(RuleBasedStateMachine):
    """Against a plain list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.index = TopicIndex()
        self.pairs: list[tuple[str, str]] = []

    @rule(client=st.sampled_from("abc"), topic=st.sampled_from("xyz"))
    def add(self, client: str, topic: str) -> None:
        assert self.index.add(client, topic) == ((client, topic) not in self.pairs)
        if (client, topic) not in self.pairs:
            self.pairs.append((client, topic))

    @rule(client=st.sampled_from("abc"), topic=st.sampled_from("xyz"))
    def remove(self, client: str, topic: str) -> None:
        assert self.index.remove(client, topic) == ((client, topic) in self.pairs)
        if (client, topic) in self.pairs:
            self.pairs.remove((client, topic))

    @invariant()
    def both_ways_are_in_step(self) -> None:
        for topic in "xyz":
            clients = [client for client, held in self.pairs if held == topic]
            assert list(self.index.subscribers(topic)) == clients
            assert (topic in self.index) == bool(clients)
        for client in "abc":
            assert list(self.index.topics_of(client)) == [topic for held, topic in self.pairs if held == client]
        assert set(self.index.topics()) == {topic for _, topic in self.pairs}
        assert len(self.index) == len(self.pairs)


TestIndexMachine = IndexMachine.TestCase


def test_the_rules_of_an_app_are_bounds_and_a_pattern_that_may_be_text() -> None:
    TopicRules().check("room:1")
    rules = TopicRules(pattern="[ü*]+", max_length=3, max_per_connection=None, max_subscribers=5)
    rules.check("üüü")
    with pytest.raises(PubSubError) as caught:
        rules.check("ü*")  # a star makes a pattern, whatever the rules say
    assert caught.value.details == {"reason": "INVALID_TOPIC", "why": "pattern"}
    with pytest.raises(PubSubError) as caught:
        rules.check("üüüü")
    assert caught.value.details["why"] == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "["},
        {"max_length": 0},
        {"max_per_connection": 0},
        {"max_subscribers": True},
        {"max_message_bytes": 1.5},
        {"max_publishing": -1},
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="TopicRules"):
        TopicRules(**options)


@pytest.mark.parametrize(
    ("pattern", "fault", "why"),
    [
        ("room:*", None, None),
        ("r m:*", None, "pattern"),
        ("room:a*", "no", "pattern"),
        ("*" * 200, "no", "length"),
        ("room:" * 30 + "*", None, "length"),
    ],
)
def test_a_pattern_keeps_the_rules_in_its_plain_parts(pattern: str, fault: str | None, why: str | None) -> None:
    if why is None:
        TopicRules().check_pattern(pattern, fault)
        return
    with pytest.raises(PubSubError) as caught:
        TopicRules().check_pattern(pattern, fault)
    assert caught.value.details["why"] == why
