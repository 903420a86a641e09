"""Subscriptions as scopes, which outlive connections.

Rules
- A topic is subscribed on the server while at least one scope here wants it; scopes of one topic share that.
- Each new connection begins with the subscriptions, before anything that waited in the offline queue.
- The stream is there before the subscription is asked for: nothing that comes after it can be missed.
- The answer tells the topic's position where the server keeps a history. Then each connection resumes from the newest
  message that has come, and the stream goes on as if nothing had been, or there is a `Gap` in it. Else what was
  published between two connections is lost, and the stream says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, final

import attrs
import trio

from trio_wskit._core.history import Position, position_of
from trio_wskit._core.subscribing import Subscribe as Subscribe
from trio_wskit._core.subscribing import Subscribed as Subscribed
from trio_wskit._core.subscribing import Unsubscribe as Unsubscribe
from trio_wskit._core.subscribing import Unsubscribed as Unsubscribed
from trio_wskit.client._gate import Gate, Track
from trio_wskit.client._streams import again
from trio_wskit.errors import ConnectionClosed

__all__ = ["Gap", "Subscribe", "Subscribed", "Subscription", "Subscriptions", "Unsubscribe", "Unsubscribed"]


@final
@attrs.frozen
class Gap:
    """Stands in a subscription's stream where messages may be missing.

    Attributes:
        topic: of the subscription.
        reason: ``reconnected``: there was no connection for a while; ``overflow``: nobody took them in time;
            ``missed``: the server did not send them, or does not know any more what it sent.
        lost: how many; None where nobody knows.
    """

    topic: str
    reason: Literal["reconnected", "overflow", "missed"]
    lost: int | None = None


class Wire(Protocol):
    """What subscriptions need of their client. It does not wait."""

    def push(self, message: object, on_settled: Callable[[Any, Exception | None], None]) -> None:
        """Send a message at once, where there is a connection, and tell its reply, or its error.

        A message that is no request has come well when it is sent: its reply is None.
        """
        ...


@final
class Subscription:
    """One topic that is wanted.

    Attributes:
        topic: its name.
        track: how it comes.
        users: scopes that want it.
        on_gap: called for each gap, for each scope.
        on_failed: called when the server refuses it.
    """

    def __init__(self, topic: str, subscribe: object, unsubscribe: object | None, gate: Gate) -> None:
        self.topic = topic
        self.subscribe = subscribe
        self.unsubscribe = unsubscribe
        self.track: Track = Track(topic, self._missing)
        self.users = 0
        self.on_gap: list[Callable[[Gap], None]] = []
        self.on_failed: list[Callable[[Exception], None]] = []
        self.was_subscribed: bool = False
        self.error: Exception | None = None
        self._gate = gate
        self._resuming = False  # the server was asked with a position
        self._settled = trio.Event()

    def _missing(self, lost: int | None) -> None:
        self._mark(Gap(self.topic, "missed", lost))

    def _mark(self, gap: Gap) -> None:
        for mark in tuple(self.on_gap):
            mark(gap)

    def asking(self) -> object:
        """The message that asks for it: with what has come, where it has a field ``since`` for that."""
        newest = self.track.newest
        self._resuming = newest is not None and _takes_since(self.subscribe)
        if self.was_subscribed and not self._resuming:
            # Between what came on the last connection and what will come on the new one.
            self._mark(Gap(self.topic, "reconnected"))
        self._gate.asks(self.track)
        return attrs.evolve(self.subscribe, since=newest) if self._resuming else self.subscribe  # type: ignore[misc]

    def settled(self, reply: Any, error: Exception | None) -> None:
        """The server has answered, or the connection is gone."""
        if isinstance(error, ConnectionClosed):
            return  # the next connection begins with asking again
        if error is None:
            position = position_of(getattr(reply, "epoch", None), getattr(reply, "offset", None))
            self._answered(position, getattr(reply, "recovered", None) is True)
            self.was_subscribed = True
        else:
            self.error = error
            self._gate.remove(self.track)
            for tell in tuple(self.on_failed):
                tell(error)
        self._settled.set()

    def _answered(self, position: Position | None, recovered: bool) -> None:
        newest = self.track.newest
        goes_on = (
            self._resuming
            and recovered
            and newest is not None
            and position is not None
            and newest.epoch == position.epoch
            and newest.offset <= position.offset
        )
        if self._resuming and not goes_on:
            self._mark(Gap(self.topic, "reconnected"))
        self._gate.answered(self.track, position, goes_on=goes_on)

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
    """Every topic that this client wants.

    Args:
        wire: sends messages.
        gate: what comes goes through it.
    """

    def __init__(self, wire: Wire, gate: Gate) -> None:
        self._wire = wire
        self._gate = gate
        self._wanted: dict[str, Subscription] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def want(
        self, topic: str, subscribe: Callable[[str], object], unsubscribe: Callable[[str], object] | None
    ) -> Subscription:
        """Begin to want a topic; `subscribe` and `unsubscribe` make the messages."""
        wanted = self._wanted.get(topic)
        if wanted is None or wanted.error is not None:
            asks, ends = subscribe(topic), None if unsubscribe is None else unsubscribe(topic)
            wanted = self._wanted[topic] = Subscription(topic, asks, ends, self._gate)
            self._gate.add(wanted.track)
            self._wire.push(wanted.asking(), wanted.settled)
        wanted.users += 1
        return wanted

    def leave(self, wanted: Subscription) -> None:
        """One scope less wants it. Sends what ends it, and does not wait for the answer."""
        wanted.users -= 1
        if wanted.users:
            return
        if self._wanted.get(wanted.topic) is wanted:
            del self._wanted[wanted.topic]
        self._gate.remove(wanted.track)
        if wanted.unsubscribe is not None and wanted.error is None:
            self._wire.push(wanted.unsubscribe, lambda _, __: None)

    def connected(self) -> None:
        """There is a new connection: ask for everything again."""
        self._gate.connected()
        for wanted in tuple(self._wanted.values()):
            if wanted.error is None:
                self._wire.push(wanted.asking(), wanted.settled)

    def end(self, error: Exception) -> None:
        """The client is at its end."""
        for wanted in self._wanted.values():
            wanted.end(error)


def _takes_since(message: object) -> bool:
    cls = type(message)
    return attrs.has(cls) and "since" in attrs.fields_dict(cls)
