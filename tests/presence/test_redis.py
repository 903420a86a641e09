"""Presence on real servers: the contract, and what happens when a server is gone, stopped, or loses its memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from coredis import Redis, RedisCluster
from coredis.retry import NoRetryPolicy

from tests.valkey import COREDIS_RUBBISH, Server, free_port
from trio_wskit import App, ConfigError, Router, WsKitError, open_app
from trio_wskit.abc import PresenceStore
from trio_wskit.presence import Presence, PresenceAnswer, PresenceBeat, PresenceChange
from trio_wskit.presence.redis import open_redis_presence
from trio_wskit.testing import check_presence

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]


def opening(server: Server, max_wait: float = 1.0) -> Callable[[str], AbstractAsyncContextManager[PresenceStore]]:
    def open_store(name: str) -> AbstractAsyncContextManager[PresenceStore]:
        return open_redis_presence(server.url, name=name, max_wait=max_wait)

    return open_store


async def test_it_keeps_the_contract(store: Server) -> None:
    await check_presence(opening(store, max_wait=10))


async def test_it_keeps_the_contract_on_a_cluster(cluster: Server) -> None:
    async with RedisCluster("127.0.0.1", cluster.port, retry_policy=NoRetryPolicy()) as client:

        @asynccontextmanager
        async def open_store(name: str) -> AsyncGenerator[PresenceStore]:
            async with open_redis_presence(client, name=name, max_wait=10) as presence:
                yield presence

        await check_presence(open_store)


async def killed_and_restarted(server: Server) -> None:
    await trio.sleep(0.8)  # long enough for it to have answered after what came before
    await trio.to_thread.run_sync(server.kill)
    await trio.sleep(0.3)
    await trio.to_thread.run_sync(server.start)


async def paused(server: Server) -> None:
    await trio.sleep(0.8)
    server.pause()
    await trio.sleep(0.5)
    server.resume()


async def paused_beyond_the_leases(server: Server) -> None:
    await trio.sleep(0.8)
    server.pause()
    await trio.sleep(2.5)
    server.resume()


async def all_of_it(server: Server) -> None:
    for disturb in (killed_and_restarted, paused, killed_and_restarted, paused_beyond_the_leases):
        await disturb(server)


async def emptied(server: Server) -> None:
    for _ in range(3):
        await trio.sleep(0.5)
        server.command("FLUSHALL")


@pytest.mark.parametrize(
    "disturb",
    [killed_and_restarted, paused, paused_beyond_the_leases, all_of_it, emptied],
    ids=lambda one: one.__name__,
)
async def test_in_the_end_everybody_knows_who_is_there(
    own_server: Server, disturb: Callable[[Server], Awaitable[None]]
) -> None:
    async def break_and_mend() -> None:
        await disturb(own_server)

    await check_presence(opening(own_server, max_wait=0.25), disturb=break_and_mend)


def beat(number: int, changes: Sequence[PresenceChange] = (), *, doubtful: bool = False) -> PresenceBeat:
    return PresenceBeat(node="a", number=number, first=number == 1, changes=changes, doubtful=doubtful)


async def test_without_a_server_it_opens_and_says_so_when_asked() -> None:
    async with open_redis_presence(f"redis://127.0.0.1:{free_port()}", max_wait=0.2) as presence:
        with trio.fail_after(5):
            for call in (presence.beat(beat(1)), presence.members("t"), presence.count("t"), presence.retire("a", 1)):
                with pytest.raises(WsKitError, match="UNAVAILABLE: The presence store is unavailable"):
                    await call


async def test_a_server_that_does_not_answer_is_given_up_and_asked_again(own_server: Server) -> None:
    async with open_redis_presence(own_server.url, max_wait=0.2) as presence:
        await presence.beat(beat(1, changes=[("t", "ann", b"1")]))
        own_server.pause()
        start = trio.current_time()
        with pytest.raises(WsKitError, match="UNAVAILABLE"):
            await presence.beat(beat(2, changes=[("t", "ann", None)]))
        assert trio.current_time() - start < 5
        own_server.resume()
        answer: PresenceAnswer | None = None
        with trio.fail_after(10):
            while answer is None:
                with suppress(WsKitError):
                    answer = await presence.beat(beat(3, changes=[("t", "ann", None)], doubtful=True))
        assert answer.known
        assert answer.diffs[0].leaves == ("ann",)


async def test_what_was_swept_is_reported_until_it_is_acknowledged(store: Server) -> None:
    async with open_redis_presence(store.url) as one, open_redis_presence(store.url) as two:
        await one.beat(PresenceBeat(node="dead", number=1, first=True, changes=[("t", "ann", b"1")]))
        await one.retire("dead", 0)
        await trio.sleep(0.01)
        swept = await one.beat(beat(1))
        assert (swept.diffs[0].leaves, swept.more) == (("ann",), True)
        # `one` dies here, before it has told anybody: it would have beaten again at once.
        again = await two.beat(PresenceBeat(node="b", number=1, first=True))
        assert (again.diffs[0].leaves, again.more) == (("ann",), True)
        assert not (await two.beat(PresenceBeat(node="b", number=2))).more
        assert (await two.beat(PresenceBeat(node="b", number=3))).diffs == ()


async def test_nothing_is_left_of_a_topic_in_which_nobody_is(store: Server) -> None:
    async with open_redis_presence(store.url, name="n") as presence:
        await presence.beat(beat(1, changes=[("t", "ann", b"1"), ("u", "ann", b"1")]))
        await presence.beat(beat(2, changes=[("t", "ann", None), ("u", "ann", None)]))
        await presence.retire("a", 0)
        await trio.sleep(0.01)
        for number in (1, 2):
            await presence.beat(PresenceBeat(node="b", number=number, first=number == 1))
        keys = store.command("KEYS", "*").decode().split("\r\n")[2::2]
        assert sorted(keys) == ["{n}:nodes", "{n}:numbers", "{n}:version"]
        assert store.command("HKEYS", "{n}:numbers").decode().split() == ["*1", "$1", "b"]


def calls(server: Server) -> int:
    """How many scripts have run."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if line.startswith(("cmdstat_eval",)))


async def test_a_beat_of_a_thousand_is_one_call(store: Server) -> None:
    async with open_redis_presence(store.url, max_wait=10) as presence:
        await presence.beat(beat(1))
        before = calls(store)
        await presence.beat(beat(2, changes=[("t", f"i{number}", b"1") for number in range(1000)]))
        assert calls(store) == before + 1
        assert await presence.count("t") == 1000


async def test_a_count_is_one_call_whoever_is_new_and_whoever_has_died(store: Server) -> None:
    async with open_redis_presence(store.url, max_wait=10) as presence:
        await presence.beat(beat(1, changes=[("t", "ann", b"1"), ("t", "bob", b"1")]))
        await presence.beat(PresenceBeat(node="dead", number=1, first=True, changes=[("t", "cid", b"1")]))
        new = ["ann", "дан", *(f"i{number}" for number in range(9998))]
        before = calls(store)
        assert await presence.count("t") == 3
        assert await presence.count("t", new) == 10_002
        assert await presence.count("nowhere", new) == 10_000
        await presence.retire("dead", 0)
        await trio.sleep(0.01)
        assert await presence.count("t") == 2
        assert await presence.count("t", ["ann", "cid", "eve"]) == 4  # who is new here may be one of the dead there
        assert calls(store) == before + 6


async def test_who_is_on_two_processes_counts_once_at_every_moment(store: Server) -> None:
    async with open_redis_presence(store.url) as ours, open_redis_presence(store.url) as theirs:
        one, two = (Presence(those, debounce=0.2, linger=0) for those in (ours, theirs))
        async with open_app(App(Router(), presence=one)), open_app(App(Router(), presence=two)):
            one.enter("c1", "ann", "room", 1)
            with trio.fail_after(10):
                while await two.count("room") < 1:  # noqa: ASYNC110 - nobody tells us
                    await trio.sleep(0.01)
            beats = two.statistics().beats
            two.enter("c2", "ann", "room", 2)
            counts = [await two.count("room")]
            while two.statistics().beats == beats:
                counts.append(await two.count("room"))
            counts.append(await two.count("room"))
            assert set(counts) == {1}


@pytest.mark.parametrize(
    ("options", "why"),
    [({"max_wait": 0}, "max_wait"), ({"name": ""}, "name"), ({"name": "a{b}"}, "without braces")],
)
async def test_bad_options_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        async with open_redis_presence("redis://127.0.0.1", **options):
            pass


async def test_a_client_that_asks_again_by_itself_is_refused() -> None:
    client: Redis[bytes] = Redis(port=free_port())
    with pytest.raises(ConfigError, match="NoRetryPolicy"):
        async with open_redis_presence(client):
            pass


async def test_what_the_block_raises_comes_out_bare(store: Server) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_redis_presence(store.url):
            raise KeyError("mine")
