"""The link when the server has stopped, or is slow; when we are cancelled; and when nobody here takes what comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from tests.pubsub.redis_parts import (
    Parts,
    at_most,
    channels,
    enveloped,
    gone,
    listening,
    open_parts,
    published,
    wired,
)
from tests.serving import until
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import PubSubError
from trio_wskit._core.publishing import PublishEnvelope

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]


# --- stopped ---


async def test_a_server_that_stops_is_noticed_and_heard_again(own_server: Server) -> None:
    async with listening(own_server.url, "a") as one:
        own_server.pause()
        async with at_most(3):
            await until(lambda: one.errors)
        assert "has not answered" in str(one.errors[0])
        own_server.resume()
        await until(lambda: one.epochs == 2)
        await published(one, "1", "a")
        await until(lambda: one.texts[-1:] == ["1"])


async def test_a_publish_to_a_server_that_has_stopped_fails_in_time_and_the_next_ones_at_once(
    own_server: Server,
) -> None:
    async with open_parts(own_server.url, max_wait=0.2, connect_timeout=0.2) as one:
        assert await one.publish("1")
        own_server.pause()
        async with at_most(2), trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one.publish, str(number))
        result = await one.driver.publish(enveloped("x"))
        assert (result.ok, result.error) == (False, "ADAPTER_ERROR")
        own_server.resume()
        await published(one, "2")


async def test_a_topic_of_a_server_that_has_stopped_fails_in_time(own_server: Server) -> None:
    async with listening(own_server.url, "a", max_wait=0.2, check_every=5) as one:
        own_server.pause()
        async with at_most(2):
            with pytest.raises(PubSubError, match="not confirmed"):
                await one.selective.follow("b")
        await one.selective.unfollow("b")
        own_server.resume()
        await until(lambda: channels(own_server) == {"ws:a"})
        with trio.fail_after(10):
            while "ws:c" not in channels(own_server):
                with suppress(PubSubError):
                    await one.selective.follow("c")
        await until(lambda: channels(own_server) == {"ws:a", "ws:c"})
        assert one.epochs == 1


async def test_the_block_ends_in_time_though_the_server_has_stopped(own_server: Server) -> None:
    async with at_most(3):
        async with listening(own_server.url, "a", check_every=60) as one:
            assert await one.publish("1")
            own_server.pause()
        own_server.resume()


async def test_who_publishes_while_the_block_ends_is_told_so_at_once(own_server: Server) -> None:
    results: list[bool] = []

    async def publish(one: Parts, text: str) -> None:
        results.append(await one.publish(text))

    for is_open in (True, False):
        async with trio.open_nursery() as nursery:
            async with open_parts(own_server.url, max_wait=30, connect_timeout=30) as one:
                assert not is_open or await one.publish("1")
                own_server.pause()
                for number in range(5):
                    nursery.start_soon(publish, one, f"{number}")
                await trio.sleep(0.05)
            with trio.fail_after(5):
                await until(lambda: len(results) % 5 == 0 and results)
        own_server.resume()
    assert results == [False] * 10


async def test_a_publish_whose_answer_is_lost_is_not_sent_again(own_server: Server) -> None:
    async with listening(own_server.url, "a") as one, wired(own_server) as wire, open_parts(wire.url) as other:
        assert await other.publish("1", "a")
        async with trio.open_nursery() as nursery:
            results: list[bool] = []

            async def publish() -> None:
                results.append(await other.publish("2", "a"))

            wire.hold()
            nursery.start_soon(publish)
            await trio.sleep(0.05)
            wire.cut()
        assert results == [False]
        wire.let_go()
        await published(other, "3", "a")
        await until(lambda: one.texts[-1:] == ["3"])
        assert one.texts in (["1", "3"], ["1", "2", "3"])


async def test_a_link_that_has_not_answered_in_time_is_used_no_more(own_server: Server) -> None:
    async with wired(own_server) as wire, open_parts(wire.url, max_wait=0.2) as one:
        assert await one.publish("1")
        wire.hold()
        assert not await one.publish("2")
        wire.let_go()
        await published(one, "3")
        assert wire.opened == 2


# --- cancelled ---


async def test_cancelled_while_a_topic_waits_leaves_nothing_once_it_is_unfollowed(own_server: Server) -> None:
    async with wired(own_server) as wire, listening(wire.url, check_every=5, max_wait=5) as one:
        for _ in range(10):
            wire.hold()
            with trio.move_on_after(0.02) as scope:
                await one.selective.follow("a")
            assert scope.cancelled_caught
            await one.selective.unfollow("a")
            wire.let_go()
            await one.selective.follow("b")
            await one.selective.unfollow("b")
        await gone(own_server)
        await one.selective.follow("a")
        await published(one, "1", "a")
        await until(lambda: one.texts == ["1"])
        assert one.epochs == 1


async def test_a_publish_that_is_cancelled_takes_no_other_with_it(own_server: Server) -> None:
    async with open_parts(own_server.url) as one, listening(own_server.url, "a") as other:
        async with trio.open_nursery() as nursery:
            for number in range(40):

                async def publish(number: int = number) -> None:
                    with trio.CancelScope() as scope:
                        if number % 2:
                            scope.cancel()
                        await one.publish(str(number), "a")

                nursery.start_soon(publish)
        assert await one.publish("last", "a")
        await until(lambda: "last" in other.texts)
        assert {str(number) for number in range(0, 40, 2)} <= set(other.texts)


async def test_whoever_opens_the_link_and_gives_up_takes_it_from_nobody(own_server: Server) -> None:
    async with wired(own_server) as wire, open_parts(wire.url, max_wait=5) as one:
        wire.hold()
        results: list[bool] = []

        async def patient() -> None:
            results.append(await one.publish("1"))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                await one.publish("0")
            nursery.start_soon(patient)
            await trio.sleep(0.05)
            wire.let_go()
        assert results == [True]
        assert wire.opened == 1


async def test_a_link_on_which_something_comes_is_not_given_up_though_the_ping_is_far_behind(
    own_server: Server,
) -> None:
    async with wired(own_server) as wire, listening(wire.url, "a", check_every=0.2) as one:
        wire.slow_down()
        async with open_parts(own_server.url) as other:
            payload = b'"' + b"x" * 20_000 + b'"'
            for number in range(60):
                assert (await other.driver.publish(PublishEnvelope("a", "T", payload, origin="o", id=str(number)))).ok
        await until(lambda: len(one.came) == 60)
        assert one.errors == []


@pytest.mark.parametrize("after", [0.0, 0.001, 0.003, 0.01])
async def test_a_run_that_is_cancelled_while_it_begins_leaves_nothing(own_server: Server, after: float) -> None:
    async with open_parts(own_server.url) as one:
        for number in range(200):
            await one.selective.follow(f"t:{number}")
        with trio.move_on_after(after):
            await one.consumer.run(one.deliver)
        await gone(own_server)
        async with trio.open_nursery() as nursery:
            await nursery.start(one.supervise)
            await published(one, "1", "t:7")
            await until(lambda: one.texts == ["1"])
            nursery.cancel_scope.cancel()


# --- nobody takes what comes ---


async def slow_delivery(
    server: Server, options: dict[str, Any], payload: bytes, enough: Callable[[Parts], bool]
) -> None:
    may_go_on = trio.Event()
    came: list[PublishEnvelope] = []

    async def deliver(envelope: PublishEnvelope) -> None:
        await may_go_on.wait()
        came.append(envelope)

    async with open_parts(server.url, **options) as one, open_parts(server.url) as other:
        await one.selective.follow("a")
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[None]) -> None:
                await one.supervise(deliver, task_status=task_status)

            await nursery.start(run)
            with trio.fail_after(20):
                for number in range(300):
                    envelope = PublishEnvelope("a", "T", payload, origin="o", id=str(number))
                    assert (await other.driver.publish(envelope)).ok
            await until(lambda: one.errors)
            assert enough(one)
            assert "more comes from Redis than is delivered" in str(one.errors[0])
            may_go_on.set()
            with trio.fail_after(10):  # some of it goes where nobody listens just then
                while not came or came[-1].id != "last":
                    assert (await other.driver.publish(enveloped("last", "a"))).ok
                    await trio.sleep(0.02)
            assert one.epochs >= 2
            assert "5" not in [envelope.id for envelope in came]  # it waited, and belongs to an epoch that is over
            nursery.cancel_scope.cancel()


async def test_where_delivery_stands_still_the_link_is_given_up_rather_than_the_memory(own_server: Server) -> None:
    await slow_delivery(own_server, {"max_waiting": 100}, b"1", lambda one: one.consumer.counts.overflows >= 1)


async def test_what_waits_for_delivery_is_bounded_in_bytes_too(own_server: Server) -> None:
    payload = b'"' + b"x" * 1000 + b'"'
    await slow_delivery(own_server, {"max_waiting_bytes": 100_000}, payload, lambda one: len(one.came) == 0)
