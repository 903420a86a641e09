"""Local fan-out: one encoded frame goes to the outbox of every subscriber, and nobody waits for a socket.

A driver knows who subscribes (ADR-023); the hub knows whose outbox that is, and what to do when it is full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol, final, get_args

import trio

from trio_wskit._core.frames import text_frame
from trio_wskit._core.publishing import Overflow, PublishEnvelope, PublishResult
from trio_wskit._outbox import Frame, Outbox
from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import ConnectionClosed

__all__ = ["Hub", "Subscriber"]

logger = logging.getLogger("trio_wskit")

_PUBLISHES_PER_PASS: Final = 64  # a task that only publishes still lets the others run this often


class Subscriber(Protocol):
    """A client of this process."""

    outbox: Outbox

    def too_slow(self) -> None:
        """Disconnect it: it did not read what its topics sent. Never waits."""
        ...


@final
class Hub:
    """The subscribers of this process.

    Args:
        driver: knows the subscriptions.
        overflow: what happens to a subscriber whose outbox is full, for each topic.
        max_publishing: publishes that may wait for the driver at the same time.
    """

    def __init__(self, driver: PubSubDriver, overflow: Callable[[str], Overflow], max_publishing: int = 1000) -> None:
        self.driver = driver
        self._overflow = overflow
        self._max_publishing = max_publishing
        self._publishing = 0
        self._until_pass = _PUBLISHES_PER_PASS
        self._subscribers: dict[str, Subscriber] = {}
        self._outboxes: dict[str, Outbox] = {}  # the same, one step nearer: it is looked up for each delivery

    def __len__(self) -> int:
        """The number of clients that may subscribe."""
        return len(self._subscribers)

    def join(self, client_id: str, subscriber: Subscriber) -> None:
        """From now on this client can be delivered to."""
        self._subscribers[client_id] = subscriber
        self._outboxes[client_id] = subscriber.outbox

    def leave(self, client_id: str) -> None:
        """Deliver to this client no more."""
        self._subscribers.pop(client_id, None)
        self._outboxes.pop(client_id, None)

    def has(self, client_id: str) -> bool:
        """True between `join` and `leave`."""
        return client_id in self._subscribers

    def outbox_of(self, client_id: str) -> Outbox:
        """Where a client that `has` gets its messages."""
        return self._outboxes[client_id]

    async def publish(self, envelope: PublishEnvelope, message: bytes) -> PublishResult:
        """Hand the envelope to the driver, and the encoded message to every local subscriber.

        Never raises for what goes wrong at run time. It is a cancellation point each time, but lets other tasks run
        only every 64th time, or when the driver waits. Cancelled: nothing is delivered here.
        """
        await self.let_others_run()
        if self._publishing >= self._max_publishing:
            return PublishResult.failure("BACKPRESSURE", None, {"limit": self._max_publishing})
        self._publishing += 1
        try:
            result = await self.send(envelope)
        finally:
            self._publishing -= 1
        if not result.ok or (result.capability == "exact" and not result.matched_local):
            return result
        delivered, dropped = self.deliver(envelope, message)
        return PublishResult(
            ok=True,
            capability=result.capability,
            matched_local=result.matched_local,
            delivered=delivered,
            dropped=dropped,
            matching=result.matching,
            details=result.details,
        )

    async def let_others_run(self) -> None:
        """A cancellation point each time, and a checkpoint every 64th time."""
        self._until_pass -= 1
        if self._until_pass > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._until_pass = _PUBLISHES_PER_PASS
            await trio.lowlevel.checkpoint()

    async def send(self, envelope: PublishEnvelope) -> PublishResult:
        """Hand the envelope to the driver; what it raises becomes a failure. Waits for nothing but the driver."""
        try:
            return await self.driver.publish(envelope)
        except trio.WouldBlock as cause:
            return PublishResult.failure("BACKPRESSURE", cause)
        except (ConnectionClosed, trio.ClosedResourceError, trio.BrokenResourceError) as cause:
            return PublishResult.failure("CONNECTION_CLOSED", cause)
        except Exception as cause:
            return PublishResult.failure("ADAPTER_ERROR", cause)

    def deliver(
        self,
        envelope: PublishEnvelope,
        message: bytes,
        *,
        offset: int | None = None,
        recipients: Iterable[str] | None = None,
    ) -> tuple[int, int]:
        """Offer the message to the outbox of every local subscriber of its topic. Never waits.

        Args:
            envelope: whose topic, and whom to leave out.
            message: encoded.
            offset: its number in the topic's history.
            recipients: to these clients alone.

        Returns:
            How many outboxes took it, and how many messages were dropped.
        """
        topic = envelope.topic
        exclude = envelope.exclude
        frame = Frame(text_frame(message), topic, offset)
        outbox_of = self._outboxes.get
        delivered = 0
        full: list[Subscriber] = []
        for client_id in self.driver.local_subscribers(topic) if recipients is None else recipients:
            outbox = outbox_of(client_id)
            if outbox is None or client_id == exclude:
                continue  # None: it is leaving
            if outbox.offer(frame):
                delivered += 1
            else:
                full.append(self._subscribers[client_id])
        if not full:
            return delivered, 0
        return self._overflowed(full, frame, delivered)

    def _policy_of(self, topic: str) -> Overflow:
        try:
            policy = self._overflow(topic)
            if policy in get_args(Overflow):
                return policy
            logger.error("overflow(%r) gave %r; the slow are disconnected", topic, policy)
        except Exception:
            logger.exception("overflow(%r) failed; the slow are disconnected", topic)
        return "disconnect"

    def _overflowed(self, full: list[Subscriber], frame: Frame, delivered: int) -> tuple[int, int]:
        assert frame.topic is not None
        policy = self._policy_of(frame.topic)
        dropped = 0
        for subscriber in full:
            outbox = subscriber.outbox
            outbox.flush()  # what only waits for the end of this pass is no reason to drop anything
            if outbox.offer(frame):
                delivered += 1
            elif outbox.closed is None:
                dropped += 1
                if policy == "drop_oldest" and outbox.offer_instead(frame):
                    delivered += 1
                    continue
                outbox.dropped += 1
                if policy == "disconnect":
                    subscriber.too_slow()
        return delivered, dropped
