"""A server that refuses a topic that it gave before: what ends then, and what goes on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import News, open_pair, settle
from tests.client.topics import asked, confirm, news, taken
from trio_wskit.errors import RpcError


async def test_a_topic_that_was_refused_can_be_asked_for_again_while_the_first_scope_is_still_there(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_pair() as (client, server),
        client.messages(News) as everything,
        trio.open_nursery() as nursery,
    ):
        leave = trio.Event()

        async def first() -> None:
            async with client.subscribed("t", News) as stream:
                with pytest.raises(RpcError, match="PERMISSION_DENIED"):
                    await stream.receive()
                await leave.wait()

        nursery.start_soon(first)
        await confirm(server)
        await settle()
        server.peer.cut()
        await settle()
        await client.wait_open()
        _, name = await asked(server)
        server.send("RPC_ERROR", {"code": "PERMISSION_DENIED"}, id=name)
        news(server, 7, epoch="of nobody")
        assert await taken(everything) == ["7"]  # nothing is waited for any more
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as second:
            leave.set()
            assert await server.heard() == []  # the first has nothing that could be ended
            news(server, 1)
            assert await taken(second) == ["1"]
            server.peer.cut()
            await settle()
            await client.wait_open()
            assert await confirm(server, offset=1, recovered=True) == {
                "topic": "t",
                "since": {"epoch": "e", "offset": 1},
            }
            news(server, 2)
            assert await taken(second) == ["2"]


async def test_a_stream_that_has_ended_takes_nothing_more_and_holds_nobody_up(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as everything, trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News, capacity=1, overflow="wait") as stream:
            news(server, 1)
            await settle()
            server.peer.cut()
            await settle()
            await client.wait_open()
            _, name = await asked(server)
            server.send("RPC_ERROR", {"code": "PERMISSION_DENIED"}, id=name)
            await settle()
            for text in ("2", "3"):
                server.send("NEWS", {"text": text})
            assert await taken(everything) == ["1", "2", "3"]
            assert await stream.receive() == News("1")
            for _ in range(2):
                with pytest.raises(RpcError, match="PERMISSION_DENIED"):
                    await stream.receive()
