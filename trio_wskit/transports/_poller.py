"""One reader for all the plain sockets of a listener, on Linux: an epoll of our own, inside Trio's.

A task that waits for one socket pays an `epoll_ctl` and a task switch for every message. Here one task waits for the
descriptor of the inner epoll (`wait_readable` takes any descriptor), asks it which sockets have something, reads once
from each, and hands the messages to the receiver that was attached. See docs/explanation/decisions/0021-one-poller.md.

Rules
- One read for each ready socket in a pass, so a peer that floods delays the others by one read, not more.
- After so many messages their dispatchers have their turn before the next socket is read: what was decoded is then
  still in the processor's cache, and the garbage collector does not meet it.
- A socket whose receiver said no more is watched only for its end (edge-triggered, or the end would be told for ever).
- A link is unwatched before its descriptor is closed, and what the kernel had said of a descriptor is not told to the
  link that uses it next.
- A receiver that raises loses its own link and no other.
"""

from __future__ import annotations

import logging
import select
import socket
import sys
from typing import TYPE_CHECKING, Final, final

import trio

from trio_wskit.transports._socket_link import SocketTransport
from trio_wskit.transports._wire import READ_BYTES

if TYPE_CHECKING:
    from trio_wskit.abc import Receiver

if sys.platform != "linux":
    raise ImportError("epoll is Linux's own; elsewhere a task for each connection reads a SocketTransport")

__all__ = ["PolledTransport", "Poller"]

logger = logging.getLogger(__name__)

_LINKS_PER_PASS: Final = 256
_MESSAGES_PER_PASS: Final = 128

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_HELD_BACK: Final = select.EPOLLRDHUP | select.EPOLLET


@final
class Poller:
    """Reads for every `PolledTransport` that was made with it.

    Start `run` before a transport is attached, and let it end after the last session.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._links: dict[int, PolledTransport] = {}
        self._forgotten: set[int] = set()  # since the epoll was asked: what it said of them is not for who has them now

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled. Links that are still attached then are aborted, and their receivers told."""
        links, forgotten = self._links, self._forgotten
        with select.epoll() as epoll:
            self._epoll = epoll
            task_status.started()
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    forgotten.clear()
                    room = _MESSAGES_PER_PASS
                    for fd, events in epoll.poll(0, _LINKS_PER_PASS):
                        link = links.get(fd)
                        if link is None or fd in forgotten:
                            continue
                        try:
                            room -= link.read_once() if events == _READ else link.on_events(events)
                        except Exception:
                            logger.exception("a connection failed, and is aborted")
                            link.drop()
                        if room <= 0:
                            room = _MESSAGES_PER_PASS
                            await trio.lowlevel.checkpoint()
            finally:
                self._epoll = None
                trio.lowlevel.notify_closing(epoll.fileno())
                for link in tuple(links.values()):
                    link.drop()

    def watch(self, fd: int, events: int, link: PolledTransport) -> None:
        """Watch a descriptor for these events instead of those of before."""
        if self._epoll is None:
            raise RuntimeError("Poller.run must have been started before a transport is attached")
        if fd in self._links:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self._links[fd] = link

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more. It must still be open."""
        if self._links.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)
            self._forgotten.add(fd)


@final
class PolledTransport(SocketTransport):
    """A `SocketTransport` that is read by a `Poller`, once a receiver is attached.

    The receiver is not called any more once `aclose` or `abort` was: whoever closes knows.

    Args:
        sock: connected; it becomes non-blocking, and ours to close.
        poller: who reads.
        leftover: bytes that were read behind the handshake.
        max_message_bytes: larger messages are refused with 1009, a frame of that size from its header.
        max_fragments: frames that one message may come in; more are refused with 1008.
        deflate_window_bits: 9 to 15 where permessage-deflate was agreed on, else None.
    """

    __slots__ = ("_held_back", "_poller", "_receiver")

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        *,
        leftover: bytes = b"",
        max_message_bytes: int = 1 << 20,
        max_fragments: int = 1 << 17,
        deflate_window_bits: int | None = None,
    ) -> None:
        super().__init__(
            sock,
            leftover=leftover,
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            deflate_window_bits=deflate_window_bits,
        )
        self._poller = poller
        self._receiver: Receiver | None = None
        self._held_back = False

    def attach(self, receiver: Receiver) -> None:
        """See `abc.PushTransport.attach`. What came with the handshake is fed before this returns."""
        self._receiver = receiver
        if self._end is not None:
            self._tell_end()
            return
        self._poller.watch(self._socket.fileno(), _READ, self)
        if self._leftover:
            self.read_once()

    def resume(self) -> None:
        """See `abc.PushTransport.resume`."""
        if self._held_back:
            self._held_back = False
            self._watch()

    def on_events(self, events: int) -> int:
        """The kernel has something for us. For the poller only; gives the number of messages that came."""
        if events & _WRITE:
            self._flush()
            self._watch()
        if not self._held_back:
            if events & ~_WRITE:
                return self.read_once()
        elif events & _ENDED:
            # Whoever hung up does not want what its last messages would have done; its handlers must stop now.
            self._finish(1006, "")
            self._tell_end()
        return 0

    def drop(self) -> None:
        """Abort, and tell the receiver, who did not ask for it. For the poller only."""
        receiver = self._receiver
        self.abort()
        self._receiver = receiver
        self._tell_end()

    def read_once(self) -> int:
        """One read, parsed and handed over; gives the number of messages in it. For the poller only."""
        receiver = self._receiver
        if receiver is None or self._held_back:
            return 0
        if self._leftover:
            data, self._leftover = self._leftover, b""
        else:
            try:  # not through `_read_now`, nor `_parse` below: this is what every message goes through
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return 0
            except OSError:
                data = b""
        parser = self._parser
        messages = parser.feed(data) if data else self._parse(data)
        if parser.control is not None:
            self._take_control(parser.control)
            parser.control = None
        if self._urgent and not self._flush():
            self._watch()
        if messages and not receiver.feed(messages) and self._receiver is not None:
            self._held_back = True
            self._watch()
        if self._end is not None or parser.closed is not None:
            self._tell_end()
        return len(messages)

    def _watch(self) -> None:
        if self._receiver is not None and self._is_open:
            events = _HELD_BACK if self._held_back else _READ
            if self._urgent and not self._rest:
                events |= _WRITE
            self._poller.watch(self._socket.fileno(), events, self)

    def _tell_end(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return  # it has left by itself
        self._stop_pushing()
        self._end_if_closed()
        assert self._end is not None
        try:
            receiver.disconnected(*self._end)
        except Exception:
            logger.exception("a receiver failed when it was told that its connection is closed")

    def _stop_pushing(self) -> None:
        self._receiver = None
        if self._is_open:
            self._poller.forget(self._socket.fileno())

    def _close_socket(self) -> None:
        self._stop_pushing()
        super()._close_socket()
