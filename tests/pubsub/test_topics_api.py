from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import Said, open_house, settle
from trio_wskit import PubSubError
from trio_wskit.errors import PubSubReason
from trio_wskit.pubsub import PubSubPolicy, TopicChange, TopicPattern, TopicRules, topic
from trio_wskit.pubsub._desk import Desk
from trio_wskit.pubsub._topics import Topics

Operation = Callable[[Topics], Awaitable[object]]


def topics_of(driver: ScriptedDriver, client_id: str = "me", **rules: Any) -> Topics:
    return Topics(client_id, driver, Desk(driver, TopicRules(**rules), PubSubPolicy(), lambda _: None))


def inside(something: object) -> Any:
    return something


async def having(*names: str, **rules: Any) -> tuple[Topics, ScriptedDriver]:
    """Topics with these, and a driver that has forgotten how it came to them."""
    driver = ScriptedDriver()
    topics = topics_of(driver, **rules)
    await topics.subscribe_many(names)
    driver.calls.clear()
    return topics, driver


def in_step(topics: Topics, driver: ScriptedDriver, *names: str) -> None:
    """What is here is what the driver has, and nothing is in flight."""
    assert list(topics) == list(names)
    assert sorted(driver.list_topics()) == sorted(names)
    state = inside(topics)._state
    assert state is None or state.turns.all == []


async def refused(operation: Awaitable[object], reason: PubSubReason) -> PubSubError:
    with pytest.raises(PubSubError) as caught:
        await operation
    assert caught.value.reason == reason
    return caught.value


@asynccontextmanager
async def cancelled(seconds: float) -> AsyncGenerator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    assert scope.cancelled_caught


# --- batches ---------------------------------------------------------------------------------------------------------


async def test_a_batch_adds_each_topic_once_and_asks_only_for_new_ones() -> None:
    topics, driver = await having("a")
    assert await topics.subscribe_many(["b", "a", "b", "c"]) == TopicChange(2, 0, 3)
    assert driver.calls == [("subscribe", "b"), ("subscribe", "c")]
    in_step(topics, driver, "a", "b", "c")


async def test_a_batch_removes_what_is_there_and_skips_the_rest_whatever_its_name() -> None:
    topics, driver = await having("a", "b")
    assert await topics.unsubscribe_many(iter(["a", "nö!", "", "x" * 999])) == TopicChange(0, 1, 1)
    assert driver.calls == [("unsubscribe", "a")]
    in_step(topics, driver, "b")


async def test_nothing_is_asked_and_nothing_made_for_what_is_so_already() -> None:
    topics, driver = await having()
    idle = topics_of(driver)
    assert await idle.unsubscribe_many(["a"]) == TopicChange(0, 0, 0)
    assert inside(idle)._state is None
    assert await topics.set([]) == TopicChange(0, 0, 0)
    await topics.subscribe_many(["a", "b"])
    driver.calls.clear()
    assert await topics.set(["b", "a", "b"]) == TopicChange(0, 0, 2)
    assert driver.calls == []


async def test_set_unsubscribes_before_it_subscribes() -> None:
    topics, driver = await having("a", "b", "c")
    assert await topics.set(["d", "b", "e"]) == TopicChange(2, 2, 3)
    assert [what for what, _ in driver.calls] == ["unsubscribe"] * 2 + ["subscribe"] * 2
    in_step(topics, driver, "b", "d", "e")


async def test_clear_and_update_are_sets() -> None:
    topics, driver = await having("a", "b")
    assert await topics.update(lambda now: (now - {"a"}) | {"c"}) == TopicChange(1, 1, 2)
    in_step(topics, driver, "b", "c")
    assert await topics.clear() == TopicChange(0, 2, 0)
    in_step(topics, driver)


async def test_a_text_is_no_batch() -> None:
    topics, driver = await having()
    for operation in (topics.subscribe_many, topics.unsubscribe_many, topics.set):
        with pytest.raises(TypeError, match="not the text"):
            await operation("abc")
    in_step(topics, driver)


UNDONE: list[tuple[Operation, str, list[str]]] = [
    (lambda t: t.subscribe_many(["c", "d", "e"]), "subscribe e", ["+c", "+d", "+e", "-d", "-c"]),
    (lambda t: t.unsubscribe_many(["a", "b"]), "unsubscribe b", ["-a", "-b", "+a"]),
    (lambda t: t.clear(), "unsubscribe b", ["-a", "-b", "+a"]),
    (lambda t: t.set(["c", "d"]), "subscribe d", ["-a", "-b", "+c", "+d", "-c", "+b", "+a"]),
]


@pytest.mark.parametrize(("operation", "failing", "calls"), UNDONE)
async def test_a_batch_that_fails_is_undone_in_reverse_order(
    operation: Operation, failing: str, calls: list[str]
) -> None:
    topics, driver = await having("a", "b")
    driver.failing = {failing}
    error = await refused(operation(topics), "ADAPTER_ERROR")
    assert error.__cause__ is driver.error
    assert error.details == {"reason": "ADAPTER_ERROR", "rollbackFailed": False, "failedRollbackTopics": []}
    assert [("+" if what == "subscribe" else "-") + name for what, name in driver.calls] == calls
    in_step(topics, driver, "a", "b")


async def test_a_topic_whose_undoing_failed_is_named_and_healed_by_the_next_operation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topics, driver = await having("a")
    driver.failing = {"subscribe d", "unsubscribe b"}
    error = await refused(topics.subscribe_many(["b", "c", "d"]), "ADAPTER_ERROR")
    assert (error.details["rollbackFailed"], error.details["failedRollbackTopics"]) == (True, ["b"])
    assert "in doubt" in caplog.text
    assert list(topics) == ["a"]
    assert await topics.verify("b") == "subscribed"  # so the driver thinks
    await refused(topics.verify("b", "strict"), "ADAPTER_ERROR")
    driver.failing.clear()
    await topics.unsubscribe("b")  # not subscribed here, and yet it asks
    in_step(topics, driver, "a")
    driver.calls.clear()
    await topics.unsubscribe("b")
    assert driver.calls == []


HEALING: list[Operation] = [lambda t: t.subscribe("a"), lambda t: t.set(["a", "b"])]


@pytest.mark.parametrize("heal", HEALING)
async def test_a_subscription_in_doubt_is_asked_for_again(heal: Operation, caplog: pytest.LogCaptureFixture) -> None:
    topics, driver = await having("a", "b", max_subscribers=1)
    driver.failing = {"unsubscribe b", "subscribe a"}
    error = await refused(topics.clear(), "ADAPTER_ERROR")
    assert error.details["failedRollbackTopics"] == ["a"]
    assert topics.has("a")
    driver.failing.clear()
    await heal(topics)
    in_step(topics, driver, "a", "b")


async def test_the_end_lets_go_of_what_is_in_doubt_too(caplog: pytest.LogCaptureFixture) -> None:
    topics, driver = await having()
    driver.failing = {"subscribe c", "unsubscribe b"}
    await refused(topics.subscribe_many(["b", "c"]), "ADAPTER_ERROR")
    driver.failing.clear()
    await topics.close()
    in_step(topics, driver)


async def test_an_undoing_that_hangs_is_given_up_after_five_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    topics, driver = await having("a", "b")
    driver.pause = 4
    async with cancelled(9):
        await topics.subscribe_many(["c", "d", "e"])
    assert trio.current_time() == 9 + 5
    assert "took too long to undo: 2 topics" in caplog.text
    driver.pause = 0
    await topics.clear()
    in_step(topics, driver)


# --- names and limits ------------------------------------------------------------------------------------------------


async def test_a_wrong_name_refuses_the_whole_batch_before_anything_is_asked() -> None:
    topics, driver = await having("a")
    for batch in (topics.subscribe_many(["b", "no!"]), topics.set(["b", "no!"]), topics.update(lambda _: ["b", "no!"])):
        await refused(batch, "INVALID_TOPIC")
    assert driver.calls == []
    in_step(topics, driver, "a")


async def test_what_is_no_string_is_refused_as_a_name() -> None:
    topics, driver = await having("a")
    number: Any = 5
    await refused(topics.subscribe(number), "INVALID_TOPIC")
    assert driver.calls == []


async def test_the_name_is_looked_at_before_a_cancellation_and_the_limit_after() -> None:
    topics, driver = await having("a", max_per_connection=1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await refused(topics.subscribe("no!"), "INVALID_TOPIC")
        await topics.subscribe("b")
    assert scope.cancelled_caught
    await refused(topics.subscribe("b"), "TOPIC_LIMIT_EXCEEDED")
    assert driver.calls == []


async def test_a_connection_has_so_many_topics_and_no_more() -> None:
    topics, driver = await having("a", "b", max_per_connection=2)
    await topics.subscribe_many(["a", "b"])
    error = await refused(topics.subscribe("c"), "TOPIC_LIMIT_EXCEEDED")
    assert error.details == {"reason": "TOPIC_LIMIT_EXCEEDED", "limit": 2, "current": 2}
    error = await refused(topics.subscribe_many(["c", "d", "a"]), "TOPIC_LIMIT_EXCEEDED")
    assert error.details == {"reason": "TOPIC_LIMIT_EXCEEDED", "limit": 2, "current": 2, "requested": 2}
    error = await refused(topics.set(["b", "c", "d"]), "TOPIC_LIMIT_EXCEEDED")
    assert {"toAdd": 2, "toRemove": 1, "resulting": 3}.items() <= error.details.items()
    assert driver.calls == []
    await topics.set(["c", "d"])  # a swap at the limit
    in_step(topics, driver, "c", "d")


async def test_operations_in_flight_count_for_the_limit(autojump_clock: MockClock) -> None:
    topics, driver = await having(max_per_connection=1)
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.subscribe, "a")
        await settle()
        await refused(topics.subscribe("b"), "TOPIC_LIMIT_EXCEEDED")
    in_step(topics, driver, "a")


async def test_a_topic_has_so_many_subscribers_and_no_more(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    desk = Desk(driver, TopicRules(max_subscribers=2), PubSubPolicy(), lambda _: None)
    one, two, three = (Topics(name, driver, desk) for name in "123")
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.subscribe, "a")
        nursery.start_soon(two.subscribe, "a")
        await settle()
        error = await refused(three.subscribe_many(["b", "a"]), "TOPIC_LIMIT_EXCEEDED")  # both are only on their way
        assert error.details == {"reason": "TOPIC_LIMIT_EXCEEDED", "limit": 2, "topic": "a"}
    driver.failing = {"subscribe b"}
    await refused(three.subscribe("b"), "ADAPTER_ERROR")
    await one.unsubscribe("a")
    await three.subscribe("a")
    await two.close()
    await one.subscribe("a")
    assert inside(desk)._subscribers == {"a": 2}
    await one.close()
    await three.clear()
    assert inside(desk)._subscribers == {}


async def test_names_are_normalised_before_everything_else() -> None:
    driver = ScriptedDriver()
    topics = Topics("me", driver, Desk(driver, TopicRules(), PubSubPolicy(normalise=str.lower), lambda _: None))
    await topics.subscribe("Room:1")
    await topics.subscribe_many(["ROOM:1", "Room:2", TopicPattern("Hall:*")])
    in_step(topics, driver, "room:1", "room:2", "hall:*")
    assert await topics.verify("ROOM:2", "strict") == "subscribed"
    async with topics.subscribed("ROOM:3"):
        assert topics.has("room:3")
    await topics.unsubscribe("ROOM:1")
    await topics.set(["ROOM:2"])
    in_step(topics, driver, "room:2")


# --- turns and cancellation ------------------------------------------------------------------------------------------


async def test_operations_on_one_topic_run_in_the_order_in_which_they_came(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        for operation in (topics.subscribe, topics.unsubscribe) * 3:
            nursery.start_soon(operation, "a")
            await settle()
    assert [what for what, _ in driver.calls] == ["subscribe", "unsubscribe"] * 3
    in_step(topics, driver)


async def test_one_subscription_is_made_however_many_ask(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(topics.subscribe, "a")
    assert driver.calls == [("subscribe", "a")]
    in_step(topics, driver, "a")


async def test_different_topics_do_not_wait_for_one_another_and_batches_do_not_lock_one_another_out(
    autojump_clock: MockClock,
) -> None:
    topics, driver = await having()
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.subscribe_many, ["a", "b"])
        nursery.start_soon(topics.subscribe_many, ["b", "a"])
        nursery.start_soon(topics.subscribe_many, ["c", "d"])
    assert trio.current_time() == 2
    assert sorted(topics) == ["a", "b", "c", "d"]


async def test_the_status_tells_what_the_driver_is_at(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    assert topics.local_status("a") == "absent"
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.subscribe, "a")
        await settle()
        assert (topics.local_status("a"), topics.has("a"), topics.local_status("b")) == (
            "pending-subscribe",
            False,
            "absent",
        )
        await topics.settle("b")
        assert trio.current_time() == 0
        await topics.settle("a")
        assert (topics.local_status("a"), topics.has("a")) == ("settled", True)
        nursery.start_soon(topics.clear)
        await settle()
        assert (topics.local_status("a"), topics.has("a")) == ("pending-unsubscribe", True)
        await topics.settle()
        assert topics.local_status("a") == "absent"
    await topics.settle()
    await topics_of(driver).settle()


async def test_settling_waits_for_what_is_there_now_however_it_ends(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    driver.pause = 1
    driver.failing = {"subscribe"}
    async with trio.open_nursery() as nursery:
        for name in "abab":
            nursery.start_soon(refused, topics.subscribe(name), "ADAPTER_ERROR")
        await settle()
        await topics.settle()
        assert trio.current_time() == 2
    in_step(topics, driver)


EVERY: list[Operation] = [
    lambda t: t.subscribe("c"),
    lambda t: t.subscribe_many(["c", "d", "e"]),
    lambda t: t.unsubscribe("a"),
    lambda t: t.unsubscribe_many(["a", "b"]),
    lambda t: t.set(["b", "c", "d"]),
    lambda t: t.update(lambda _: ["c"]),
    lambda t: t.clear(),
]


@pytest.mark.parametrize("operation", EVERY)
@pytest.mark.parametrize("seconds", [0, 0.5, 1.5])
async def test_who_is_cancelled_before_the_commit_leaves_nothing(
    autojump_clock: MockClock, operation: Operation, seconds: float
) -> None:
    topics, driver = await having("a", "b")
    driver.pause = 1
    with trio.move_on_after(seconds) as scope:
        await operation(topics)
    driver.pause = 0
    if scope.cancelled_caught:
        assert sorted(topics) == ["a", "b"]
        in_step(topics, driver, *topics)
    await operation(topics)
    in_step(topics, driver, *topics)


async def test_a_driver_that_was_done_when_it_was_cancelled_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    topics, driver = await having("a")
    real = driver.subscribe

    async def subscribe(client_id: str, name: str) -> None:
        await real(client_id, name)
        scope.cancel()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(driver, "subscribe", subscribe)
    with trio.CancelScope() as scope:
        await topics.subscribe("b")
    assert scope.cancelled_caught
    in_step(topics, driver, "a")


async def test_a_cancellation_after_the_drivers_last_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    topics, driver = await having()
    real = driver.subscribe

    async def subscribe(client_id: str, name: str) -> None:
        await real(client_id, name)
        scope.cancel()

    monkeypatch.setattr(driver, "subscribe", subscribe)
    with trio.CancelScope() as scope:
        await topics.subscribe("a")
    in_step(topics, driver, "a")


async def test_who_waits_for_a_turn_and_is_cancelled_is_gone(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    driver.pause = 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(topics.subscribe, "a")
        await settle()
        async with cancelled(1):
            await topics.clear()
    in_step(topics, driver, "a")


async def test_who_leaves_in_the_middle_of_a_batch_has_nothing_left(autojump_clock: MockClock) -> None:
    topics, driver = await having("a", "b", max_subscribers=9)
    driver.pause = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, topics.set(["b", "c", "d", "e"]), "CONNECTION_CLOSED")
        await trio.sleep(2.5)
        driver.pause = 0
        await topics.close()
    in_step(topics, driver)
    assert inside(topics)._desk._subscribers == {}
    await refused(topics.subscribe("z"), "CONNECTION_CLOSED")
    await topics.unsubscribe("z")


async def test_a_driver_that_hangs_at_the_end_does_not_keep_the_places(autojump_clock: MockClock) -> None:
    topics, driver = await having("a", "b", max_subscribers=1)
    driver.pause = 10
    with trio.move_on_after(5):
        await topics.close()
    assert list(topics) == []
    assert inside(topics)._desk._subscribers == {}


async def test_a_large_batch_lets_others_run() -> None:
    topics, driver = await having()
    passes = 0

    async def count() -> None:
        nonlocal passes
        while len(topics) == 0:
            passes += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await topics.subscribe_many(f"t{n}" for n in range(640))
    assert passes >= 9
    assert len(driver.calls) == 640


# --- scopes ----------------------------------------------------------------------------------------------------------


async def test_a_subscription_lasts_as_long_as_its_scope() -> None:
    topics, driver = await having("mine")
    async with topics.subscribed("a", "mine"):
        in_step(topics, driver, "mine", "a")
    in_step(topics, driver, "mine")
    with suppress(KeyError):
        async with topics.subscribed("a", "mine"):
            raise KeyError
    in_step(topics, driver, "mine")


async def test_the_last_of_overlapping_scopes_unsubscribes() -> None:
    topics, driver = await having()
    first, second = topics.subscribed("a"), topics.subscribed("a", "b")
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    in_step(topics, driver, "a", "b")
    await second.__aexit__(None, None, None)
    in_step(topics, driver)


async def test_a_scope_that_cannot_begin_leaves_nothing() -> None:
    topics, driver = await having()
    driver.failing = {"subscribe b"}
    with pytest.raises(PubSubError):
        async with topics.subscribed("a", "b"):
            raise AssertionError
    in_step(topics, driver)
    assert inside(topics)._state.scopes == {}


async def test_a_cancelled_scope_unsubscribes_all_the_same(autojump_clock: MockClock) -> None:
    topics, driver = await having()
    with trio.move_on_after(2):
        async with topics.subscribed("a"):
            driver.pause = 1
            await trio.sleep(10)
    assert trio.current_time() == 3
    in_step(topics, driver)


async def test_a_scope_that_outlives_its_client_does_nothing_at_its_end() -> None:
    topics, driver = await having()
    async with topics.subscribed("a"):
        await topics.close()
        driver.calls.clear()
    assert driver.calls == []


# --- what the driver knows -------------------------------------------------------------------------------------------


async def test_verifying_asks_the_driver(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    topics, driver = await having("a")
    assert await topics.verify("a", "strict") == "subscribed"
    assert await topics.verify("b", "strict") == "unsubscribed"
    await driver.unsubscribe("me", "a")
    assert await topics.verify("a") == "unsubscribed"
    error = await refused(topics.verify("a", "strict"), "ADAPTER_ERROR")
    assert error.details["subscribed"] is False

    def fail(_: str) -> list[str]:
        raise driver.error

    monkeypatch.setattr(driver, "local_subscribers", fail)
    assert await topics.verify("a") == "error"
    assert (await refused(topics.verify("a", "strict"), "ADAPTER_ERROR")).__cause__ is driver.error


# --- patterns, templates and the policy, in a whole app --------------------------------------------------------------


async def test_a_plain_text_with_a_star_is_never_a_pattern() -> None:
    topics, driver = await having()
    await refused(topics.subscribe("room:*"), "INVALID_TOPIC")
    for wrong in ("room:1", "room:a*", "a b:*"):
        await refused(topics.subscribe(TopicPattern(wrong)), "INVALID_TOPIC")
    await topics.subscribe(TopicPattern("room:*"))
    in_step(topics, driver, "room:*")
    await topics.unsubscribe("room:*")
    in_step(topics, driver)


async def test_a_pattern_gets_what_its_topics_get(autojump_clock: MockClock) -> None:
    room = topic("room:{room_id}")
    async with open_house() as house:
        client = await house.connect()
        await client.session.topics.subscribe(room.pattern)
        assert (await house.app.publish(room(room_id=1), Said("one"))).matched_local == 1
        await client.session.topics.subscribe(room(room_id=1))
        result = await house.app.publish("room:1", Said("two"))
        assert (result.matched_local, result.delivered, result.matching) == (1, 1, "pattern")
        assert (await house.app.publish("hall:1", Said("other"))).matched_local == 0
        assert await client.texts() == ["one", "two"]


async def test_the_policy_decides_and_hears_of_every_change(autojump_clock: MockClock) -> None:
    heard: list[tuple[str, str]] = []

    async def may(client: Any, name: str) -> bool:
        await trio.sleep(1)
        return bool(client.client_id and name != "secret")

    def fail(_: object, name: str) -> None:
        heard.append(("-", name))
        raise KeyError(name)

    policy = PubSubPolicy(
        authorise_subscribe=may, on_subscribe=lambda _, name: heard.append(("+", name)), on_unsubscribe=fail
    )
    async with open_house(policy=policy) as house:
        client = await house.connect()
        topics = client.session.topics
        error = await refused(topics.subscribe_many(["a", "secret"]), "ACL_SUBSCRIBE")
        assert error.details["topic"] == "secret"
        assert (list(topics), heard) == ([], [])
        await topics.subscribe_many(["a", "b"])
        await topics.unsubscribe("a")
        assert heard == [("+", "a"), ("+", "b"), ("-", "a")]
        await client.leave()
        assert heard[3:] == [("-", "b")]
        assert house.logged() == [f"a hook failed for topic {name} and client {client.client_id}" for name in "ab"]
        await refused(topics.subscribe("a"), "CONNECTION_CLOSED")


async def test_who_leaves_while_it_is_authorised_is_not_subscribed(autojump_clock: MockClock) -> None:
    async def may(_: object, name: str) -> bool:
        await trio.sleep(1)
        return True

    async with open_house(policy=PubSubPolicy(authorise_subscribe=may)) as house:
        client = await house.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, client.session.topics.subscribe_many(["a", "b"]), "CONNECTION_CLOSED")
            await settle()
            await client.leave()


async def test_topics_whose_right_is_gone_are_removed_and_the_client_is_told(autojump_clock: MockClock) -> None:
    forbidden: set[str] = set()

    async def may(_: object, name: str) -> bool:
        return name not in forbidden

    async with open_house(policy=PubSubPolicy(authorise_subscribe=may)) as house:
        client = await house.connect()
        assert await house.app.invalidate(client.client_id) == ()
        await client.session.topics.subscribe_many(["a", "b", "c"])
        assert await house.app.invalidate(client.client_id) == ()
        forbidden |= {"a", "c"}
        assert await house.app.invalidate(client.client_id) == ("a", "c")
        assert list(client.session.topics) == ["b"]
        (told,) = await client.heard()
        assert (told["type"], told["payload"]["code"]) == ("ERROR", "PERMISSION_DENIED")
        assert told["payload"]["details"] == {"reason": "ACL_SUBSCRIBE", "topics": ["a", "c"]}
        assert await house.app.invalidate("nobody") == ()
