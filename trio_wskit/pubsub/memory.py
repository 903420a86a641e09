"""The driver of a single process, an index and nothing else; and a broker that joins the apps of one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any, Final, Literal, cast, final

import trio

from trio_wskit._core.patterns import SubscriptionIndex
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit.abc import Deliver
from trio_wskit.errors import ConfigError

__all__ = [
    "MemoryBroker",
    "MemoryBrokerConsumer",
    "MemoryBrokerDriver",
    "MemoryPubSub",
    "MemorySelectiveConsumer",
]


@final
class MemoryPubSub:
    """Topics within one process. Its figures are exact."""

    def __init__(self) -> None:
        self._index = SubscriptionIndex()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Nothing leaves this process; tell how many subscribers there are. Never waits."""
        subscribers, matching = self._index.match(envelope.topic)
        matched = len(subscribers) - (envelope.exclude in subscribers)
        return PublishResult(ok=True, capability="exact", matched_local=matched, matching=matching)

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Add to the index; no change where it is there. Never waits."""
        self._index.add(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Remove from the index; no change where it is not there. Never waits."""
        self._index.remove(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        """The client ids, those of the topic itself in the order in which they subscribed. It may be a live view."""
        return self._index.subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        """Every topic and pattern that has a subscriber."""
        return tuple(self._index.names())

    def has_topic(self, topic: str) -> bool:
        """True where somebody subscribes to this very topic or pattern."""
        return topic in self._index

    async def aclose(self) -> None:
        """There is nothing to close."""


WhenFull = Literal["cut", "refuse"]
_ME: Final = "me"


@final
class _Link:
    """A consumer's connection to the broker."""

    def __init__(self, buffer: int, index: SubscriptionIndex | None) -> None:
        self._buffer = buffer
        self._index = index
        self._send, self._receive = trio.open_memory_channel[PublishEnvelope](buffer)
        self._held: deque[PublishEnvelope] = deque()  # while the broker is paused

    def hears(self, topic: str) -> bool:
        return self._index is None or bool(self._index.subscribers(topic))

    def has_room(self) -> bool:
        return len(self._held) + self._send.statistics().current_buffer_used < self._buffer

    def put(self, envelope: PublishEnvelope, flows: bool) -> None:
        if flows:
            self._send.send_nowait(envelope)
        else:
            self._held.append(envelope)

    def release(self) -> None:
        while self._held:
            self._send.send_nowait(self._held.popleft())

    async def get(self) -> PublishEnvelope:
        try:
            return await self._receive.receive()
        except trio.ClosedResourceError:
            raise trio.BrokenResourceError("the broker has cut the link") from None

    def cut(self) -> None:
        """What has not been read is lost."""
        self._receive.close()


@final
class MemoryBroker:
    """Joins several apps of one process, as a broker joins processes; and fails on request, for tests.

        broker = MemoryBroker()
        app = App(router, pubsub=with_broker(broker.driver(), broker.consumer()))

    Like a real one it promises nothing to those who do not listen: what is published while a consumer is away is lost
    to it, and its next epoch says so.

    Args:
        buffer: envelopes that may wait for each consumer.
        when_full: what happens when one more comes: ``cut``: the slow consumer loses its link and what waits for it,
            and must come again; ``refuse``: nobody gets the envelope, and its publisher is told BACKPRESSURE.
        max_payload_bytes: a larger payload is refused with PAYLOAD_TOO_LARGE; None for no limit.

    Raises:
        ConfigError: an argument is of the wrong kind.
    """

    def __init__(
        self, buffer: int = 1000, *, when_full: WhenFull = "cut", max_payload_bytes: int | None = None
    ) -> None:
        for name, value in (("buffer", buffer), ("max_payload_bytes", max_payload_bytes)):
            if (name, value) == ("max_payload_bytes", None):
                continue
            if not isinstance(cast("object", value), int) or isinstance(value, bool) or cast("Any", value) < 1:
                raise ConfigError(f"MemoryBroker({name}=…) takes a whole number above 0, not {value!r}")
        if when_full not in ("cut", "refuse"):
            raise ConfigError(f"MemoryBroker(when_full=…) takes 'cut' or 'refuse', not {when_full!r}")
        self._buffer = buffer
        self._when_full: WhenFull = when_full
        self._max_payload_bytes = max_payload_bytes
        self._links: list[_Link] = []
        self._is_up = True
        self._flows = True

    @property
    def links(self) -> int:
        """How many consumers are connected."""
        return len(self._links)

    def driver(self) -> MemoryBrokerDriver:
        """A driver of its own for each app."""
        return MemoryBrokerDriver(self)

    def consumer(self) -> MemoryBrokerConsumer:
        """A consumer that hears everything; of its own for each app."""
        return MemoryBrokerConsumer(self)

    def selective_consumer(self) -> MemorySelectiveConsumer:
        """A consumer that hears what its app subscribes to; of its own for each app."""
        return MemorySelectiveConsumer(self)

    # --- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Break every consumer's link once. It may come again at once; what it has not read is lost."""
        for link in self._links:
            link.cut()
        self._links.clear()

    def stop(self) -> None:
        """Be gone: every link breaks, and nobody can connect or publish until `start`."""
        self._is_up = False
        self.cut()

    def start(self) -> None:
        """Be there again, with nothing of what was."""
        self._is_up = True

    def pause(self) -> None:
        """Hold back what comes, as far as there is room, until `resume`. Links stay up, publishers notice nothing."""
        self._flows = False

    def resume(self) -> None:
        """Let flow what was held back."""
        self._flows = True
        for link in self._links:
            link.release()

    # --- what drivers and consumers use ------------------------------------------------------------------------------

    def send(self, envelope: PublishEnvelope) -> PublishResult | None:
        """Hand an envelope to every consumer that hears its topic. Never waits.

        Returns:
            None, or the failure.

        Raises:
            trio.BrokenResourceError: the broker is stopped.
        """
        if not self._is_up:
            raise trio.BrokenResourceError("the broker is stopped")
        # What goes over a wire is a copy, and bytes.
        copy = PublishEnvelope(
            envelope.topic,
            envelope.type,
            envelope.payload,
            dict(envelope.meta),
            envelope.exclude,
            envelope.partition_key,
            envelope.origin,
            envelope.id,
        )
        limit = self._max_payload_bytes
        if limit is not None and len(copy.payload or b"") > limit:
            return PublishResult.failure(
                "PAYLOAD_TOO_LARGE", None, {"observed": len(copy.payload or b""), "limit": limit}
            )
        links = [link for link in self._links if link.hears(envelope.topic)]
        full = [link for link in links if not link.has_room()]
        if full and self._when_full == "refuse":
            return PublishResult.failure("BACKPRESSURE", None, {"limit": self._buffer})
        for link in links:
            if link in full:
                link.cut()
                self._links.remove(link)
            else:
                link.put(copy, self._flows)
        return None

    async def listen(
        self, deliver: Deliver, index: SubscriptionIndex | None, task_status: trio.TaskStatus[None]
    ) -> None:
        """Connect, and hand over what comes, until the link breaks.

        Args:
            deliver: takes an envelope.
            index: what to listen to; None for everything. It may change meanwhile.
            task_status: told when it is connected.

        Raises:
            trio.BrokenResourceError: the link is broken, or the broker is stopped.
        """
        await trio.lowlevel.checkpoint()
        if not self._is_up:
            raise trio.BrokenResourceError("the broker is stopped")
        link = _Link(self._buffer, index)
        self._links.append(link)
        try:
            task_status.started()
            while True:
                await deliver(await link.get())
        finally:
            link.cut()
            if link in self._links:
                self._links.remove(link)


@final
class MemoryBrokerDriver:
    """The way out to a `MemoryBroker`, and the index of one app. Its figures are exact."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._local = MemoryPubSub()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Hand it to the broker; tell how many subscribers there are here. Never waits.

        Raises:
            trio.BrokenResourceError: the broker is stopped.
        """
        return self._broker.send(envelope) or await self._local.publish(envelope)

    async def subscribe(self, client_id: str, topic: str) -> None:
        """As `MemoryPubSub.subscribe`."""
        await self._local.subscribe(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """As `MemoryPubSub.unsubscribe`."""
        await self._local.unsubscribe(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        """As `MemoryPubSub.local_subscribers`."""
        return self._local.local_subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        """As `MemoryPubSub.list_topics`."""
        return self._local.list_topics()

    def has_topic(self, topic: str) -> bool:
        """As `MemoryPubSub.has_topic`."""
        return self._local.has_topic(topic)

    async def aclose(self) -> None:
        """There is nothing to close."""


@final
class MemoryBrokerConsumer:
    """The way in from a `MemoryBroker`: everything that is published."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `abc.BrokerConsumer.run`.

        Raises:
            trio.BrokenResourceError: the link is broken, or the broker is stopped.
        """
        await self._broker.listen(deliver, None, task_status)


@final
class MemorySelectiveConsumer:
    """The way in from a `MemoryBroker`: the topics that are followed, and no others."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._index = SubscriptionIndex()

    @property
    def followed(self) -> frozenset[str]:
        """The topics and patterns that it hears."""
        return frozenset(self._index.names())

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `MemoryBrokerConsumer.run`."""
        await self._broker.listen(deliver, self._index, task_status)

    async def follow(self, topic: str) -> None:
        """As `abc.SelectiveConsumer.follow`. Never waits."""
        self._index.add(_ME, topic)

    async def unfollow(self, topic: str) -> None:
        """As `abc.SelectiveConsumer.unfollow`. Never waits."""
        self._index.remove(_ME, topic)
