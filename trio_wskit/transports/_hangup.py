"""Has the peer hung up? While nobody reads, a stream does not tell: its end is behind all that was not read."""

from __future__ import annotations

import select
import socket
import sys
from typing import cast

import trio

__all__ = ["hung_up", "socket_below"]


def socket_below(stream: trio.abc.Stream) -> trio.SocketStream | None:
    """The TCP or unix stream that carries this one, if there is one."""
    below: object = stream
    while isinstance(below, trio.SSLStream):
        below = cast("trio.SSLStream[trio.abc.Stream]", below).transport_stream
    return below if isinstance(below, trio.SocketStream) else None


async def hung_up(link: socket.socket | trio.abc.Stream | None) -> None:
    """Wait until the peer has hung up, whatever is unread. For ever where the system cannot tell.

    A peer whose last bytes the kernel has no room for is not noticed: its end has not come yet.
    """
    if not isinstance(link, socket.socket):
        below = None if link is None else socket_below(link)
        fd = -1 if below is None else below.socket.fileno()
    else:
        fd = link.fileno()
    if sys.platform == "linux" and fd >= 0:
        try:
            epoll = select.epoll()
        except OSError:
            await trio.sleep_forever()  # no descriptor is left for this
        with epoll:
            epoll.register(fd, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(epoll.fileno())
    else:
        await trio.sleep_forever()
