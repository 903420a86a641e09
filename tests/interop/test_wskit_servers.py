"""Our client, and ws-kit's server on Bun and on Deno: every promise that ws-kit's server keeps, on real TCP."""

from __future__ import annotations

import pytest
import trio

from tests.interop.our_server import serve_ours
from tests.interop.wskit_servers import (
    CloseMe,
    Count,
    Counted,
    GetUser,
    Greeting,
    Hello,
    Limited,
    Never,
    Passed,
    Said,
    Say,
    User,
    serve_wskit,
)
from trio_wskit import Limits, Retry, TokenAuth, open_client
from trio_wskit.client import Attach, Gap
from trio_wskit.errors import ConnectFailed, RpcError

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("runtime", ["bun", "deno", "ours"])
async def test_our_client_and_ws_kits_server_and_ours_alike(runtime: str) -> None:
    async with serve_ours() if runtime == "ours" else serve_wskit(runtime) as url:
        await messages_and_requests(url)
        await topics(url)
        await limits_and_silence(url)
        await closing(url)
        attaches: list[Attach] = ["query", "protocol", "header"]
        for attach in attaches:
            await tokens(url, attach)


async def messages_and_requests(url: str) -> None:
    async with open_client(url) as client, client.messages(Greeting) as greetings:
        await client.send(Hello("Ada"))
        await client.send(Hello("Grace"))
        assert [await greetings.receive(), await greetings.receive()] == [
            Greeting("hello Ada"),
            Greeting("hello Grace"),
        ]
        with trio.fail_after(10):  # a deadline is not told to this server, which would drop the request
            assert await client.request(GetUser("1")) == User("user 1")
        with pytest.raises(RpcError) as refused:
            await client.request(GetUser("none"))
        assert (refused.value.code, refused.value.message) == ("NOT_FOUND", "no such user")
        assert refused.value.details == {"id": "none"}
        with pytest.raises(RpcError) as busy:
            await client.request(GetUser("busy"))
        assert (busy.value.retryable, busy.value.retry_after) == (True, 0.02)
        with pytest.raises(RpcError):
            await client.request(GetUser("busy"), retry=Retry(max_attempts=2))
        assert client.stats.retries == 1
        async with client.call(Count(3), progress=Counted) as call:
            assert [step async for step in call.progress] == [Counted(1), Counted(2), Counted(3)]
            assert await call.reply == Counted(3)
        assert client.stats.late == 0
        assert client.stats.refused == 0


async def topics(url: str) -> None:
    async with open_client(url) as one, open_client(url) as two:
        async with one.subscribed("room:a", Said) as stream, two.subscribed("room:a", Said):
            await two.send(Say("a", "to all"))
            assert await stream.receive() == Said("a", "to all")
            await one.send(CloseMe(4000))
            assert await stream.receive() == Gap("room:a", "reconnected")
            await one.wait_open()
            with trio.fail_after(10):
                while one.stats.pending:  # noqa: ASYNC110 - the subscription's answer is nobody's to see
                    await trio.sleep(0.01)
            await two.send(Say("a", "again"))
            assert await stream.receive() == Said("a", "again")
        async with one.messages(Said) as stream_of_none:
            await one.request(GetUser("1"))  # the unsubscription has been heard
            await two.send(Say("a", "to nobody"))
            await two.request(GetUser("1"))
            await one.request(GetUser("1"))
            with trio.move_on_after(0.05) as nothing:
                await stream_of_none.receive()
            assert nothing.cancelled_caught


async def limits_and_silence(url: str) -> None:
    async with open_client(url) as client:
        assert [await client.request(Limited("x")) for _ in range(2)] == [Passed(1), Passed(1)]
        with pytest.raises(RpcError) as over:
            await client.request(Limited("x"))
        assert over.value.code == "RESOURCE_EXHAUSTED"
        assert over.value.retry_after is not None
        assert 0 < over.value.retry_after <= 1
    async with open_client(url, limits=Limits(call_timeout=0.2)) as client:
        with pytest.raises(RpcError, match=r"DEADLINE_EXCEEDED|UNIMPLEMENTED"):  # ours is never silent
            await client.request(Never())
        assert await client.request(GetUser("2")) == User("user 2")


async def closing(url: str) -> None:
    async with open_client(url) as client:
        with client.states() as changes:
            await client.send(CloseMe(4001))
            seen = [await changes.receive() for _ in range(4)]
        assert [one.state for one in seen] == ["open", "reconnecting", "connecting", "open"]
        assert str(seen[1].reason) == "connection closed with 4001 (as you wish)"
    async with open_client(url) as client:
        await client.send(CloseMe(4401))
        assert (await client.wait_closed()).code == 4401


async def tokens(url: str, attach: Attach) -> None:
    async with open_client(url, auth=TokenAuth("good", attach=attach)) as client:
        assert await client.request(GetUser("3")) == User("user 3")
        assert client.subprotocol == ("bearer.good" if attach == "protocol" else None)
    with pytest.raises(ConnectFailed) as refused:
        async with open_client(url, auth=TokenAuth("expired", attach=attach)):
            pytest.fail("it was let in")
    assert refused.value.status == 401
    assert "expired" not in str(refused.value)
