"""The seams: what a transport, a driver or a store must do. The app and the session know these and nothing behind them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from ._core.publishing import PublishEnvelope, PublishResult

__all__ = ["PubSubDriver", "PushTransport", "Receiver", "Transport"]


class Transport(Protocol):
    """One accepted WebSocket connection, as the session sees it.

    What goes out is *frames*: each item is one whole unmasked RFC 6455 frame, made once and shared by all who get it.
    A transport that speaks something else takes the payload out of the frame (`trio_wskit._core.frames.payload_of`).

    One task at a time may be in `receive`, one in `write`; a close may come at any time.
    """

    async def receive(self) -> list[bytes]:
        """Wait for at least one message; return every one that has arrived, in order, without waiting for more.

        A message is the payload of a text message as UTF-8, or of a binary one as `Binary`.
        A list is bounded by what one read of the transport gives.

        Raises:
            ConnectionClosed: the peer closed, or broke the protocol (the transport has answered that itself), or the link broke.

        Cancelled: nothing is lost; call it again.
        """
        ...

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Hand over as much as can be taken without waiting; return what is left, in order.

        The first item left may be the rest of a frame of which a part was taken: it must be the next thing written.

        Raises:
            ConnectionClosed: nothing more can be sent.
        """
        ...

    async def write(self, frames: Sequence[bytes]) -> None:
        """Wait until all the frames are handed to the system.

        Raises:
            ConnectionClosed: nothing more can be sent.

        Cancelled: a frame may be torn, and the only legal act is `abort`.
        """
        ...

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Cancelled: the pong will be ignored."""
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, wait for the peer's, and close the link. Cancelled: the link is aborted."""
        ...

    def abort(self) -> None:
        """Drop the link at once, without a close frame. `receive` and `write` then raise ConnectionClosed(1006)."""
        ...


class Receiver(Protocol):
    """Where a `PushTransport` puts what it reads."""

    def feed(self, messages: list[bytes]) -> bool:
        """Take these messages. False: take no more until `PushTransport.resume` is called."""
        ...

    def disconnected(self, code: int, reason: str) -> None:
        """The link is closed; nothing more will come."""
        ...


@runtime_checkable
class PushTransport(Transport, Protocol):
    """A transport that reads by itself, for many connections at once, instead of being asked by a task for each."""

    def attach(self, receiver: Receiver) -> None:
        """From now on give what comes to `receiver`, and never return it from `receive`."""
        ...

    def resume(self) -> None:
        """The receiver has room again."""
        ...


class PubSubDriver(Protocol):
    """The index of this process' subscriptions, and the way out to others. It writes to no socket and consumes nothing."""

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Send the envelope on its way out, if there is one, and tell how many subscribers it has on this process.

        A failure is returned, not raised. Cancelled: the envelope may or may not have left.
        """
        ...

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Subscribe a client of this process; no change where it is so already."""
        ...

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Undo `subscribe`; no change where there is nothing to undo."""
        ...

    def local_subscribers(self, topic: str) -> Collection[str]:
        """The client ids of this process that get what is published to the topic. It may be a live view."""
        ...

    def list_topics(self) -> Sequence[str]:
        """The topics that have a subscriber on this process."""
        ...

    def has_topic(self, topic: str) -> bool:
        """True where the topic has a subscriber on this process."""
        ...

    async def aclose(self) -> None:
        """Let go of what the driver holds."""
        ...
