"""Subscriptions as scopes, which outlive connections.

Rules
- A topic is subscribed on the server while at least one scope here wants it; scopes of one topic share that.
- Each new connection begins with the subscriptions, before anything that waited in the offline queue.
- The stream is there before the subscription is asked for: nothing that comes after it can be missed.
- What was published between two connections is lost (servers keep no history for us yet), and the stream says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, final

import attrs
import trio

from trio_wskit._core.schema import Rpc, message
from trio_wskit.client._streams import again
from trio_wskit.errors import ConnectionClosed

__all__ = ["Gap", "Subscribe", "Subscribed", "Subscription", "Subscriptions", "Unsubscribe", "Unsubscribed"]


@final
@attrs.frozen
class Gap:
    """Stands in a subscription's stream where messages may be missing.

    Attributes:
        topic: of the subscription.
        reason: ``reconnected``: there was no connection for a while; ``overflow``: nobody took them in time.
        lost: how many; None where nobody knows.
    """

    topic: str
    reason: Literal["reconnected", "overflow"]
    lost: int | None = None


@message("SUBSCRIBED")
class Subscribed:
    """The answer to `Subscribe`."""

    topic: str


@message("SUBSCRIBE")
class Subscribe(Rpc[Subscribed]):
    """The default message that asks for a topic. The server's handler calls ``ctx.topics.subscribe``."""

    topic: str


@message("UNSUBSCRIBED")
class Unsubscribed:
    """The answer to `Unsubscribe`."""

    topic: str


@message("UNSUBSCRIBE")
class Unsubscribe(Rpc[Unsubscribed]):
    """The default message that ends what `Subscribe` began."""

    topic: str


class Wire(Protocol):
    """What subscriptions need of their client. It does not wait."""

    def push(self, message: object, on_settled: Callable[[Exception | None], None]) -> None:
        """Send a message at once, where there is a connection, and tell what came of it.

        A message that is no request has come well when it is sent.
        """
        ...


@final
class Subscription:
    """One topic that is wanted.

    Attributes:
        topic: its name.
        users: scopes that want it.
        on_gap: called after each reconnection, for each scope.
        on_failed: called when the server refuses it.
    """

    def __init__(self, topic: str, subscribe: object, unsubscribe: object | None) -> None:
        self.topic = topic
        self.subscribe = subscribe
        self.unsubscribe = unsubscribe
        self.users = 0
        self.on_gap: list[Callable[[Gap], None]] = []
        self.on_failed: list[Callable[[Exception], None]] = []
        self.was_subscribed = False
        self.error: Exception | None = None
        self._settled = trio.Event()

    def settled(self, error: Exception | None) -> None:
        """The server has answered, or the connection is gone."""
        if isinstance(error, ConnectionClosed):
            return  # the next connection begins with asking again
        if error is None:
            self.was_subscribed = True
        else:
            self.error = error
            for tell in tuple(self.on_failed):
                tell(error)
        self._settled.set()

    def connected_again(self) -> None:
        """Between what came on the last connection and what will come on the new one."""
        if self.was_subscribed:
            for mark in tuple(self.on_gap):
                mark(Gap(self.topic, "reconnected"))

    def end(self, error: Exception) -> None:
        """The client is at its end."""
        if not self._settled.is_set():
            self.error = error
            self._settled.set()

    async def wait(self) -> None:
        """Wait until the server has it.

        Raises:
            RpcError: it refused.
            ConnectionClosed: the client is closed.
        """
        await self._settled.wait()
        if self.error is not None:
            raise again(self.error)


@final
class Subscriptions:
    """Every topic that this client wants."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._wanted: dict[str, Subscription] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def want(
        self, topic: str, subscribe: Callable[[str], object], unsubscribe: Callable[[str], object] | None
    ) -> Subscription:
        """Begin to want a topic; `subscribe` and `unsubscribe` make the messages."""
        wanted = self._wanted.get(topic)
        if wanted is None or wanted.error is not None:
            wanted = Subscription(topic, subscribe(topic), None if unsubscribe is None else unsubscribe(topic))
            self._wanted[topic] = wanted
            self._wire.push(wanted.subscribe, wanted.settled)
        wanted.users += 1
        return wanted

    def leave(self, wanted: Subscription) -> None:
        """One scope less wants it. Sends what ends it, and does not wait for the answer."""
        wanted.users -= 1
        if wanted.users:
            return
        if self._wanted.get(wanted.topic) is wanted:
            del self._wanted[wanted.topic]
        if wanted.unsubscribe is not None and wanted.error is None:
            self._wire.push(wanted.unsubscribe, lambda _: None)

    def connected(self) -> None:
        """There is a new connection: ask for everything again."""
        for wanted in tuple(self._wanted.values()):
            wanted.connected_again()
            self._wire.push(wanted.subscribe, wanted.settled)

    def end(self, error: Exception) -> None:
        """The client is at its end."""
        for wanted in self._wanted.values():
            wanted.end(error)
