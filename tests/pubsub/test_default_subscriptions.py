"""The handlers of `default_subscriptions`, as a client sees them on the wire."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Client, House, Said, error_of, open_house
from trio_wskit import ConfigError, History, Position, PubSubPolicy, Router, Session
from trio_wskit.pubsub import default_subscriptions

T = "kept:1"
KEEP = {"kept:*": History(3)}


def router() -> Router:
    made = Router()
    default_subscriptions(made)
    return made


async def ask(client: Client, kind: str, **payload: object) -> list[dict[str, Any]]:
    """Ask, and give all that comes; the answer's timestamp is left out."""
    client.send(kind, payload, call_id="1")
    heard = await client.heard()
    for one in heard:
        del one["meta"]["timestamp"]
    return heard


async def say(house: House, *texts: str) -> Position:
    position = None
    for text in texts:
        position = (await house.app.publish(T, Said(text))).position
    assert position is not None
    return position


async def test_a_topic_without_history_is_answered_as_ever(autojump_clock: MockClock) -> None:
    async with open_house(router(), history=KEEP) as house:
        client = await house.connect()
        assert await ask(client, "SUBSCRIBE", topic="other") == [
            {"type": "SUBSCRIBED", "meta": {"correlationId": "1"}, "payload": {"topic": "other"}}
        ]
        assert "other" in client.session.topics
        assert await ask(client, "UNSUBSCRIBE", topic="other") == [
            {"type": "UNSUBSCRIBED", "meta": {"correlationId": "1"}, "payload": {"topic": "other"}}
        ]
        assert len(client.session.topics) == 0


async def test_a_topic_with_history_is_answered_with_its_position(autojump_clock: MockClock) -> None:
    async with open_house(router(), history=KEEP) as house:
        newest = await say(house, "1", "2")
        client = await house.connect()
        (answer,) = await ask(client, "SUBSCRIBE", topic=T)
        assert answer["payload"] == {"topic": T, "epoch": newest.epoch, "offset": 2}


async def test_what_was_missed_comes_before_the_answer(autojump_clock: MockClock) -> None:
    async with open_house(router(), history=KEEP) as house:
        newest = await say(house, "1", "2", "3")
        client = await house.connect()
        since = {"epoch": newest.epoch, "offset": 1}
        *missed, answer = await ask(client, "SUBSCRIBE", topic=T, since=since)
        assert [one["payload"]["text"] for one in missed] == ["2", "3"]
        assert answer["payload"] == {"topic": T, "recovered": True, "epoch": newest.epoch, "offset": 3}


@pytest.mark.parametrize("since", [{"epoch": "nobody's", "offset": 1}, {"offset": 99}, {"offset": 0}])
async def test_what_cannot_be_recovered_is_said(since: dict[str, Any], autojump_clock: MockClock) -> None:
    async with open_house(router(), history=KEEP) as house:
        newest = await say(house, *"12345")
        client = await house.connect()
        (answer,) = await ask(client, "SUBSCRIBE", topic=T, since={"epoch": newest.epoch, **since})
        assert answer["payload"] == {"topic": T, "recovered": False, "epoch": newest.epoch, "offset": 5}


async def test_a_topic_that_keeps_none_any_more_is_not_recovered(autojump_clock: MockClock) -> None:
    async with open_house(router()) as house:
        client = await house.connect()
        (answer,) = await ask(client, "SUBSCRIBE", topic=T, since={"epoch": "e", "offset": 1})
        assert answer["payload"] == {"topic": T, "recovered": False}
        assert T in client.session.topics


@pytest.mark.parametrize(
    "since",
    [
        5,
        "x",
        [],
        {},
        {"epoch": "e"},
        {"epoch": "e", "offset": -1},
        {"epoch": "e", "offset": 1.5},
        {"epoch": "e", "offset": "1"},
        {"epoch": "e", "offset": True},
        {"epoch": "e", "offset": 2**53},
        {"epoch": "", "offset": 1},
        {"epoch": "e" * 65, "offset": 1},
        {"epoch": "e", "offset": 1, "more": 1},
    ],
)
async def test_what_is_no_position_is_an_invalid_argument(since: object, autojump_clock: MockClock) -> None:
    async with open_house(router(), history=KEEP) as house:
        client = await house.connect()
        (answer,) = await ask(client, "SUBSCRIBE", topic=T, since=since)
        assert error_of(answer) == "INVALID_ARGUMENT"
        assert answer["payload"]["details"]["issues"][0]["path"].startswith("since")
        assert len(client.session.topics) == 0


async def test_the_policy_decides_who_gets_what(autojump_clock: MockClock) -> None:
    async def allows(client: Session, topic: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    policy = PubSubPolicy(authorise_subscribe=allows)
    async with open_house(router(), history=KEEP, policy=policy) as house:
        newest = await say(house, "1", "2")
        client = await house.connect()
        since = {"epoch": newest.epoch, "offset": 1}
        (answer,) = await ask(client, "SUBSCRIBE", topic=T, since=since)
        assert error_of(answer) == "PERMISSION_DENIED"


@pytest.mark.parametrize("gaps", [True, False])
async def test_gaps_are_told_where_offsets_do_not_tell_them(gaps: bool, autojump_clock: MockClock) -> None:
    made = Router()
    default_subscriptions(made, gaps=gaps)
    async with open_house(made, history=KEEP) as house:
        client = await house.connect()
        await ask(client, "SUBSCRIBE", topic="other")
        await ask(client, "SUBSCRIBE", topic=T)
        await house.app._hub.announce_gap(None)  # pyright: ignore[reportPrivateUsage]
        told = [one["payload"]["topic"] for one in await client.heard() if one["type"] == "$ws:gap"]
        assert told == (["other"] if gaps else [])


def test_a_router_that_has_such_handlers_is_a_mistake() -> None:
    made = router()
    with pytest.raises(ConfigError):
        default_subscriptions(made)
