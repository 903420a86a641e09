"""What is refused: topics without a history, positions that are none, rules and names that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.pubsub.histories import KEEP, T, say
from tests.sessions import Said, open_house
from trio_wskit import (
    App,
    ConfigError,
    PubSubError,
    PubSubPolicy,
    Router,
    TopicPattern,
    TopicRules,
    WsKitError,
)
from trio_wskit._core.history import History, Position
from trio_wskit.pubsub.history import MemoryHistory


@pytest.mark.parametrize("ask", [{"since": Position("e", 1)}, {"last": 1}, {"snapshot": len}])
@pytest.mark.parametrize("history", [None, KEEP])
async def test_a_topic_without_history_says_so(ask: Any, history: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=history) as house:
        client = await house.connect()
        for topic in ("other", TopicPattern("kept:*")):
            with pytest.raises(WsKitError, match="keeps no history") as refused:
                await client.session.topics.subscribe(topic, **ask)
            assert refused.value.code == "FAILED_PRECONDITION"
        assert len(client.session.topics) == 0


@pytest.mark.parametrize(
    "ask", [{"since": 5}, {"since": ("e", 1)}, {"since": {"epoch": "e"}}, {"last": 0}, {"last": True}, {"last": 1.5}]
)
async def test_what_is_no_position_is_refused(ask: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        with pytest.raises(WsKitError, match="takes a") as refused:
            await client.session.topics.subscribe(T, **ask)
        assert refused.value.code == "INVALID_ARGUMENT"
        assert len(client.session.topics) == 0


async def test_only_one_way_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        with pytest.raises(TypeError, match="one of since, last and snapshot"):
            await client.session.topics.subscribe(T, since=Position("e", 1), last=2)


async def test_a_name_that_is_none_is_refused_as_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history={"**": History()}) as house:
        client = await house.connect()
        with pytest.raises(PubSubError, match="a topic matches"):
            await client.session.topics.subscribe("no topic", last=1)


def test_a_store_without_topics_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="say which topics keep one"):
        App(Router(), history_store=MemoryHistory())


async def test_a_rule_that_fails_is_told(autojump_clock: trio.testing.MockClock) -> None:
    def keep(topic: str) -> Any:
        return 100

    async with open_house(history=keep) as house:
        client = await house.connect()
        with pytest.raises(TypeError, match="history\\('t'\\) gives a History or None, not 100"):
            await client.session.topics.subscribe("t")
        result = await house.app.publish("t", Said("a"))
        assert (result.ok, result.error) == (False, "ADAPTER_ERROR")


async def test_the_name_is_normalised_once(autojump_clock: trio.testing.MockClock) -> None:
    policy = PubSubPolicy(normalise=lambda topic: topic + "!")
    rules = TopicRules(pattern="[a-z:0-9]+!")
    async with open_house(history={"kept:1!": History()}, policy=policy, topics=rules) as house:
        client = await house.connect()
        await say(house, "1", "2")
        assert (await client.session.topics.subscribe(T, last=1)).replayed == 1
        assert list(client.session.topics) == ["kept:1!"]
        await client.session.topics.subscribe("other")
        assert "other!" in client.session.topics
