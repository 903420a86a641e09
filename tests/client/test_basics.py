from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import NOW, GetUser, Hello, News, Server, User, open_pair, settle
from trio_wskit.errors import ConnectFailed, ConnectionClosed, RpcError


async def test_a_message_is_sent_with_the_time(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        await client.send(Hello("a"))
        assert await server.receive() == {"type": "HELLO", "meta": {"timestamp": NOW}, "payload": {"name": "a"}}


async def test_a_request_gets_its_reply(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer() -> None:
            asked = await server.receive()
            assert asked["type"] == "GET_USER"
            assert asked["meta"]["timeoutMs"] == 30_000
            server.send("USER", {"name": "Ada"}, id=asked["meta"]["correlationId"])

        nursery.start_soon(answer)
        assert await client.request(GetUser("1")) == User("Ada")


async def test_a_cancelled_request_aborts_the_servers_work(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with trio.move_on_after(2):
            await client.request(GetUser("1"))
        first, second = await server.heard()
        assert first["meta"]["timeoutMs"] == 2000
        assert second == {
            "type": "$ws:abort",
            "meta": {"timestamp": NOW, "correlationId": first["meta"]["correlationId"]},
        }


async def test_what_the_server_refuses_is_raised(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer() -> None:
            server.send("RPC_ERROR", {"code": "NOT_FOUND", "message": "gone"}, id=await server.asked())

        nursery.start_soon(answer)
        with pytest.raises(RpcError, match="NOT_FOUND: gone") as caught:
            await client.request(GetUser("1"))
        assert (caught.value.retryable, caught.value.retry_after) == (False, None)


async def test_messages_come_as_a_stream(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as stream:
        server.send("NEWS", {"text": "a"})
        server.send("NEWS", {"text": "b"})
        assert [await stream.receive(), await stream.receive()] == [News("a"), News("b")]


async def test_a_lost_connection_comes_back_and_what_was_sent_meanwhile_is_sent(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        server.peer.cut()
        await settle()
        assert client.state == "reconnecting"
        await client.send(Hello("a"))
        await client.send(Hello("b"))
        await client.wait_open()
        assert [one["payload"]["name"] for one in await server.heard()] == ["a", "b"]


async def test_the_block_raises_when_there_will_be_no_connection(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse(401)
    logged: list[str] = []
    with pytest.raises(ConnectFailed) as caught:
        async with open_pair(server, logged=logged):
            pytest.fail("not reached")
    assert caught.value.status == 401
    assert logged == ["ws://server.test/path: refused; giving up"]


async def test_what_the_block_raises_comes_out_bare(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_pair():
            raise KeyError("mine")


async def test_after_close_nothing_can_be_sent(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        await client.close(4000, "bye")
        with pytest.raises(ConnectionClosed, match="4000"):
            await client.send(Hello("a"))
        with pytest.raises(ConnectionClosed, match="4000 \\(bye\\)"):
            await server.peer.receive()
