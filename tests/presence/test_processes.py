"""Several apps that share a store and a broker: whoever watches on one sees who comes and goes on another."""

from __future__ import annotations

import signal
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.presence.redis_room import TOPIC
from tests.presence.test_presence import Counting, connect, diffs, ids, options, router
from tests.pubsub.redis_chat import QUICK
from tests.serving import Client, serving
from tests.serving import connect as dial
from tests.sessions import open_house
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import App
from trio_wskit.presence import MemoryPresence, Presence
from trio_wskit.presence.redis import open_redis_presence
from trio_wskit.pubsub import MemoryBroker, with_broker
from trio_wskit.pubsub.redis import open_redis_pubsub

ROOT: Final = Path(__file__).resolve().parents[2]


async def test_changes_reach_those_who_watch_on_another_process(autojump_clock: MockClock) -> None:
    store, broker = MemoryPresence(), MemoryBroker()

    def app() -> dict[str, Any]:
        presence = Presence(store, debounce=0.5, linger=2)
        return options(presence, pubsub=with_broker(broker.driver(), broker.consumer()))

    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(open_house(**app())) for _ in range(2)]
        ann, bob = await connect(here, "ann"), await connect(there, "bob")
        bob.send("WATCH", {"topic": "room"})
        await bob.heard()
        ann.send("ENTER", {"topic": "room"})
        assert diffs([await bob.receive()]) == [(["ann"], [])]
        assert await ids(there) == ["ann"]
        # It reconnects, and comes to the other process.
        await ann.leave()
        await trio.sleep(1)
        ann = await connect(there, "ann")
        ann.send("ENTER", {"topic": "room"})
        await trio.sleep(10)
        assert await bob.heard() == []
        assert await ids(here) == ["ann"]
        await ann.leave()
        assert diffs([await bob.receive()]) == [([], ["ann"])]


@pytest.mark.usefixtures("coredis_rubbish")
@pytest.mark.filterwarnings(COREDIS_RUBBISH)
async def test_two_servers_and_a_real_store(store: Server) -> None:
    async with AsyncExitStack() as stack:

        async def start() -> Any:
            presence = Presence(
                await stack.enter_async_context(open_redis_presence(store.url)), debounce=0.05, linger=0.2
            )
            pubsub = with_broker(*await stack.enter_async_context(open_redis_pubsub(store.url)), restart=QUICK)
            server = await stack.enter_async_context(serving(App(router(), presence=presence, pubsub=pubsub)))
            await pubsub.wait_ready()
            return server

        here, there = await start(), await start()
        watcher: Client = await stack.enter_async_context(await dial(there))
        await watcher.send("WATCH", {"topic": "room"})
        with trio.fail_after(20):
            assert (await watcher.receive())["payload"] == {"topic": "room", "version": 0, "members": []}
            async with await dial(here) as ann:
                await ann.send("ENTER", {"topic": "room", "state": {"n": 1}})
                came = (await watcher.receive())["payload"]
                assert came["joins"] == [{"id": ann.client_id, "state": {"n": 1}}]
                name = ann.client_id
            assert (await watcher.receive())["payload"]["leaves"] == [name]


@pytest.mark.usefixtures("coredis_rubbish")
@pytest.mark.filterwarnings(COREDIS_RUBBISH)
@pytest.mark.parametrize(("end", "seconds"), [("kill", 1.0), ("stop", 1.0)])
async def test_members_of_a_process_that_is_killed_or_stopped_vanish(store: Server, end: str, seconds: float) -> None:
    crowd = Counting()
    command = [sys.executable, "-m", "tests.presence.redis_room", store.url, str(seconds), "ann", "bob"]
    async with open_redis_presence(store.url) as link, trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=PIPE, cwd=ROOT, check=False)
        )
        try:
            assert process.stdout is not None
            with trio.fail_after(30):
                assert await process.stdout.receive_some() == b"ready\n"
            presence = Presence(link, debounce=0.05, linger=0, ttl=seconds)
            await crowd.start(nursery, presence)
            presence.enter("c1", "cid", TOPIC, None)
            assert {member.id for member in await presence.list(TOPIC)} == {"ann", "bob", "cid"}
            process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGSTOP)
            with trio.fail_after(20):
                while {who for diff in crowd.messages for who in diff.leaves} != {"ann", "bob"}:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert await presence.count(TOPIC) == 1
            if end == "stop":  # and it comes back, without having been told
                process.send_signal(signal.SIGCONT)
                with trio.fail_after(20):
                    while await presence.count(TOPIC) < 3:  # noqa: ASYNC110 - nobody tells us
                        await trio.sleep(0.05)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            nursery.cancel_scope.cancel()
