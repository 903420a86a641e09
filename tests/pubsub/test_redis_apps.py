"""Apps that share a Redis, and their WebSocket clients on real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.pubsub.redis_chat import Guest, chatting, guests, running
from tests.pubsub.redis_parts import channels, gone, open_parts
from tests.serving import until
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub import BrokeredPubSub
from trio_wskit.pubsub.redis import RedisMode

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

MODES: list[RedisMode] = ["topics", "sharded", "wskit"]


@asynccontextmanager
async def two_apps(
    url: str, mode: RedisMode = "topics", per_app: int = 2
) -> AsyncGenerator[tuple[list[Guest], BrokeredPubSub, BrokeredPubSub]]:
    """Two apps, and so many guests at each."""
    async with (
        chatting(url, mode=mode) as (one, at_one),
        chatting(url, mode=mode) as (two, at_two),
        guests(*[one] * per_app, *[two] * per_app) as here,
    ):
        yield here, at_one, at_two


@pytest.mark.parametrize("mode", MODES)
async def test_messages_go_both_ways_and_everybody_gets_each_once(shared_server: Server, mode: RedisMode) -> None:
    async with two_apps(shared_server.url, mode) as (everybody, at_one, at_two):
        for guest in everybody:
            await guest.join("room:1")
        texts = [f"{number}" for number in range(40)]
        for number, text in enumerate(texts):
            await everybody[number % 4].say("room:1", text)
        for guest in everybody:
            assert sorted([await guest.news() for _ in texts], key=int) == texts
        # Each app has delivered what it published itself, and dropped it when it came back.
        await until(lambda: at_one.counts.own == at_two.counts.own == 20)
        assert at_one.counts.delivered == at_two.counts.delivered == 20
    await gone(shared_server)


@pytest.mark.parametrize("mode", MODES)
async def test_the_one_who_is_left_out_is_left_out_everywhere(shared_server: Server, mode: RedisMode) -> None:
    async with two_apps(shared_server.url, mode) as (everybody, _, _):
        for guest in everybody:
            await guest.join("room:1")
        speaker, *others = everybody
        await speaker.say("room:1", "not for me", exclude_self=True)
        await speaker.say("room:1", "for all")
        for guest in others:
            assert [await guest.news(), await guest.news()] == ["not for me", "for all"]
        assert await speaker.news() == "for all"


async def test_topics_and_patterns_that_match_the_same_give_one_delivery(shared_server: Server) -> None:
    async with two_apps(shared_server.url, per_app=1) as ((one, two), _, at_two):
        await two.join("room:1")
        await two.join("room:*")
        await two.join("**")
        await one.say("room:1", "a")
        await one.say("room:2", "b")
        await one.say("hall", "c")
        assert [await two.news() for _ in range(3)] == ["a", "b", "c"]
        await until(lambda: at_two.counts.delivered == 3)
        assert at_two.counts.duplicates == 3


async def test_the_last_one_who_leaves_takes_the_topic_from_the_server(shared_server: Server) -> None:
    async with chatting(shared_server.url) as (server, _), guests(server) as (stays,):
        async with guests(server, server) as (one, two):
            for guest in (one, two):
                await guest.join("room:1")
                await guest.join("room:2")
            await stays.join("room:2")
            await one.leave("room:1")
            assert channels(shared_server) == {"ws:room:1", "ws:room:2"}
        await until(lambda: channels(shared_server) == {"ws:room:2"})
        await stays.leave("room:2")
        await gone(shared_server)


async def test_when_redis_falls_over_the_clients_are_told_and_then_all_goes_on(own_server: Server) -> None:
    async with two_apps(own_server.url, per_app=1) as ((one, two), at_one, at_two):
        await two.join("room:1")
        await one.say("room:1", "before")
        assert await two.news() == "before"
        own_server.kill()
        await until(lambda: not at_one.ready and not at_two.ready)
        refused = await one.ask("PUB", topic="room:1", text="lost", excludeSelf=False)
        assert refused["payload"] == {"ok": False, "error": "ADAPTER_ERROR"}
        refused = await two.ask("SUB", topic="room:2")
        assert refused["payload"]["code"] == "UNAVAILABLE"
        assert not at_two.has_topic("room:2")
        assert str(own_server.port) not in str(refused)
        own_server.start()
        with trio.fail_after(20):
            await at_one.wait_ready()
            await at_two.wait_ready()
        assert (at_one.epoch, at_two.epoch) == (2, 2)
        assert channels(own_server) == {"ws:room:1"}
        await until_said(one, "after")
        assert await two.news() == "after"
        await two.join("room:2")


async def until_said(guest: Guest, text: str) -> None:
    with trio.fail_after(10):
        while not (await guest.ask("PUB", topic="room:1", text=text, excludeSelf=False))["payload"]["ok"]:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_killing_and_restarting_the_server_under_load_loses_nothing_without_a_gap_notice(
    own_server: Server,
) -> None:
    taken: set[int] = set()  # what Redis has taken
    done = False
    async with (
        chatting(own_server.url) as (server, pubsub),
        guests(server) as (guest,),
        open_parts(own_server.url) as publisher,
        trio.open_nursery() as nursery,
    ):
        assert (await guest.ask("SUB", topic="room:1", gaps=True))["type"] == "DONE"

        async def publish() -> None:
            number = 0
            while not done:
                number += 1
                envelope = PublishEnvelope("room:1", "NEWS", b'{"text":"%d"}' % number, origin="o", id=str(number))
                if (await publisher.driver.publish(envelope)).ok:
                    taken.add(number)
                else:
                    await trio.sleep(0.001)

        heard: list[int | None] = []

        async def hear() -> None:
            while True:
                came = await guest.receive()
                heard.append(None if came["type"] == "$ws:gap" else int(came["payload"]["text"]))

        nursery.start_soon(publish)
        nursery.start_soon(hear)
        for epoch in (2, 3, 4):
            so_far = len(heard)
            await until(lambda so_far=so_far: len(heard) > so_far + 100)  # type: ignore[misc]
            own_server.kill()
            own_server.start()
            await until(lambda epoch=epoch: pubsub.epoch == epoch and pubsub.ready)  # type: ignore[misc]
        so_far = len(heard)
        await until(lambda: len(heard) > so_far + 100)
        done = True
        await until(lambda: heard[-1] == max(taken))
        nursery.cancel_scope.cancel()
    assert heard.count(None) == 3
    last: int | None = None
    for number in heard:
        if number is not None and last is not None:
            assert number > last
            assert not taken.intersection(range(last + 1, number)), "lost without a gap notice"
        last = number


@pytest.mark.e2e
@pytest.mark.parametrize("mode", MODES)
async def test_two_processes_and_one_server(own_server: Server, mode: str) -> None:
    with running(own_server.url, mode) as (_, one), running(own_server.url, mode) as (process, two):
        async with guests(one, one, two, two) as everybody:
            for guest in everybody:
                await guest.join("room:1")
            await everybody[0].say("room:1", "from one", exclude_self=True)
            await everybody[3].say("room:1", "from two", exclude_self=True)
            for guest, texts in zip(
                everybody, [{"from two"}, {"from one", "from two"}, {"from one", "from two"}, {"from one"}], strict=True
            ):
                assert {await guest.news() for _ in texts} == texts
        process.kill()
        async with guests(one, one) as (left, right):
            await left.join("room:1")
            await right.say("room:1", "the other one goes on")
            assert await left.news() == "the other one goes on"
    await gone(own_server)
