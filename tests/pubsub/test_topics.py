from __future__ import annotations

from collections.abc import Set as AbstractSet

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import Said, Say, error_of, open_house, settle
from trio_wskit import Context, PubSubError, Router
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.pubsub._topics import Topics

INVALID = ["", "room@invalid!topic", "x" * 129, "a b", "room:1\n"]


def held(driver: ScriptedDriver) -> list[str]:
    """The topics of which the driver knows that the client is subscribed."""
    return [topic for topic in driver.list_topics() if "c" in driver.local_subscribers(topic)]


async def subscribed(*names: str) -> tuple[Topics, ScriptedDriver]:
    driver = ScriptedDriver()
    topics = Topics("c", driver)
    for name in names:
        await topics.subscribe(name)
    driver.calls.clear()
    return topics, driver


# --- a set -----------------------------------------------------------------------------------------------------------


async def test_topics_are_a_read_only_set_in_order_of_subscription() -> None:
    topics, _ = await subscribed("b", "a", "c")
    assert isinstance(topics, AbstractSet)
    assert list(topics) == ["b", "a", "c"]
    assert len(topics) == 3
    assert "a" in topics
    assert "d" not in topics
    assert (topics.has("a"), topics.has("d")) == (True, False)
    assert not hasattr(topics, "add")


async def test_without_a_subscription_the_set_is_empty() -> None:
    topics, _ = await subscribed()
    assert list(topics) == []
    assert len(topics) == 0
    assert not topics
    assert "a" not in topics
    assert not topics.has("a")
    assert not {"a"} & topics


async def test_topics_can_be_compared_with_other_sets_and_combined() -> None:
    topics, driver = await subscribed("a", "b")
    some_set: AbstractSet[str] = topics
    assert some_set == {"a", "b"}
    assert some_set != {"a"}
    assert topics >= {"a"}
    assert topics < {"a", "b", "c"}
    assert topics.isdisjoint({"c"})
    combined: list[tuple[AbstractSet[str], set[str]]] = [
        (topics - {"a"}, {"b"}),
        (topics & {"a", "c"}, {"a"}),
        (topics | {"c"}, {"a", "b", "c"}),
        (topics ^ {"a", "c"}, {"b", "c"}),
        ({"a", "c"} - topics, {"c"}),
    ]
    for got, expected in combined:
        assert got == expected
        assert type(got) is frozenset  # it is no client's, and nobody can take it for theirs
    assert list(topics) == ["a", "b"]
    assert driver.calls == []


async def test_iterating_goes_over_a_snapshot() -> None:
    topics, _ = await subscribed("a", "b", "c")
    seen: list[str] = []
    for name in topics:
        seen.append(name)
        await topics.unsubscribe(name)
        await topics.subscribe(name + "2")
    assert seen == ["a", "b", "c"]
    assert list(topics) == ["a2", "b2", "c2"]


async def test_who_subscribes_again_after_leaving_is_last() -> None:
    topics, _ = await subscribed("a", "b")
    await topics.unsubscribe("a")
    await topics.subscribe("a")
    assert list(topics) == ["b", "a"]


# --- subscribing -----------------------------------------------------------------------------------------------------


async def test_subscribing_tells_the_driver_once() -> None:
    topics, driver = await subscribed()
    await topics.subscribe("a")
    await topics.subscribe("a")
    assert driver.calls == [("subscribe", "a")]
    assert held(driver) == list(topics) == ["a"]


async def test_unsubscribing_tells_the_driver_once() -> None:
    topics, driver = await subscribed("a", "b")
    await topics.unsubscribe("a")
    await topics.unsubscribe("a")
    assert driver.calls == [("unsubscribe", "a")]
    assert held(driver) == list(topics) == ["b"]


@pytest.mark.parametrize("name", INVALID)
async def test_a_name_that_is_none_is_refused_before_the_driver_hears_of_it(name: str) -> None:
    topics, driver = await subscribed("a")
    with pytest.raises(PubSubError) as caught:
        await topics.subscribe(name)
    assert (caught.value.reason, caught.value.code) == ("INVALID_TOPIC", "INVALID_ARGUMENT")
    assert driver.calls == []
    assert list(topics) == ["a"]


@pytest.mark.parametrize("name", ["b", *INVALID])
@pytest.mark.parametrize("names", [(), ("a",)])
async def test_leaving_what_one_is_not_in_is_no_matter_whatever_its_name(name: str, names: tuple[str, ...]) -> None:
    topics, driver = await subscribed(*names)
    await topics.unsubscribe(name)
    await topics.unsubscribe(name)
    assert driver.calls == []
    assert list(topics) == list(names)


async def test_who_subscribes_and_leaves_and_subscribes_is_subscribed() -> None:
    topics, driver = await subscribed()
    for _ in range(3):
        await topics.subscribe("a")
        await topics.unsubscribe("a")
    assert held(driver) == list(topics) == []
    await topics.subscribe("a")
    assert held(driver) == list(topics) == ["a"]


async def test_a_refused_topic_is_answered_with_its_reason(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.topics.subscribe(ctx.payload.text)
        await ctx.send(Said(",".join(ctx.topics)))

    async with open_house(router) as house:
        client = await house.connect()
        client.say("room:1", "no room!")
        good, bad = await client.heard()
        assert good["payload"] == {"text": "room:1"}
        assert error_of(bad) == "INVALID_ARGUMENT"
        assert bad["payload"]["details"]["reason"] == "INVALID_TOPIC"


async def test_each_client_has_topics_of_its_own() -> None:
    driver = MemoryPubSub()
    one, two = Topics("one", driver), Topics("two", driver)
    await one.subscribe("a")
    await two.subscribe("a")
    await two.subscribe("b")
    await two.unsubscribe("a")
    assert (list(one), list(two)) == (["a"], ["b"])
    assert list(driver.local_subscribers("a")) == ["one"]


# --- a driver that is slow or fails ----------------------------------------------------------------------------------


async def test_a_client_is_subscribed_when_the_driver_is_done_and_not_before(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed("a")
    driver.pause = 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.subscribe, "b")
        nursery.start_soon(topics.unsubscribe, "a")
        await trio.sleep(1)
        assert driver.calls == [("subscribe", "b"), ("unsubscribe", "a")] or driver.calls == [
            ("unsubscribe", "a"),
            ("subscribe", "b"),
        ]
        assert list(topics) == ["a"]
        assert not topics.has("b")
    assert trio.current_time() == 2
    assert held(driver) == list(topics) == ["b"]


async def test_a_driver_that_fails_leaves_all_as_it_was() -> None:
    topics, driver = await subscribed("a")
    driver.failing = {"subscribe", "unsubscribe"}
    for operation in (topics.subscribe("b"), topics.unsubscribe("a")):
        with pytest.raises(PubSubError) as caught:
            await operation
        assert (caught.value.reason, caught.value.code) == ("ADAPTER_ERROR", "UNAVAILABLE")
        assert caught.value.__cause__ is driver.error
        assert "the broker is gone" not in str(caught.value.details)
    assert held(driver) == list(topics) == ["a"]
    driver.failing = set()
    await topics.subscribe("b")
    await topics.unsubscribe("a")
    assert held(driver) == list(topics) == ["b"]


async def test_a_cancelled_change_is_none(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed("a")
    driver.pause = 2
    for change, name in ((topics.subscribe, "b"), (topics.unsubscribe, "a")):
        with trio.move_on_after(1) as scope:
            await change(name)
        assert scope.cancelled_caught
        assert held(driver) == list(topics) == ["a"]
    await topics.subscribe("b")
    await topics.unsubscribe("a")
    assert held(driver) == list(topics) == ["b"]


async def test_topics_of_one_client_do_not_wait_for_one_another(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed()
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(topics.subscribe, str(n))
    assert trio.current_time() == 1
    assert set(topics) == set(held(driver)) == set("01234")


async def test_two_who_change_one_topic_at_the_same_time_agree_with_the_driver(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed()
    driver.pause = 1
    for change, expected in ((topics.subscribe, ["a"]), (topics.unsubscribe, [])):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(change, "a")
        assert held(driver) == list(topics) == expected


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_leaves_every_topic_and_takes_none_after() -> None:
    topics, driver = await subscribed("a", "b")
    await topics.close()
    assert held(driver) == list(topics) == []
    driver.calls.clear()
    with pytest.raises(PubSubError) as caught:
        await topics.subscribe("c")
    assert (caught.value.reason, caught.value.code) == ("CONNECTION_CLOSED", "UNAVAILABLE")
    await topics.unsubscribe("a")
    await topics.close()
    assert driver.calls == []


async def test_closing_leaves_the_other_topics_where_the_driver_fails_for_one() -> None:
    topics, driver = await subscribed("a", "b", "c")
    driver.failing = {"unsubscribe a", "unsubscribe c"}
    with pytest.raises(PubSubError) as caught:
        await topics.close()
    assert caught.value.reason == "ADAPTER_ERROR"
    assert caught.value.__cause__ is driver.error
    assert driver.calls == [("unsubscribe", name) for name in "abc"]
    assert list(topics) == []


async def test_who_leaves_while_the_driver_subscribes_is_not_left_subscribed(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed("a")
    caught: list[PubSubError] = []

    async def subscribe() -> None:
        try:
            await topics.subscribe("b")
        except PubSubError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery:
        driver.pause = 1
        nursery.start_soon(subscribe)
        await settle()
        driver.pause = 0
        await topics.close()
    assert [error.reason for error in caught] == ["CONNECTION_CLOSED"]
    assert held(driver) == list(topics) == []


async def test_a_driver_that_cannot_take_back_what_came_too_late_is_told_as_any_failure(
    autojump_clock: MockClock,
) -> None:
    topics, driver = await subscribed()
    driver.failing = {"unsubscribe b"}
    caught: list[PubSubError] = []

    async def subscribe() -> None:
        try:
            await topics.subscribe("b")
        except PubSubError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery:
        driver.pause = 1
        nursery.start_soon(subscribe)
        await settle()
        driver.pause = 0
        await topics.close()
    assert [(error.reason, error.__cause__) for error in caught] == [("ADAPTER_ERROR", driver.error)]


async def test_who_leaves_while_the_driver_unsubscribes_is_no_error(autojump_clock: MockClock) -> None:
    topics, driver = await subscribed("a")
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.unsubscribe, "a")
        await settle()
        await topics.close()
    assert held(driver) == list(topics) == []


async def test_a_driver_that_keeps_a_topic_of_who_has_left_is_told_to_the_app_and_ends_nobody_else(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    told: list[tuple[Exception, object]] = []
    router.on_error(lambda error, ctx: told.append((error, ctx)))
    driver = ScriptedDriver()
    async with open_house(router, pubsub=driver) as house:
        client, other = await house.connect(), await house.connect()
        for name in ("a", "b"):
            await client.session.topics.subscribe(name)
            await other.session.topics.subscribe(name)
        driver.failing = {"unsubscribe a"}
        await client.leave()
        driver.failing = set()
        ((error, ctx),) = told
        assert isinstance(error, PubSubError)
        assert (error.reason, ctx) == ("ADAPTER_ERROR", None)
        assert house.logged() == [f"a hook failed for client {client.client_id}"]
        assert list(driver.local_subscribers("b")) == [other.client_id]
        result = await house.app.publish("a", Said("hello"))
        assert (result.ok, result.delivered, result.dropped) == (True, 1, 0)
        assert await other.texts() == ["hello"]
        await driver.unsubscribe(client.client_id, "a")


async def test_a_driver_that_never_lets_go_does_not_hold_up_the_end_of_a_session(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await house.connect()
        await client.session.topics.subscribe("a")
        driver.pause = 100
        start = trio.current_time()
        await client.leave()
        assert trio.current_time() - start == house.app.limits.close_timeout
        driver.pause = 0
        await client.session.topics.close()
        await driver.unsubscribe(client.client_id, "a")
