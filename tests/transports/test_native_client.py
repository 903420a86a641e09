"""A client's handshake over any stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from trio_wskit._core.frames import text_frame
from trio_wskit._core.upgrade import UpgradeRequest, accept_upgrade
from trio_wskit.errors import Reject, RemoteProtocolError
from trio_wskit.transports.native import connect_native

REQUEST = UpgradeRequest(host="h", nonce=b"the sample nonce", subprotocols=["a"])
GOOD = accept_upgrade(
    [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", "a"),
    ],
    subprotocols=["a"],
).to_bytes()


async def answered_with(answer: bytes, check: Callable[[trio.abc.Stream], Awaitable[None]], *, bytewise: bool) -> None:
    """Run `check` with a stream whose other end answers a request with these bytes, then hangs up."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        assert await theirs.receive_some() == REQUEST.to_bytes()
        with suppress(trio.BrokenResourceError):
            for at in range(0, len(answer), 1 if bytewise else len(answer)):
                await theirs.send_all(answer[at : at + 1] if bytewise else answer)
            await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await check(ours)


@pytest.mark.parametrize("bytewise", [False, True])
async def test_what_comes_right_behind_the_head_is_not_lost(bytewise: bool) -> None:
    async def check(stream: trio.abc.Stream) -> None:
        transport, upgrade = await connect_native(stream, REQUEST)
        assert upgrade.subprotocol == "a"
        assert await transport.receive() == [b"early"]
        transport.abort()

    await answered_with(GOOD + text_frame(b"early"), check, bytewise=bytewise)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", Reject),
        (b"HTTP/1.1 101 ok\r\n\r\n", RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", RemoteProtocolError),
        (GOOD[:-2], RemoteProtocolError),
        (b"HTTP/1.1 101 ok\r\nX: " + b"x" * 2000 + b"\r\n\r\n", RemoteProtocolError),
        (b"x" * 2000, RemoteProtocolError),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_handshake_that_fails_closes_the_stream(answer: bytes, error: type[Exception], bytewise: bool) -> None:
    async def check(stream: trio.abc.Stream) -> None:
        with pytest.raises(error):
            await connect_native(stream, REQUEST, max_head_bytes=1000)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")

    await answered_with(answer, check, bytewise=bytewise)


async def test_a_handshake_that_is_cancelled_closes_the_stream() -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    with trio.move_on_after(0.01) as scope:
        await connect_native(ours, REQUEST)
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")
