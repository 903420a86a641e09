"""The native transport and the websockets package on the two ends of a real TCP connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import pytest
import trio
from websockets.exceptions import ConnectionClosed as WebsocketsClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as websockets_serve

from tests.autobahn.echo_server import serve_echo
from trio_wskit._core.frames import Binary, binary_frame, text_frame
from trio_wskit._core.upgrade import UpgradeRequest
from trio_wskit.errors import ConnectionClosed
from trio_wskit.transports.native import connect_native

pytestmark = pytest.mark.interop

MESSAGES: list[str | bytes] = ["", "grüß 🎉", "x" * 70_000, b"", bytes(range(256)), os.urandom(200_000)]


def talk(port: int, compression: str | None) -> None:
    """What a websockets client does with our echo server."""
    with connect(f"ws://127.0.0.1:{port}/", compression=compression, max_size=None) as client:
        assert ("permessage-deflate" in str(client.response)) == (compression is not None)
        for message in MESSAGES:
            client.send(message)
            assert client.recv() == message
        for message in MESSAGES:
            client.send(message)
        assert [client.recv() for _ in MESSAGES] == MESSAGES
        client.send(["in ", "three ", "parts"])
        assert client.recv() == "in three parts"
        assert client.ping("are you there?").wait(10)
        client.close(4001, "enough")
    assert client.close_code == 4001
    assert client.close_reason == "enough"


def talk_badly(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/", compression=None) as client:
        client.socket.sendall(b"\x81\x00")
        with pytest.raises(WebsocketsClosed) as caught:
            client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1002


@pytest.mark.parametrize("kind", ["poller", "stream"])
@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_a_websockets_client_is_understood(kind: str, compression: str | None) -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_echo, 0, kind))
        await trio.to_thread.run_sync(talk, port, compression)
        await trio.to_thread.run_sync(talk_badly, port)
        nursery.cancel_scope.cancel()


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def websockets_server() -> Generator[int]:
    with websockets_serve(echo, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("deflate", [False, True])
async def test_a_websockets_server_is_understood(deflate: bool) -> None:
    with websockets_server() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        request = UpgradeRequest(host=f"127.0.0.1:{port}", nonce=os.urandom(16), deflate=deflate)
        link, upgrade = await connect_native(stream, request)
        assert (upgrade.deflate_window_bits is not None) == deflate
        for message in MESSAGES:
            payload = message.encode() if isinstance(message, str) else Binary(message)
            await link.write([binary_frame(payload) if isinstance(payload, Binary) else text_frame(payload)])
            (answer,) = await link.receive()
            assert (type(answer), answer) == (type(payload), payload)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(ConnectionClosed):
                    await link.receive()

            nursery.start_soon(receive)
            await link.ping()
            await link.aclose(4001, "enough")
