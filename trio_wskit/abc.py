"""The seams: what a transport, a driver or a store must do. The app and the session know nothing else of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import trio

from trio_wskit._core.bucket import Decision, Decisions, Policy, Spend
from trio_wskit._core.history import History, Position, Replay
from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceSnapshot
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.reservations import Reservation

__all__ = [
    "BrokerConsumer",
    "BrokeredDriver",
    "Deliver",
    "HistoryStore",
    "IdempotencyStore",
    "ImmediateHistoryStore",
    "ImmediateRateLimiter",
    "PresenceStore",
    "PubSubDriver",
    "PushTransport",
    "RateLimiter",
    "Receiver",
    "SelectiveConsumer",
    "Transport",
    "WatchedTransport",
]


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
            ConnectionClosed: the peer closed, or broke the protocol (the transport has answered that itself), or the
            link broke.

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


class WatchedTransport(Transport, Protocol):
    """A transport that is asked for its messages, and notices a peer that hangs up even while nobody asks."""

    async def hung_up(self) -> None:
        """Wait until the peer has hung up, without reading. Called only while nobody is in `receive`."""
        ...


class PubSubDriver(Protocol):
    """The index of this process' subscriptions, and the way out to others: no socket, and no consuming."""

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Send the envelope on its way out, if there is one, and tell how many subscribers it has on this process.

        A failure is returned, not raised. Cancelled: the envelope may or may not have left.
        """
        ...

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Subscribe a client of this process; no change where it is so already.

        Cancelled, or failed: it may have happened; whoever called undoes it with `unsubscribe`.
        """
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


Deliver = Callable[[PublishEnvelope], Awaitable[None]]
"""Gives an envelope that came from another process to the subscribers of this one. It never raises for them."""


class BrokerConsumer(Protocol):
    """The way in from other processes, and nothing else: it keeps no subscription and writes no frame."""

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Consume, and call ``await deliver(envelope)`` for each envelope that another process published, in order.

        Call ``task_status.started()`` once nothing that is published from now on can be missed, and `deliver` only
        after that. `deliver` waits as long as it takes: consume no faster, and let no buffer grow meanwhile. It may be
        given what this process published itself, or the same twice, where origin and id are filled in: whoever
        supervises the consumer tells. Return or raise when the link is lost, rather than mend it in silence: then the
        consumer is run again, and an epoch more is counted, for something may have been missed in between.

        Cancelled: it lets go of the link; the envelope that is being delivered may have reached some subscribers only.
        """
        ...


@runtime_checkable
class SelectiveConsumer(BrokerConsumer, Protocol):
    """A consumer that hears only the topics it is told of, for a broker that can tell them apart.

    Whoever supervises it calls `follow` for the first subscriber of this process, and `unfollow` after the last, one
    call at a time for each topic. It may be called whether or not `run` runs.
    """

    async def follow(self, topic: str) -> None:
        """Hear this topic, or this pattern, from when this returns.

        While the link is down it remembers the topic and returns, or fails after a bounded wait where that is what it
        was told to do: `run` listens to all of them before it calls ``started()``. A broker without patterns refuses
        one with PubSubError INVALID_TOPIC. Failed, or cancelled: it may have happened; `unfollow` undoes it.
        """
        ...

    async def unfollow(self, topic: str) -> None:
        """Hear it no more; no change where it was not heard. What is under way may still come."""
        ...


@runtime_checkable
class BrokeredDriver(PubSubDriver, Protocol):
    """A driver together with ways in. `trio_wskit.pubsub.with_broker` makes one. The app runs it while it is open."""

    @property
    def ready(self) -> bool:
        """False while something that others publish may be missed."""
        ...

    async def wait_ready(self) -> None:
        """Wait until it is ready. It may be so no more when this returns."""
        ...

    async def run(
        self,
        deliver: Deliver,
        *,
        missed: Callable[[], Awaitable[None]] | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Give `deliver` what others publish, each envelope once and none of our own, until cancelled.

        Args:
            deliver: gives an envelope to the subscribers of this process.
            missed: awaited when it hears again after it was deaf, before anything newer is delivered.
            task_status: told when the first attempt has come to something: it may be ready by then, or not yet.

        Raises:
            PubSubError: ADAPTER_ERROR: it gave up, and was told to fail then.

        Cancelled: what is being delivered may have reached some subscribers only.
        """
        ...


class HistoryStore(Protocol):
    """Keeps the last messages of topics, and numbers them. `trio_wskit.testing.check_history` proves an implementation.

    A topic's messages have the offsets 1, 2, 3 and so on within an epoch, whoever appends at the same time. When a
    store does not know any more what it has given out, it begins another epoch, which no topic ever had.

    How much is kept is said with each call; the last one counts. It is opened and closed by whoever made it.
    """

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        """Add a message at the end, and return its position. It also starts the topic's `ttl` anew.

        Raises:
            Exception: the store failed; the message was appended or it was not.

        Cancelled: the same.
        """
        ...

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        """Tell the position of the newest message, and give the entries after `since`, or the `last` ones.

        The position of a topic that nobody has heard of has the offset 0, and an epoch that its messages will have.
        All is as it is at one instant.

        Args:
            topic: which.
            keep: how much is kept.
            since: entries with a greater offset are asked for. All of them or None: of another epoch, of the future, or
                where one of them is not kept any more, the entries are None.
            last: without `since`: at most so many of the newest entries, as many as are kept.
            limit: the entries are None where they would be more.

        Raises:
            Exception: the store failed.

        Cancelled: nothing has changed.
        """
        ...


@runtime_checkable
class ImmediateHistoryStore(HistoryStore, Protocol):
    """A store that can also answer at once: for topics of one process, whatever others keep."""

    def append_nowait(self, topic: str, message: bytes, keep: History) -> Position:
        """See `HistoryStore.append`."""
        ...

    def read_nowait(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        """See `HistoryStore.read`."""
        ...

    def clear(self) -> None:
        """Forget everything: each topic begins a new epoch. Called where something may be missing in it."""
        ...


class IdempotencyStore(Protocol):
    """Remembers answers by key, and sees to it that one of many equal requests runs."""

    async def begin(self, key: str, fingerprint: bytes) -> bytes | None:
        """Claim a key, or learn its answer. While another request holds the key, wait for it.

        Args:
            key: the identity and the client's key in one.
            fingerprint: what makes two requests the same.

        Returns:
            The recorded answer; or None: the key is the caller's, who runs the request and calls `finish` exactly once.

        Raises:
            WsKitError: ALREADY_EXISTS: the key belongs to a request with another fingerprint.

        Cancelled: the key is not the caller's. It need not be a checkpoint where it does not wait.
        """
        ...

    async def finish(self, key: str, fingerprint: bytes, answer: bytes | None) -> None:
        """Give a claimed key back: with its answer, which those who wait get as well; or, for None, to one of them.

        It is called in a shield; what it raises is logged. The answer must not be lost, nor the key stay claimed.
        """
        ...


class PresenceStore(Protocol):
    """Where processes (nodes) meet to know who is present; `trio_wskit.testing.check_presence` proves yours.

    Each node tells of its own members and has a lease, which its beats renew; when that is over, what it has told is
    swept away, and whoever beats next hears of it. An identity is in a topic while a living node says so; its state is
    what was told last. Versions rise over all topics, and never start again while anybody may remember one.

    What a call raises is taken for a failure: nobody knows whether it was carried out, and it is told again.
    """

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        """Renew a node's lease, carry out its changes, sweep at most 1,000 members of lapsed nodes. All in one step.

        A beat whose number is not above that of every earlier one of its node changes nothing. Nor does one after an
        answered beat of which this store knows nothing: it has lost what came in between.

        Cancelled: it may have been carried out.
        """
        ...

    async def retire(self, node: str, seconds: float) -> None:
        """Let a node's lease be over so many seconds from now, if it is not over before. Unknown nodes are nobody."""
        ...

    async def members(self, topic: str) -> PresenceSnapshot:
        """Who is there, and the version of this list. Those of lapsed nodes are not, swept away or not."""
        ...

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        """How many `members` are there, without a list of them where no lease has lapsed.

        Args:
            topic: where.
            besides: identities that are there as well, whether or not this store has heard of them, each named once:
                nobody counts twice. As many as a topic may have members.
        """
        ...


class RateLimiter(Protocol):
    """A store of token buckets, one for each key. `trio_wskit.testing.check_rate_limiter` proves an implementation.

    Exact: no token is created or lost by rounding. A refused request costs nothing. Requests are atomic, whoever else
    asks at the same time. A clock that goes back refills nothing and loses nothing.

    A cost that is not an integer of at least 0 is refused by every method with WsKitError INVALID_ARGUMENT.
    """

    @property
    def policy(self) -> Policy:
        """The policy of every bucket for which no other is named."""
        ...

    async def consume(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` tokens of the bucket `key` if they are there; never wait for them.

        Args:
            key: which bucket. One that was never heard of is full.
            cost: tokens. 0 spends nothing, is always allowed, and tells how much is left; one above the capacity is
                refused with a `retry_after` of None.

        Cancelled: the tokens are not spent; a store in another process says when it cannot promise that.
        """
        ...

    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        """Pay all requests or none, in one atomic step.

        Args:
            spends: ``(key, cost)``, or ``(key, cost, policy)`` for a bucket of another policy than the limiter's.
                Buckets of different policies are different buckets, even where their keys are the same.

        Cancelled: as `consume`.
        """
        ...

    async def wait(self, key: str, cost: int = 1) -> Decision:
        """Sleep until `cost` tokens are in the bucket, and spend them. Waits for those tokens, as long as it takes.

        Those who wait on one key of one limiter are served in the order in which they came. `consume` does not queue:
        it may take what they wait for.

        Raises:
            WsKitError: FAILED_PRECONDITION: the cost is above the capacity; waiting would not help.

        Cancelled: nothing is spent, and the place in the queue is free.
        """
        ...

    def reserve(self, key: str, cost: int = 1) -> AbstractAsyncContextManager[Reservation]:
        """Take `cost` tokens, the most that some work may need, and give back what it did not.

        ``async with limiter.reserve(key, 10) as r: …; r.settle(actual)``. A block that ends well without settling
        pays all; one that fails or is cancelled pays what it settled, else nothing. What is given back is as if never
        taken: it neither creates a token nor loses one that a full bucket would have lost anyway.

        Raises:
            WsKitError: on entry: RESOURCE_EXHAUSTED when the tokens are not there, FAILED_PRECONDITION when they can
                never be.

        Cancelled: on entry, nothing is spent; inside, what was settled.
        """
        ...

    async def reset(self, key: str) -> None:
        """Make the bucket `key` full. What was reserved of it before has nothing to give back.

        Cancelled: it is reset or it is not.
        """
        ...

    async def aclose(self) -> None:
        """Let go of what the limiter holds; any later request raises `trio.ClosedResourceError`.

        Cancelled: it is closed.
        """
        ...


@runtime_checkable
class ImmediateRateLimiter(RateLimiter, Protocol):
    """A rate limiter that can also answer at once. Whoever holds one need not wait, and is no checkpoint."""

    def consume_nowait(self, key: str, cost: int = 1) -> Decision:
        """See `RateLimiter.consume`."""
        ...

    def consume_many_nowait(self, spends: Sequence[Spend]) -> Decisions:
        """See `RateLimiter.consume_many`."""
        ...
