"""The other end of a link, spoken by `websockets` without its I/O: a parser of others notices a torn frame."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import cast, final

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from trio_wskit._core.frames import Binary
from trio_wskit.errors import ConnectionClosed

_TLS = Path(__file__).parents[1] / "data" / "tls"
_LINK_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_TLS / "cert.pem", _TLS / "key.pem")
    return context


def client_tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(_TLS / "cert.pem"))


@final
class ProtocolPeer:
    """A `trio_wskit.testing.TransportPeer` on any Trio stream."""

    def __init__(self, stream: trio.abc.Stream, *, shaken: bool = True, already_read: bytes = b"") -> None:
        self._stream = stream
        state = State.OPEN if shaken else State.CONNECTING
        self._protocol = ClientProtocol(parse_uri("ws://localhost/"), state=state, max_size=None)
        self._sending = trio.Lock()
        self._received: deque[bytes] = deque()
        self._shows_pongs = False
        if already_read:
            self._protocol.receive_data(already_read)

    async def shake_hands(self) -> None:
        """Where the server was not told to skip the handshake."""
        self._protocol.send_request(self._protocol.connect())
        await self._flush()
        while self._protocol.state is State.CONNECTING:
            self._protocol.receive_data(await self._stream.receive_some(65536))
            self._protocol.events_received()
        assert self._protocol.handshake_exc is None, self._protocol.handshake_exc

    async def send(self, message: bytes) -> None:
        if isinstance(message, Binary):
            self._protocol.send_binary(message)
        else:
            self._protocol.send_text(message)
        await self._flush()

    async def receive_any(self) -> bytes:
        """Like `receive`, but of a pong it gives ``pong`` and its payload as well."""
        self._shows_pongs = True
        try:
            return await self.receive()
        finally:
            self._shows_pongs = False

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._received:
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode is Opcode.TEXT:
                    assert event.fin, "our frames are whole"
                    self._received.append(bytes(event.data))
                elif event.opcode is Opcode.PONG and self._shows_pongs:
                    self._received.append(b"pong " + event.data)
            if not self._received:
                await self._read()
        return self._received.popleft()

    async def _read(self) -> None:
        if self._protocol.state is State.CLOSED:
            raise ConnectionClosed(self._protocol.close_code or 1006, self._protocol.close_reason or "")
        try:
            data = await self._stream.receive_some(65536)
        except _LINK_ERRORS:
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        with suppress(*_LINK_ERRORS):
            await self._flush()

    @property
    def close_reason(self) -> str:
        """What came with the close code."""
        return self._protocol.close_reason or ""

    @property
    def close_code(self) -> int | None:
        """What the other end's close frame said; 1006 without one, None before the end."""
        return self._protocol.close_code

    async def aclose(self, code: int, reason: str) -> None:
        self._protocol.send_close(code, reason)
        await self._flush()
        while self._protocol.state is not State.CLOSED:
            with suppress(ConnectionClosed):
                await self._read()
        await self._stream.aclose()

    def cut(self) -> None:
        drop(self._stream)

    async def _flush(self) -> None:
        async with self._sending:
            for data in self._protocol.data_to_send():
                if data:
                    await self._stream.send_all(data)
                else:
                    await send_eof(self._stream)


async def send_eof(stream: trio.abc.Stream) -> None:
    if isinstance(stream, trio.abc.HalfCloseableStream):
        with suppress(*_LINK_ERRORS):
            await stream.send_eof()


def drop(stream: trio.abc.Stream) -> None:
    """Break a link at once: with a reset where there is a socket beneath."""
    while isinstance(stream, trio.SSLStream):
        stream = cast("trio.SSLStream[trio.abc.Stream]", stream).transport_stream
    assert isinstance(stream, trio.SocketStream)
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


def socket_pair(*, small: bool = True) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection on loopback, with small buffers, so that a peer that does not read is noticed soon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client = socket.socket()
        if small:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    if small:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return server, client


def stream_of(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
