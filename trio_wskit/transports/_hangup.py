"""Has the peer hung up, or vanished? While nobody reads, a stream does not tell: its end is behind what was not read.

Who hangs up is noticed on Linux alone (EPOLLRDHUP): elsewhere nothing but reading tells, so a handler of a client that
left goes on until it ends, or until it writes. Who vanishes without a word, as behind a cable that was pulled, answers
no ping; but pings do not count while we hold back reading, for the pong would wait behind what we do not read. Then TCP
asks the peer's system itself (`keep_alive`).
"""

from __future__ import annotations

import select
import socket
import sys
from typing import Final, cast

import trio

__all__ = ["hung_up", "keep_alive", "socket_below"]

# Seconds of silence before TCP asks, seconds between questions, and how many may stay unanswered: a minute in all.
# Longer than the usual `ping_interval`, so that a link with pings is never asked.
KEEP_ALIVE: Final = (40, 5, 4)


def keep_alive(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the system ask a silent TCP peer whether it is still there, and break the link if it is not.

    The peer's system answers, not its program, so this says nothing of a program that hangs: pings do. Where the times
    cannot be set, the system's own hold (two hours, often). Other sockets are left alone.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEP_ALIVE, strict=True):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


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
