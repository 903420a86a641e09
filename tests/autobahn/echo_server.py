"""An echo server on the native transport, with nothing of the framework above it: `echo_server.py PORT poller|stream`.

With `poller` all connections are read behind one epoll; with `stream` each by a task, through Trio's stream interface.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import trio

from trio_wskit._core.frames import Binary, binary_frame, text_frame
from trio_wskit._core.handshake import Headers
from trio_wskit._core.upgrade import accept_upgrade
from trio_wskit.errors import ConnectionClosed, Reject
from trio_wskit.transports.native import PolledTransport, Poller, StreamTransport, native_transport

MAX_MESSAGE_BYTES = 1 << 25  # the largest of the test suite's messages has 16 MiB
MAX_HEAD_BYTES = 1 << 16


def answers(messages: Sequence[bytes]) -> list[bytes]:
    """The frames that send messages back as they came."""
    return [binary_frame(one) if isinstance(one, Binary) else text_frame(one) for one in messages]


class Echo:
    """Sends back what it is fed; takes no more while something of it waits for the peer."""

    def __init__(self, link: PolledTransport, nursery: trio.Nursery) -> None:
        self.link = link
        self.nursery = nursery
        self.ended = trio.Event()

    def feed(self, messages: list[bytes]) -> bool:
        """Answer at once, or hold back until that is done."""
        try:
            left = self.link.write_nowait(answers(messages))
        except ConnectionClosed:
            return True
        if left:
            self.nursery.start_soon(self._drain, left)
        return not left

    async def _drain(self, left: Sequence[bytes]) -> None:
        try:
            await self.link.write(left)
        except ConnectionClosed:
            return
        self.link.resume()

    def disconnected(self, code: int, reason: str) -> None:
        """The connection may go now."""
        self.ended.set()


async def serve(poller: Poller | None, stream: trio.SocketStream) -> None:
    """Shake hands and echo until the peer has enough."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more or len(data) > MAX_HEAD_BYTES:
            return
        data += more
    head, leftover = data.split(b"\r\n\r\n", 1)
    fields = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
    try:
        upgrade = accept_upgrade(Headers((name, value.strip()) for name, _, value in fields), deflate=True)
    except Reject as refusal:
        await stream.send_all(f"HTTP/1.1 {refusal.status} Refused\r\nConnection: close\r\n\r\n".encode())
        return
    await stream.send_all(upgrade.to_bytes())
    bits = upgrade.deflate_window_bits
    if poller is None:
        link = StreamTransport(stream, leftover=leftover, max_message_bytes=MAX_MESSAGE_BYTES, deflate_window_bits=bits)
        try:
            while True:
                await link.write(answers(await link.receive()))
        except ConnectionClosed:
            pass
        with trio.move_on_after(5):
            await link.aclose()
        return
    polled = native_transport(
        stream, poller=poller, leftover=leftover, max_message_bytes=MAX_MESSAGE_BYTES, deflate_window_bits=bits
    )
    assert isinstance(polled, PolledTransport)
    async with trio.open_nursery() as nursery:
        echo = Echo(polled, nursery)
        polled.attach(echo)
        await echo.ended.wait()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(5):
        await polled.aclose()


async def serve_echo(port: int, kind: str, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve on this port of 127.0.0.1 until cancelled; port 0 takes a free one, and tells which."""
    async with trio.open_nursery() as nursery:
        poller = Poller() if kind == "poller" else None
        if poller is not None:
            await nursery.start(poller.run)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(partial(serve, poller), listeners)


if __name__ == "__main__":
    trio.run(serve_echo, int(sys.argv[1]), sys.argv[2])
