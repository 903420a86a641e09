"""The native transport: our own frames (`_core/frame_parser.py`) on plain sockets or on Trio streams, for either side.

Three classes behave alike and differ in what carries the bytes:

    PolledTransport   a plain socket on Linux; one task reads for all connections of a listener
    SocketTransport   a plain socket; a task of the connection reads
    StreamTransport   any Trio stream: TLS, or memory in tests
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import trio

from trio_wskit._core.upgrade import Upgrade, UpgradeRequest, parse_response_head
from trio_wskit.errors import RemoteProtocolError
from trio_wskit.transports._socket_link import SocketTransport
from trio_wskit.transports._stream_link import StreamTransport

if TYPE_CHECKING or sys.platform == "linux":
    from trio_wskit.transports._poller import PolledTransport, Poller

if TYPE_CHECKING:
    from trio_wskit.abc import Transport

__all__ = ["PolledTransport", "Poller", "SocketTransport", "StreamTransport", "connect_native", "native_transport"]


def native_transport(
    link: socket.socket | trio.abc.Stream,
    *,
    poller: Poller | None = None,
    client: bool = False,
    leftover: bytes = b"",
    max_message_bytes: int = 1 << 20,
    max_fragments: int = 1 << 17,
    deflate_window_bits: int | None = None,
) -> Transport:
    """Make the quickest transport that a link allows. From now on the link is its own.

    Args:
        link: after the handshake. A `trio.SocketStream` is taken apart, and its socket used without it.
        poller: who reads plain sockets of a server; None where a task does.
        client: we are the client.
        leftover: bytes that were read behind the handshake.
        max_message_bytes: larger messages are refused with 1009, a frame of that size from its header.
        max_fragments: frames that one message may come in; more are refused with 1008.
        deflate_window_bits: `Upgrade.deflate_window_bits`.
    """
    if isinstance(link, trio.SocketStream):
        link = socket.socket(fileno=link.socket.detach())
    if isinstance(link, socket.socket):
        if poller is not None and not client:
            return PolledTransport(
                link,
                poller,
                leftover=leftover,
                max_message_bytes=max_message_bytes,
                max_fragments=max_fragments,
                deflate_window_bits=deflate_window_bits,
            )
        return SocketTransport(
            link,
            client=client,
            leftover=leftover,
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            deflate_window_bits=deflate_window_bits,
        )
    return StreamTransport(
        link,
        client=client,
        leftover=leftover,
        max_message_bytes=max_message_bytes,
        max_fragments=max_fragments,
        deflate_window_bits=deflate_window_bits,
    )


async def connect_native(
    stream: trio.abc.Stream,
    request: UpgradeRequest,
    *,
    max_message_bytes: int = 1 << 20,
    max_head_bytes: int = 1 << 16,
) -> tuple[Transport, Upgrade]:
    """Shake hands as a client; bound it with a cancel scope.

    Args:
        stream: connected to the server, through TLS where that is wanted. It is closed if the handshake fails.
        request: what to ask for.
        max_message_bytes: larger messages from the server are refused with 1009.
        max_head_bytes: the largest head of an answer.

    Returns:
        The open link, and what was agreed on.

    Raises:
        Reject: the server refused with an HTTP status.
        RemoteProtocolError: the server's answer is not one to our request.
        trio.BrokenResourceError: the link broke.

    Cancelled: the stream is closed.
    """
    try:
        await stream.send_all(request.to_bytes())
        head, leftover = await _read_head(stream, max_head_bytes)
        upgrade = request.check_response(*parse_response_head(head))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    transport = native_transport(
        stream,
        client=True,
        leftover=leftover,
        max_message_bytes=max_message_bytes,
        deflate_window_bits=upgrade.deflate_window_bits,
    )
    return transport, upgrade


async def _read_head(stream: trio.abc.Stream, max_bytes: int) -> tuple[bytes, bytes]:
    """Read to the empty line that ends a head; give what is before and what is behind it."""
    data = bytearray()
    while True:
        looked_at = max(0, len(data) - 3)
        more = await stream.receive_some()
        if not more:
            raise RemoteProtocolError("the server hung up in the middle of the handshake")
        data += more
        end = data.find(b"\r\n\r\n", looked_at)
        if end > max_bytes or (end < 0 and len(data) > max_bytes):
            raise RemoteProtocolError(f"the head of the server's answer is above the limit of {max_bytes} bytes")
        if end >= 0:
            return bytes(data[:end]), bytes(data[end + 4 :])
