from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import NOW, Add, Client, House, Said, Say, Total, open_house, settle
from trio_wskit import App, ConfigError, Context, LimitExceeded, Limits, PublishResult, Router, Session, message
from trio_wskit.abc import Transport
from trio_wskit.pubsub import MemoryPubSub

QUEUE: Final = 3  # messages that fit into an outbox of `stuck`
TAKEN: Final = 2 + QUEUE  # that a client of `stuck` takes: one is on the link, one is being written


async def subscriber(house: House, *topics: str, capacity: int = 65536) -> Client:
    client = await house.connect(capacity=capacity)
    for topic in topics or ("t",):
        await client.session.topics.subscribe(topic)
    return client


@asynccontextmanager
async def stuck(router: Router | None = None, **options: Any) -> AsyncGenerator[tuple[House, Client]]:
    """A subscriber of the topics "t" and "u" who does not read, and whose outbox is full of what "t" sent."""
    limits = Limits(ping_interval=float("inf"), write_timeout=float("inf"), outbox_messages=QUEUE)
    async with open_house(router, limits=limits, **options) as house:
        client = await subscriber(house, "t", "u", capacity=1)
        client.peer.stall()
        for n in range(TAKEN):
            result = await house.app.publish("t", Said(str(n)))
            assert (result.delivered, result.dropped) == (1, 0)
            await settle()
        yield house, client


async def read_on(client: Client) -> list[str]:
    client.peer.resume()
    return await client.texts()


# --- who gets it -----------------------------------------------------------------------------------------------------


async def test_every_subscriber_of_the_topic_gets_it_and_nobody_else(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        one, two = await subscriber(house), await subscriber(house, "t", "u")
        other, nobody = await subscriber(house, "u"), await house.connect()
        result = await house.app.publish("t", Said("hello"))
        assert (result.ok, result.capability, result.error, result.retryable) == (True, "exact", None, False)
        assert (result.matched_local, result.delivered, result.dropped) == (2, 2, 0)
        assert [await client.texts() for client in (one, two, other, nobody)] == [["hello"], ["hello"], [], []]


async def test_a_topic_without_subscribers_is_no_failure(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        result = await house.app.publish("t", Said())
        assert (result.ok, result.capability, result.error) == (True, "exact", None)
        assert (result.matched_local, result.delivered, result.dropped) == (0, 0, 0)


async def test_on_the_wire_are_type_meta_and_payload_and_never_the_topic_or_who_is_left_out(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        client = await subscriber(house)
        await house.app.publish("t", Said("hello"), exclude="somebody", meta={"by": "me"})
        assert await client.receive() == {
            "type": "SAID",
            "meta": {"timestamp": NOW, "by": "me"},
            "payload": {"text": "hello"},
        }


async def test_a_client_gets_what_was_published_in_order_whatever_the_topic(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house, "t", "u")
        for n in range(20):
            await house.app.publish("tu"[n % 2], Said(str(n)))
            if n % 7 == 0:
                await settle()
        assert await client.texts() == [str(n) for n in range(20)]


async def test_a_publisher_hears_itself_unless_it_asks_not_to(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        quiet = ctx.payload.text == "quiet"
        results.append(await ctx.publish("t", Said(ctx.payload.text), exclude_self=quiet))

    results: list[PublishResult] = []
    async with open_house(router) as house:
        one, two = await subscriber(house), await subscriber(house)
        one.say("loud", "quiet")
        assert await two.texts() == ["loud", "quiet"]
        assert await one.texts() == ["loud"]
    assert [(result.matched_local, result.delivered) for result in results] == [(2, 2), (1, 1)]


async def test_leaving_oneself_out_where_one_does_not_listen_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        one, two = await subscriber(house), await house.connect()
        result = await two.session.publish("t", Said("hello"), exclude_self=True)
        assert (result.matched_local, result.delivered) == (1, 1)
        assert await one.texts() == ["hello"]


async def test_the_app_can_leave_out_a_client(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        one, two = await subscriber(house), await subscriber(house)
        result = await house.app.publish("t", Said("hello"), exclude=one.client_id)
        assert (result.matched_local, result.delivered) == (1, 1)
        assert [await one.texts(), await two.texts()] == [[], ["hello"]]


async def test_one_encoded_frame_goes_to_all(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def watch(transport: Transport) -> None:
        write_nowait = transport.write_nowait

        def write(frames: Sequence[bytes]) -> Sequence[bytes]:
            written.extend(frames)
            return write_nowait(frames)

        monkeypatch.setattr(transport, "write_nowait", write)

    async with open_house() as house:
        clients = [await subscriber(house) for _ in range(5)]
        for client in clients:
            watch(client.transport)
        await house.app.publish("t", Said("hello"))
        for client in clients:
            assert await client.texts() == ["hello"]
    assert len(written) == 5
    assert len(set(map(id, written))) == 1


async def test_publishes_of_one_pass_reach_each_subscriber_in_one_write(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        clients = [await subscriber(house) for _ in range(3)]
        for n in range(10):
            await house.app.publish("t", Said(str(n)))
        for client in clients:
            assert len(await client.texts()) == 10
            assert client.transport.writes == 1


# --- who has left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closes", "is cut off", "unsubscribes"])
async def test_who_has_left_gets_nothing_and_leaves_nothing_behind(autojump_clock: MockClock, how: str) -> None:
    driver = MemoryPubSub()
    async with open_house(pubsub=driver) as house:
        client, other = await subscriber(house, "t", "u"), await subscriber(house, "u")
        assert set(driver.list_topics()) == {"t", "u"}
        if how == "closes":
            client.peer.close()
        elif how == "is cut off":
            client.peer.cut()
        else:
            for topic in client.session.topics:
                await client.session.topics.unsubscribe(topic)
        await settle()
        assert driver.list_topics() == ("u",)
        assert list(driver.local_subscribers("u")) == [other.client_id]
        assert (await house.app.publish("t", Said())).matched_local == 0
        assert (await house.app.publish("u", Said("hello"))).matched_local == 1
        assert await other.texts() == ["hello"]


async def test_a_link_that_has_just_broken_does_not_keep_it_from_the_others(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        first, second, third = [await subscriber(house) for _ in range(3)]
        first.peer.cut()
        third.peer.close()
        result = await house.app.publish("t", Said("hello"))  # nobody has noticed yet
        assert result.ok
        assert await second.texts() == ["hello"]


async def test_topics_are_still_there_when_on_close_hooks_run_but_nothing_is_delivered(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    seen: list[tuple[list[str], int]] = []

    @router.on_close
    async def bye(session: Session) -> None:
        result = await session.publish("t", Said("bye"))
        seen.append((list(session.topics), result.delivered))

    async with open_house(router) as house:
        client, other = await subscriber(house), await subscriber(house)
        await client.leave()
        assert seen == [(["t"], 1)]
        assert await other.texts() == ["bye"]


async def test_who_leaves_while_the_driver_is_at_work_is_no_failure(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    results: list[PublishResult] = []

    async def publish() -> None:
        results.append(await house.app.publish("t", Said("hello")))

    async with open_house(pubsub=driver) as house:
        client, other = await subscriber(house), await subscriber(house)
        driver.pause = 1
        house.nursery.start_soon(publish)
        await settle()
        driver.pause = 0
        await client.leave()
        await trio.sleep(2)
        assert [(result.ok, result.delivered, result.dropped) for result in results] == [(True, 1, 0)]
        assert await other.texts() == ["hello"]


async def test_a_client_whom_only_the_driver_knows_is_passed_over(autojump_clock: MockClock) -> None:
    driver = MemoryPubSub()
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        await driver.subscribe("stranger", "t")
        result = await house.app.publish("t", Said("hello"))
        assert (result.matched_local, result.delivered, result.dropped) == (2, 1, 0)
        assert await client.texts() == ["hello"]
        await driver.unsubscribe("stranger", "t")


# --- a full outbox ---------------------------------------------------------------------------------------------------


async def test_by_default_a_subscriber_that_does_not_read_is_disconnected_with_1013(autojump_clock: MockClock) -> None:
    router = Router()
    told: list[LimitExceeded] = []
    router.on_limit_exceeded(told.append)
    async with stuck(router) as (house, client):
        queued = client.session.outbox.queued_bytes
        result = await house.app.publish("t", Said("too much"))
        assert (result.ok, result.matched_local, result.delivered, result.dropped) == (True, 1, 0, 1)
        assert client.session.outbox.dropped == 1
        again = await house.app.publish("t", Said("again"))
        assert (again.delivered, again.dropped) == (0, 0)  # it is on its way out, and told once
        await client.served.wait()
        assert client.session.close_code == 1013
        assert (await client.closed())[0] == 1006  # it did not read as far as the close frame within a second
        assert (await house.app.publish("t", Said())).matched_local == 0
        assert told == [LimitExceeded("backpressure", queued, house.app.limits.outbox_bytes, client.client_id)]


async def test_drop_newest_keeps_what_is_queued(autojump_clock: MockClock) -> None:
    async with stuck(overflow="drop_newest") as (house, client):
        for _ in range(2):
            result = await house.app.publish("t", Said("too much"))
            assert (result.ok, result.matched_local, result.delivered, result.dropped) == (True, 1, 0, 1)
        assert client.session.outbox.dropped == 2
        assert await read_on(client) == ["0", "1", "2", "3", "4"]
        assert (await house.app.publish("t", Said("5"))).delivered == 1
        assert await client.texts() == ["5"]


async def test_drop_oldest_makes_room_for_the_newest_and_never_touches_what_is_being_written(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow="drop_oldest") as (house, client):
        for n in (5, 6):
            result = await house.app.publish("t", Said(str(n)))
            assert (result.ok, result.matched_local, result.delivered, result.dropped) == (True, 1, 1, 1)
        assert client.session.outbox.dropped == 2
        assert await read_on(client) == ["0", "1", "4", "5", "6"]


async def test_drop_oldest_drops_no_message_to_one_client_alone(autojump_clock: MockClock) -> None:
    async with open_house(
        limits=Limits(ping_interval=float("inf"), outbox_messages=QUEUE), overflow="drop_oldest"
    ) as house:
        client = await subscriber(house, capacity=1)
        client.peer.stall()
        for n in range(TAKEN):
            await client.session.send(Said(f"own {n}"))
            await settle()
        result = await house.app.publish("t", Said("too much"))
        assert (result.delivered, result.dropped) == (0, 1)
        assert await read_on(client) == [f"own {n}" for n in range(TAKEN)]


async def test_bytes_fill_an_outbox_as_messages_do(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=float("inf"), outbox_bytes=1000)
    async with open_house(limits=limits, overflow="drop_newest") as house:
        client = await subscriber(house, capacity=1)
        client.peer.stall()
        delivered = 0
        for _ in range(40):
            delivered += (await house.app.publish("t", Said("x" * 100))).delivered
            await settle()
            assert client.session.outbox.queued_bytes <= 1000
        assert 5 < delivered < 10
        assert len(await read_on(client)) == delivered


async def test_the_policy_may_depend_on_the_topic_and_is_asked_only_when_somebody_is_behind(
    autojump_clock: MockClock,
) -> None:
    asked: list[str] = []

    def overflow(topic: str) -> Any:
        asked.append(topic)
        return "drop_oldest" if topic == "t" else "drop_newest"

    async with stuck(overflow=overflow) as (house, client):
        asked.clear()
        other = await subscriber(house, "v")
        assert (await house.app.publish("v", Said("v"))).delivered == 1
        assert await other.texts() == ["v"]
        assert asked == []
        assert (await house.app.publish("u", Said("u"))).delivered == 0
        assert (await house.app.publish("t", Said("5"))).delivered == 1
        assert asked == ["u", "t"]
        assert await read_on(client) == ["0", "1", "3", "4", "5"]


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
async def test_what_only_waits_for_the_end_of_a_pass_is_no_reason_to_drop(
    autojump_clock: MockClock, overflow: str
) -> None:
    limits = Limits(ping_interval=float("inf"), outbox_messages=QUEUE)
    async with open_house(limits=limits, overflow=overflow) as house:
        client = await subscriber(house)
        for n in range(10 * QUEUE):  # one pass, in which nobody can write
            result = await house.app.publish("t", Said(str(n)))
            assert (result.delivered, result.dropped) == (1, 0)
        assert await client.texts() == [str(n) for n in range(10 * QUEUE)]


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
async def test_one_that_does_not_read_costs_the_others_nothing(autojump_clock: MockClock, overflow: str) -> None:
    async with stuck(overflow=overflow) as (house, client):
        other = await subscriber(house)
        start = trio.current_time()
        for n in range(20):
            result = await house.app.publish("t", Said(str(n)))
            assert result.delivered in (1, 2)
            assert await other.receive() == {"type": "SAID", "meta": {"timestamp": NOW}, "payload": {"text": str(n)}}
        assert trio.current_time() == start
        assert client.session.outbox.dropped == (1 if overflow == "disconnect" else 20)
        client.peer.resume()
        await client.heard()


async def test_an_app_refuses_a_policy_that_nobody_knows() -> None:
    unknown: Any = "drop_all"
    with pytest.raises(ConfigError, match="'drop_all'"):
        App(Router(), overflow=unknown)


async def test_who_is_just_being_closed_neither_gets_anything_nor_counts_as_slow(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house)
        client.peer.stall()
        house.nursery.start_soon(client.session.close, 3000)
        await settle()
        result = await house.app.publish("t", Said("too late"))
        assert (result.ok, result.delivered, result.dropped) == (True, 0, 0)
        client.peer.resume()
        assert await client.texts() == []
        assert client.session.close_code == 3000


# --- what can go wrong -----------------------------------------------------------------------------------------------


async def test_a_driver_that_fails_is_a_failure_worth_another_try_and_nothing_is_delivered(
    autojump_clock: MockClock,
) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        driver.failing = {"publish"}
        result = await house.app.publish("t", Said("lost"))
        assert (result.ok, result.error, result.retryable) == (False, "ADAPTER_ERROR", True)
        assert (result.capability, result.delivered, result.dropped) == ("unknown", 0, 0)
        assert result.cause is driver.error
        driver.failing = set()
        assert (await house.app.publish("t", Said("hello"))).ok
        assert await client.texts() == ["hello"]


async def test_a_failure_that_the_driver_returns_is_the_publishers(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        driver.answer = PublishResult(ok=False, error="BACKPRESSURE", retryable=True, matched_local=1)
        assert await house.app.publish("t", Said("lost")) is driver.answer
        assert await client.texts() == []


async def test_what_the_driver_knows_of_its_figures_is_kept(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        driver.answer = PublishResult(ok=True, capability="estimate", matched_local=7)
        result = await house.app.publish("t", Said("hello"))
        assert (result.ok, result.capability, result.matched_local) == (True, "estimate", 7)
        assert result.delivered == 1
        assert await client.texts() == ["hello"]


async def test_the_driver_learns_all_that_it_needs_to_send_it_elsewhere(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        await house.app.publish("t", Said("hello"), exclude="me", meta={"by": "me"})
        (envelope,) = driver.envelopes
        assert (envelope.topic, envelope.type, envelope.exclude) == ("t", "SAID", "me")
        assert envelope.meta == {"timestamp": NOW, "by": "me"}


async def test_a_message_that_does_not_fit_its_own_schema_is_a_failure_and_never_reaches_the_driver(
    autojump_clock: MockClock,
) -> None:
    driver = ScriptedDriver()
    wrong: Any = 5
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        result = await house.app.publish("t", Said(wrong))
        assert (result.ok, result.error, result.retryable) == (False, "VALIDATION", False)
        assert [issue["path"] for issue in result.details["issues"]] == ["text"]
        assert driver.envelopes == []
        assert await client.heard() == []


async def test_what_is_no_message_is_a_bug_and_raised_at_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        with pytest.raises(ConfigError):
            await house.app.publish("t", {"type": "SAID"})


async def test_an_app_that_is_not_open_publishes_nothing() -> None:
    result = await App(Router()).publish("t", Said())
    assert (result.ok, result.error, result.retryable) == (False, "STATE", False)


async def test_observers_see_every_publish_with_what_came_of_it(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[tuple[str, str, bool]] = []
    router.observe(on_publish=lambda envelope, result: seen.append((envelope.topic, envelope.type, result.ok)))
    wrong: Any = 5
    driver = ScriptedDriver()
    async with open_house(router, pubsub=driver) as house:
        client = await house.connect()
        await house.app.publish("t", Said())
        await client.session.publish("u", Said(wrong))
        driver.failing = {"publish"}
        await house.app.publish("v", Said())
    assert seen == [("t", "SAID", True), ("u", "SAID", False), ("v", "SAID", False)]


# --- waiting and cancelling ------------------------------------------------------------------------------------------


async def test_a_cancelled_publish_delivers_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house)
        with trio.CancelScope() as scope:
            scope.cancel()
            await house.app.publish("t", Said("never"))
        assert scope.cancelled_caught
        await house.app.publish("t", Said("hello"))
        assert await client.texts() == ["hello"]


async def test_a_publish_cancelled_while_the_driver_is_at_work_delivers_nothing_here(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await subscriber(house)
        driver.pause = 2
        with trio.move_on_after(1) as scope:
            await house.app.publish("t", Said("never"))
        assert scope.cancelled_caught
        driver.pause = 0
        await trio.sleep(5)
        await house.app.publish("t", Said("hello"))
        assert await client.texts() == ["hello"]


async def test_a_task_that_only_publishes_lets_the_others_run(autojump_clock: MockClock) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_house() as house, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        turns = 0
        for _ in range(1000):
            await house.app.publish("t", Said())
        assert turns >= 10
        nursery.cancel_scope.cancel()


async def test_a_call_may_publish_and_reply_and_its_client_hears_both_in_order(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await ctx.publish("t", Said("before"))
        return Total(1)

    async with open_house(router) as house:
        client = await subscriber(house)
        client.send("ADD", {}, call_id="1")
        assert [one["type"] for one in await client.heard()] == ["SAID", "TOTAL"]


async def test_a_message_without_payload_can_be_published(autojump_clock: MockClock) -> None:
    @message("TICK")
    class Tick: ...

    async with open_house() as house:
        client = await subscriber(house)
        assert (await house.app.publish("t", Tick())).delivered == 1
        assert (await client.receive())["type"] == "TICK"


@pytest.mark.parametrize("answer", ["nonsense", ZeroDivisionError()])
async def test_an_overflow_function_that_fails_disconnects_the_slow_and_raises_nothing(
    answer: Any, autojump_clock: MockClock
) -> None:
    def overflow(_: str) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with stuck(overflow=overflow) as (house, client):
        result = await house.app.publish("t", Said("too much"))
        assert (result.ok, result.delivered, result.dropped) == (True, 0, 1)
        assert all("the slow are disconnected" in line for line in house.logged())
        await client.served.wait()
        assert client.session.close_code == 1013
