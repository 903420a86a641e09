"""A server on a real socket, and clients that can do anything to it: for tests in real time."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, final
from urllib.parse import urlsplit

import trio

from tests.transports.peers import ProtocolPeer, drop
from trio_wskit import App, ConnectionClosed, Server, serve
from trio_wskit._core.frames import masked

__all__ = ["TRANSPORTS", "Client", "Refused", "ask", "connect", "hung_up", "open_stream", "serving", "until"]

TRANSPORTS: Final = ("native", "trio_websocket")
KEY: Final = b"\x37\xfa\x21\x3d"


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait for what other tasks, or another process, bring about."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - nobody there tells us
            await trio.sleep(0.005)


@asynccontextmanager
async def serving(
    app: App, transport: Any = "native", host: str | None = "127.0.0.1", **options: Any
) -> AsyncGenerator[Server]:
    """Serve while the block runs. Its end is the server's: every task of it is over then."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, host, transport=transport, **options))
        yield server
        nursery.cancel_scope.cancel()


async def open_stream(server: Server, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """Connect, and send nothing yet."""
    url = server.urls[0]
    if url.startswith("unix:"):
        return await trio.open_unix_socket(url.removeprefix("unix:"))
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    stream = await trio.open_tcp_stream(parts.hostname, parts.port)
    if tls is None:
        return stream
    return trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)


@final
class Refused(Exception):
    """The server did not answer 101."""

    def __init__(self, status: int, headers: Mapping[str, str], body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = headers
        self.body = body


async def ask(server: Server, raw: bytes, *, tls: ssl.SSLContext | None = None) -> Refused:
    """Send bytes, read to the end, and give the answer, which was no WebSocket."""
    async with await open_stream(server, tls) as stream:
        await stream.send_all(raw)
        status, headers, rest = await _read_head(stream)
        return Refused(status, headers, (rest + await _read_to_the_end(stream)).decode())


async def connect(
    server: Server,
    target: str = "/",
    *,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    and_at_once: bytes = b"",
    stream: trio.abc.Stream | None = None,
) -> Client:
    """Shake hands.

    Args:
        server: where.
        target: path and query.
        headers: in place of the usual ones, or beside them; an empty one is left out.
        tls: speak it.
        and_at_once: what is sent behind the request without waiting for the answer.
        stream: connected already.

    Raises:
        Refused: the server's answer is not 101.
    """
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value), "", ""]
    stream = stream or await open_stream(server, tls)
    try:
        await stream.send_all("\r\n".join(lines).encode() + and_at_once)
        status, answered, rest = await _read_head(stream)
        if status != 101:
            while len(rest) < int(answered.get("content-length", 0)):
                rest += await stream.receive_some(65536)
            raise Refused(status, answered, rest.decode())
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Client(stream, answered, rest)


async def _read_head(stream: trio.abc.Stream) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(65536)
        if not more:
            raise trio.BrokenResourceError(f"the server hung up after {data!r}")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = (line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in fields}, rest


async def hung_up(stream: trio.abc.Stream) -> bytes:
    """What comes until the end, which may be a reset."""
    data = bytearray()
    with trio.fail_after(10):
        try:
            while more := await stream.receive_some(65536):
                data += more
        except trio.BrokenResourceError:
            pass
    return bytes(data)


async def _read_to_the_end(stream: trio.abc.Stream) -> bytes:
    data = bytearray()
    while more := await stream.receive_some(65536):
        data += more
    return bytes(data)


@final
class Client:
    """A WebSocket client that reads only when it is told to, and sends what it is told to, whatever that is.

    Attributes:
        stream: what is beneath.
        headers: of the server's 101.
        peer: parses what the server sends.
    """

    def __init__(self, stream: trio.abc.Stream, headers: Mapping[str, str], rest: bytes) -> None:
        self.stream = stream
        self.headers = headers
        self.peer = ProtocolPeer(stream, already_read=rest)

    @property
    def client_id(self) -> str:
        return self.headers["x-client-id"]

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.stream)

    async def send(self, kind: str, payload: object = None, *, call: str | None = None, **meta: object) -> None:
        """Send a message, with `call` for its correlation id."""
        if call is not None:
            meta["correlationId"] = call
        envelope: dict[str, object] = {"type": kind}
        if meta:
            envelope["meta"] = meta
        if payload is not None:
            envelope["payload"] = payload
        await self.peer.send(json.dumps(envelope).encode())

    async def send_frames(self, *frames: bytes) -> None:
        """Send frames as they are, but masked."""
        await self.stream.send_all(b"".join(masked(one, KEY) for one in frames))

    async def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        received: dict[str, Any] = json.loads(await self.peer.receive())
        return received

    async def end(self) -> tuple[int, str]:
        """Read to the end, and tell the close code and reason; 1006 where there was no close frame."""
        while True:
            try:
                await self.peer.receive()
            except ConnectionClosed as closed:
                return closed.code, closed.reason

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close as one should."""
        await self.peer.aclose(code, reason)

    def cut(self) -> None:
        """Reset the link."""
        drop(self.stream)
