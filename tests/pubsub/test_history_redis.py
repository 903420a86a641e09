"""`RedisHistory` on real servers, which are killed, paused and started again meanwhile."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.pubsub.redis_chat import QUICK
from tests.pubsub.test_redis_places import behind_tls
from tests.sessions import Client, House, Said
from tests.transports.peers import client_tls
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import App, ConfigError, Limits, Router, WsKitError, open_app
from trio_wskit._core.history import NOT_KEPT, History, Position, Recovery
from trio_wskit.abc import HistoryStore, ImmediateHistoryStore
from trio_wskit.pubsub import BrokeredPubSub, with_broker
from trio_wskit.pubsub.redis import open_redis_pubsub
from trio_wskit.pubsub.redis_history import RedisHistory, open_redis_history
from trio_wskit.testing import check_history

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

KEEP = History(size=100, ttl=60)
T = "kept:1"


async def test_it_keeps_its_promises(shared_server: Server) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        async with open_redis_history(shared_server.url, name=secrets.token_hex(4)) as store:
            yield store

    async def lose() -> None:
        await trio.lowlevel.checkpoint()
        shared_server.command("FLUSHALL")

    await check_history(factory, lose=lose, seconds=0.15)


async def test_it_keeps_its_promises_on_a_cluster(cluster: Server) -> None:
    from coredis import RedisCluster
    from coredis.retry import NoRetryPolicy

    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        client: Any = RedisCluster("127.0.0.1", cluster.port, retry_policy=NoRetryPolicy())
        async with client, open_redis_history(client, name=secrets.token_hex(4)) as store:
            yield store

    await check_history(factory, seconds=0.15)


async def test_it_keeps_its_promises_while_the_server_is_started_again(own_server: Server) -> None:
    opened: list[RedisHistory] = []

    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        async with open_redis_history(own_server.url, name=secrets.token_hex(4), max_wait=5) as store:
            opened.append(store)
            yield store

    async def lose() -> None:
        own_server.kill()
        own_server.start()
        await until_it_answers(opened[-1])

    await check_history(factory, lose=lose, seconds=0.15)


async def test_it_keeps_its_promises_while_the_server_pauses_now_and_then(own_server: Server) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[HistoryStore]:
        async with open_redis_history(own_server.url, name=secrets.token_hex(4), max_wait=5) as store:
            yield store

    async def pauses() -> None:
        while True:
            await trio.sleep(0.1)
            own_server.pause()
            try:
                await trio.sleep(0.03)
            finally:
                own_server.resume()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pauses)
        await check_history(factory, seconds=0.4)
        nursery.cancel_scope.cancel()


# While many append and resume: see `check_history(disturb=…)`.


async def killed_and_restarted(server: Server) -> None:
    await trio.sleep(0.4)
    await trio.to_thread.run_sync(server.kill)
    await trio.sleep(0.2)
    await trio.to_thread.run_sync(server.start)
    await trio.sleep(0.4)


async def paused(server: Server) -> None:
    await trio.sleep(0.2)
    server.pause()
    await trio.sleep(0.6)  # longer than a call may take
    server.resume()
    await trio.sleep(0.2)


async def all_of_it(server: Server) -> None:
    for disturb in (paused, killed_and_restarted, paused, killed_and_restarted, emptied):
        await disturb(server)


async def emptied(server: Server) -> None:
    for _ in range(3):
        await trio.sleep(0.3)
        server.command("FLUSHALL")


@pytest.mark.parametrize("saves", [False, True], ids=["in memory", "saves to disk"])
@pytest.mark.parametrize("disturb", [killed_and_restarted, paused, emptied, all_of_it], ids=lambda one: one.__name__)
async def test_nobody_is_told_what_is_not_so(tmp_path: Path, disturb: Any, saves: bool) -> None:
    options = {"appendonly": "yes", "appendfsync": "everysec"} if saves else {}
    with Server(tmp_path, **options) as server:

        @asynccontextmanager
        async def factory() -> AsyncGenerator[HistoryStore]:
            async with open_redis_history(server.url, max_wait=0.25) as store:
                yield store

        async def break_and_mend() -> None:
            await disturb(server)

        await check_history(factory, disturb=break_and_mend)


# The store alone.


def calls(server: Server) -> dict[str, int]:
    """How often each command was called since the last `CONFIG RESETSTAT`, those of scripts included."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    told = [line.removeprefix("cmdstat_").split(":calls=") for line in lines if line.startswith("cmdstat_")]
    return {name: int(rest.split(",")[0]) for name, rest in told}


async def test_to_append_and_to_resume_is_one_round_trip_each(own_server: Server) -> None:
    async with open_redis_history(own_server.url) as store:
        first = await store.append(T, b"1", KEEP)  # and the script is known
        own_server.command("CONFIG", "RESETSTAT")
        for number in range(5):
            await store.append(T, b"%d" % number, KEEP)
        before = calls(own_server)
        assert before["evalsha"] == 5
        replay = await store.read(T, KEEP, since=first)
        assert replay.entries is not None
        assert len(replay.entries) == 5
        after = calls(own_server)
        assert after["evalsha"] == 6
        asked_alone = {
            "hmget",
            "hset",
            "xadd",
            "pexpire",
            "pttl",
            "xlen",
            "xrange",
            "info",
            "config|resetstat",
            "evalsha",
        }
        assert set(after) <= asked_alone  # nothing was asked beside the scripts


async def test_a_subscription_that_resumes_is_one_round_trip(own_server: Server) -> None:
    async with open_redis_history(own_server.url) as store, open_apps(store) as (house,):
        first = await say(house, "1")
        await say(house, "2", "3")
        client = await house.connect()
        own_server.command("CONFIG", "RESETSTAT")
        assert (await client.session.topics.subscribe(T, since=first)).recovered
        assert calls(own_server)["evalsha"] == 1
        assert await texts(client, 2) == ["2", "3"]


async def test_it_is_no_store_that_answers_at_once(own_server: Server) -> None:
    async with open_redis_history(own_server.url) as store:
        opened: object = store
        assert not isinstance(opened, ImmediateHistoryStore)


async def test_both_keys_of_a_topic_expire(own_server: Server) -> None:
    async with open_redis_history(own_server.url, name="h") as store:
        await store.append(T, b"1", History(10, ttl=60, keep_position=100))
        assert 59_000 < ttl(own_server, f"h:{{{T}}}:messages") <= 60_000
        assert 99_000 < ttl(own_server, f"h:{{{T}}}:position") <= 100_000
        await store.read("quiet", History(10, ttl=60, keep_position=100))
        assert 99_000 < ttl(own_server, "h:{quiet}:position") <= 100_000
        assert ttl(own_server, "h:{quiet}:messages") == -2


def ttl(server: Server, key: str) -> int:
    return int(server.command("PTTL", key).decode().strip()[1:])


@pytest.mark.parametrize("key", ["messages", "position"])
async def test_a_key_that_was_evicted_is_no_recovery(key: str, own_server: Server) -> None:
    async with open_redis_history(own_server.url, name="h") as store:
        first = await store.append(T, b"1", KEEP)
        await store.append(T, b"2", KEEP)
        own_server.command("DEL", f"h:{{{T}}}:{key}")
        assert (await store.read(T, KEEP, since=first)).entries is None
        await store.append(T, b"3", KEEP)
        assert (await store.read(T, KEEP, since=first)).entries is None


async def test_a_stream_with_holes_is_no_recovery(own_server: Server) -> None:
    async with open_redis_history(own_server.url, name="h") as store:
        first = await store.append(T, b"1", KEEP)
        for number in range(2, 6):
            await store.append(T, b"%d" % number, KEEP)
        own_server.command("XDEL", f"h:{{{T}}}:messages", "3-0")
        assert (await store.read(T, KEEP, since=first)).entries is None


async def test_a_server_that_saves_and_starts_again_begins_a_new_epoch(tmp_path: Path) -> None:
    """It may have lost the last messages, whatever it saves: and would give their numbers again."""
    with Server(tmp_path, appendonly="yes", appendfsync="always") as server:
        async with open_redis_history(server.url, max_wait=2) as store:
            first = await store.append(T, b"1", KEEP)
            newest = await store.append(T, b"2", KEEP)
            server.kill()
            with pytest.raises(WsKitError, match="UNAVAILABLE"):
                await store.append(T, b"3", KEEP)
            server.start()
            assert server.command("EXISTS", f"wskit-history:{{{T}}}:messages") == b":1\r\n"
            replay = await store.read(T, KEEP, since=first)
            assert replay.position.epoch != newest.epoch
            assert replay.entries is None


async def test_a_server_that_is_paused_is_waited_for_only_so_long(own_server: Server) -> None:
    async with open_redis_history(own_server.url, max_wait=0.3) as store:
        first = await store.append(T, b"1", KEEP)
        own_server.pause()
        try:
            for _ in range(2):
                began = trio.current_time()
                with pytest.raises(WsKitError, match="UNAVAILABLE"):
                    await store.read(T, KEEP, since=first)
                assert trio.current_time() - began < 2
        finally:
            own_server.resume()
        await until_it_answers(store)
        assert (await store.read(T, KEEP, since=first)).entries == []


async def until_it_answers(store: RedisHistory) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await store.read("any", KEEP)
            except WsKitError:
                await trio.sleep(0.05)
            else:
                return


async def test_cancelling_leaves_it_well(own_server: Server) -> None:
    async with open_redis_history(own_server.url) as store:
        begun = (await store.read(T, KEEP)).position
        for number in range(60):
            with trio.move_on_after(number % 7 / 10_000):
                await store.append(T, b"%d" % number, KEEP)
        newest = await store.append(T, b"end", KEEP)
        replay = await store.read(T, KEEP, since=begun)
        assert replay.position == newest
        assert [one.offset for one in replay.entries or ()] == [*range(1, newest.offset + 1)]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"max_wait": 0}, "max_wait"), ({"max_wait": -1}, "max_wait"), ({"name": ""}, "name"), ({"name": "a{b"}, "name")],
)
async def test_what_is_out_of_bounds_is_refused(options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=f"open_redis_history\\({says}="):
        async with open_redis_history("redis://127.0.0.1:1", **options):
            raise AssertionError("it opened")


async def test_a_client_that_asks_again_by_itself_is_refused(own_server: Server) -> None:
    from coredis import Redis

    async with Redis.from_url(own_server.url) as client:
        with pytest.raises(ConfigError, match="NoRetryPolicy"):
            async with open_redis_history(client):
                raise AssertionError("it opened")


async def test_what_the_block_raises_comes_out_bare(own_server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_redis_history(own_server.url):
            raise ZeroDivisionError


async def test_over_tls_the_certificate_and_the_hosts_name_are_looked_at(shared_server: Server) -> None:
    async with behind_tls(shared_server) as port:
        async with open_redis_history(f"rediss://localhost:{port}", tls=client_tls()) as store:
            assert (await store.append(secrets.token_hex(4), b"1", KEEP)).offset == 1
        # The certificate is for localhost and 127.0.0.1; the same address has another name here.
        for url, tls in ((f"rediss://[::ffff:127.0.0.1]:{port}", client_tls()), (f"rediss://localhost:{port}", None)):
            async with open_redis_history(url, tls=tls) as store:
                with pytest.raises(WsKitError, match="UNAVAILABLE"):
                    await store.append(T, b"1", KEEP)


async def test_a_password_goes_with_the_url(own_server: Server) -> None:
    own_server.command("CONFIG", "SET", "requirepass", "p@ss/word")
    async with open_redis_history(own_server.url.replace("//", "//:p%40ss%2Fword@")) as store:
        assert (await store.append(T, b"1", KEEP)).offset == 1


# Several processes: apps that share nothing but the server.


@asynccontextmanager
async def open_apps(*stores: HistoryStore, url: str | None = None) -> AsyncGenerator[list[House]]:
    """An app for each store; with a `url` for Redis pub/sub between them."""
    async with AsyncExitStack() as stack:
        houses: list[House] = []
        for store in stores:
            pubsub: BrokeredPubSub | None = None
            if url is not None:
                driver, consumer = await stack.enter_async_context(open_redis_pubsub(url, while_down="remember"))
                pubsub = with_broker(driver, consumer, restart=QUICK)
            app = App(
                Router(),
                limits=Limits(ping_interval=math.inf),
                pubsub=pubsub,
                history={"kept:*": KEEP},
                history_store=store,
            )
            await stack.enter_async_context(open_app(app))
            nursery = await stack.enter_async_context(trio.open_nursery())
            house = House(app, nursery)
            stack.push_async_callback(leave, house)
            houses.append(house)
            if pubsub is not None:
                await pubsub.wait_ready()
        yield houses


async def leave(house: House) -> None:
    for client in house.clients:
        await client.leave()


async def say(house: House, *messages: str, topic: str = T, **options: Any) -> Position:
    position = None
    for text in messages:
        result = await house.app.publish(topic, Said(text), **options)
        assert result.ok, result
        position = result.position
    assert position is not None
    return position


async def texts(client: Client, count: int) -> list[str]:
    """The next messages, in a time that is real."""
    got: list[str] = []
    with trio.fail_after(10):
        while len(got) < count:
            came = await client.receive()
            got.append(came["type"] if came["type"] != "SAID" else came["payload"]["text"])
    return got


async def test_a_client_resumes_on_another_process(own_server: Server) -> None:
    async with (
        open_redis_history(own_server.url) as one,
        open_redis_history(own_server.url) as two,
        open_apps(one, two, url=own_server.url) as (here, there),
    ):
        client = await here.connect()
        begun = (await client.session.topics.subscribe(T)).position
        assert begun is not None
        await say(here, "1")
        await say(there, "2")
        assert await texts(client, 2) == ["1", "2"]
        await client.leave()
        await say(here, "3")
        await say(there, "4")
        again = await there.connect()
        recovery = await again.session.topics.subscribe(T, since=Position(begun.epoch, 2))
        assert recovery == Recovery(True, Position(begun.epoch, 4), 2)
        await say(here, "5")
        await say(there, "6")
        assert await texts(again, 4) == ["3", "4", "5", "6"]


async def test_all_subscribers_of_all_processes_see_one_order(own_server: Server) -> None:
    async with (
        open_redis_history(own_server.url) as one,
        open_redis_history(own_server.url) as two,
        open_apps(one, two, url=own_server.url) as houses,
    ):
        clients = [await house.connect() for house in houses for _ in range(2)]
        for client in clients:
            await client.session.topics.subscribe(T)
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(say, houses[number % 2], str(number))
        seen = [await texts(client, 60) for client in clients]
        assert sorted(seen[0], key=int) == [str(number) for number in range(60)]
        assert all(one == seen[0] for one in seen)


async def test_resumes_while_others_publish_have_no_gap_and_no_double(own_server: Server) -> None:
    async with (
        open_redis_history(own_server.url) as one,
        open_redis_history(own_server.url) as two,
        open_apps(one, two, url=own_server.url) as houses,
    ):
        begun = await say(houses[0], "0")
        published = trio.Event()

        async def publish(house: House) -> None:
            for _ in range(30):
                await say(house, "x")
            published.set()

        async def resume(house: House, wait: float) -> None:
            await trio.sleep(wait)
            client = await house.connect()
            assert (await client.session.topics.subscribe(T, since=begun)).recovered
            got: list[int] = []
            with trio.fail_after(20):
                while len(got) < 60:
                    got.append((await client.receive())["meta"]["offset"])
            assert got == [*range(2, 62)]

        async with trio.open_nursery() as nursery:
            for house in houses:
                nursery.start_soon(publish, house)
                for number in range(6):
                    nursery.start_soon(resume, house, number * 0.01)


async def test_a_message_that_no_broker_brings_comes_from_the_store(own_server: Server) -> None:
    async with (
        open_redis_history(own_server.url) as one,
        open_redis_history(own_server.url) as two,
        open_apps(one, two) as (here, there),  # without a broker between them
    ):
        client = await here.connect()
        await client.session.topics.subscribe(T)
        await say(here, "1")
        await say(there, "2")
        await say(here, "3")
        assert await texts(client, 3) == ["1", "2", "3"]


async def test_a_broker_that_was_gone_for_a_while_leaves_no_gap(own_server: Server) -> None:
    async with (
        open_redis_history(own_server.url) as one,
        open_redis_history(own_server.url) as two,
        open_apps(one, two, url=own_server.url) as (here, there),
    ):
        client = await here.connect()
        await client.session.topics.subscribe(T)
        await say(there, "1")
        assert await texts(client, 1) == ["1"]
        own_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await say(there, "2", "3")  # nobody hears them, and nothing comes after them
        assert await texts(client, 2) == ["2", "3"]


async def test_a_server_that_is_killed_and_started_again_meanwhile(own_server: Server) -> None:
    async with open_redis_history(own_server.url, max_wait=0.5) as store, open_apps(store) as (house,):
        client = await house.connect()
        await client.session.topics.subscribe(T)
        first = await say(house, "1")
        assert await texts(client, 1) == ["1"]
        own_server.kill()
        failed = await house.app.publish(T, Said("lost"))
        assert (failed.ok, failed.error, failed.position) == (False, "ADAPTER_ERROR", None)
        late = await house.connect()
        assert await late.session.topics.subscribe(T, since=first) is NOT_KEPT
        own_server.start()
        await until_it_answers(store)
        second = await say(house, "2")
        assert second.epoch != first.epoch
        assert second.offset == 1
        # Who was there is told of the new epoch before its first message.
        assert await texts(client, 2) == ["$ws:position", "2"]
        assert await texts(late, 2) == ["$ws:position", "2"]
        resumed = await house.connect()
        assert await resumed.session.topics.subscribe(T, since=first) == Recovery(False, second)


async def test_a_server_that_is_paused_meanwhile(own_server: Server) -> None:
    async with open_redis_history(own_server.url, max_wait=0.3) as store, open_apps(store) as (house,):
        client = await house.connect()
        await client.session.topics.subscribe(T)
        first = await say(house, "1")
        own_server.pause()
        try:
            failed = await house.app.publish(T, Said("2"))
            assert not failed.ok  # and nobody knows whether it was kept
            late = await house.connect()
            assert await late.session.topics.subscribe(T, since=first) is NOT_KEPT
        finally:
            own_server.resume()
        await until_it_answers(store)
        third = await say(house, "3")
        assert third.epoch == first.epoch
        expected = ["1", "3"] if third.offset == 2 else ["1", "2", "3"]
        assert await texts(client, len(expected)) == expected
        resumed = await house.connect()
        assert (await resumed.session.topics.subscribe(T, since=first)).recovered
        assert await texts(resumed, len(expected) - 1) == expected[1:]
