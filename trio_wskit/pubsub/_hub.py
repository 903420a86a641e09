"""Local fan-out: one encoded frame goes to the outbox of every subscriber, and nobody waits for a socket.

A driver knows who subscribes (ADR-023); the hub knows whose outbox that is, and what to do when it is full.

Rules
- Up to `_DELIVERIES_PER_PASS` subscribers are served without letting any other task run. More are served in passes,
  and meanwhile the topic has a turn: the next message of it waits until every subscriber was offered this one.
- Passes are shielded: a message that was offered to one subscriber is offered to all. Each pass looks again who is
  still there; who comes meanwhile gets the next message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final, final

import attrs
import trio

from trio_wskit._budget import ByteBudget
from trio_wskit._core.backlog import Offset, Published, WriteGap, encode_gap
from trio_wskit._core.frames import text_frame
from trio_wskit._core.overflow import Overflow, check_overflow, may_conflate
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.terms import Positions, TermsBook
from trio_wskit._flusher import Box, Flusher, Round
from trio_wskit._outbox import Outbox
from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import ConfigError, ConnectionClosed
from trio_wskit.pubsub._fanout import BackpressureCounts, FanOut, Quorum, Subscriber
from trio_wskit.pubsub._passes import Passes

__all__ = ["Hub", "Subscriber"]

logger = logging.getLogger("trio_wskit")

_MANY: Final = 16  # with fewer subscribers, to queue a message for each costs less than a round
_PUBLISHES_PER_PASS: Final = 64  # a task that only publishes still lets the others run this often
_DELIVERIES_PER_PASS: Final = 2048  # each is a fifth of a microsecond
_CLOSE_LOOKS_PER_PASS: Final = 64  # at those who are behind: each may be a system call, a queue searched, a goodbye


@final
class TopicTurns:
    """One fan-out at a time for each topic that has one which lets others run. First come, first served."""

    def __init__(self) -> None:
        self._lots: dict[str, trio.lowlevel.ParkingLot] = {}

    def __contains__(self, topic: object) -> bool:
        return topic in self._lots

    def take(self, topic: str) -> None:
        """Begin a turn where none is."""
        self._lots[topic] = trio.lowlevel.ParkingLot()

    async def wait(self, topic: str) -> None:
        """Wait for the end of the others' turns, and begin one. Cancelled: no turn."""
        await self._lots[topic].park()

    def end(self, topic: str) -> None:
        """Hand over to the next."""
        lot = self._lots[topic]
        if lot:
            lot.unpark()
        else:
            del self._lots[topic]


@final
class Hub:
    """The subscribers of this process.

    Args:
        driver: knows the subscriptions.
        overflow: what happens to a subscriber whose outbox is full, for all topics or for each.
        max_publishing: publishes that may be under way at the same time.
        budget: bytes that may wait in all outboxes together.
        terms: what clients asked for when they subscribed.
        wall_clock: gives seconds since 1970, for notices.

    Attributes:
        driver: knows the subscriptions.
        budget: bytes that may wait in all outboxes together.
        counts: what subscribers did not get.
        flusher: sends what is published to many; while there is none, each message is queued for each.
    """

    def __init__(
        self,
        driver: PubSubDriver,
        overflow: Overflow | Callable[[str], Overflow] = "disconnect",
        max_publishing: int = 1000,
        *,
        budget: ByteBudget | None = None,
        terms: TermsBook | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.driver: PubSubDriver = driver
        self.budget: ByteBudget = budget or ByteBudget()
        self.counts: BackpressureCounts = BackpressureCounts()
        self._overflow: Overflow | Callable[[str], Overflow] = overflow
        self._may_conflate = may_conflate(overflow)
        self._max_publishing = max_publishing
        self._terms = TermsBook() if terms is None else terms  # an empty one is false
        self._wall_clock = wall_clock
        self._positions = Positions()
        self._counts_positions = False
        self._turns = TopicTurns()
        self._publishing = 0
        self.flusher: Flusher | None = None
        self._until_pass = _PUBLISHES_PER_PASS
        self._round: Round | None = None
        self._slow: set[str] = set()  # who cannot take a message at once
        self._subscribers: dict[str, Subscriber] = {}
        self._outboxes: dict[str, Outbox] = {}  # the same, one step nearer: it is looked up for each delivery

    @property
    def turns(self) -> TopicTurns:
        """Topics of which a message is on its way to many."""
        return self._turns

    def __len__(self) -> int:
        """The number of clients that may subscribe."""
        return len(self._subscribers)

    def join(self, client_id: str, subscriber: Subscriber) -> None:
        """From now on this client can be delivered to."""
        self._subscribers[client_id] = subscriber
        self._outboxes[client_id] = subscriber.outbox
        self._round = None  # who takes part is settled when it is opened
        subscriber.outbox.enrol(client_id, self._slow)
        subscriber.outbox.account_to(self.budget, subscriber)

    def leave(self, client_id: str) -> None:
        """Deliver to this client no more."""
        self._subscribers.pop(client_id, None)
        outbox = self._outboxes.pop(client_id, None)
        if outbox is not None:
            outbox.strike_off()
            self._round = None

    def has(self, client_id: str) -> bool:
        """True between `join` and `leave`."""
        return client_id in self._subscribers

    def outbox_of(self, client_id: str) -> Outbox:
        """Where a client that `has` gets its messages."""
        return self._outboxes[client_id]

    async def publish(
        self, envelope: PublishEnvelope, message: bytes, *, offset: int | None = None, quorum: Quorum | None = None
    ) -> PublishResult:
        """Hand the envelope to the driver, and the encoded message to every local subscriber.

        Never raises for what goes wrong at run time. It is a cancellation point each time, but lets other tasks run
        only every 64th time, when the driver or a policy waits, or for a quorum, or with many subscribers.

        Args:
            envelope: what is published.
            message: the whole message, encoded.
            offset: its position in the topic's history, where there is one.
            quorum: counts who has handed it to the system, and says when that is enough.

        Cancelled: nothing is delivered here; but while it waits for a subscriber, or a quorum, it is delivered to those
        who had room.
        """
        if (
            self._until_pass > 1
        ):  # not by `let_others_run` and `send`: a call of its own is a tenth of what is done here
            self._until_pass -= 1
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await self.let_others_run()
        if self._publishing >= self._max_publishing:
            return PublishResult.failure("BACKPRESSURE", None, {"limit": self._max_publishing})
        self._publishing += 1
        try:
            try:
                result = await self.driver.publish(envelope)
            except Exception as cause:
                return _failed(cause)
            if not result.ok or (result.capability == "exact" and not result.matched_local):
                return result if quorum is None or not result.ok else attrs.evolve(result, written=0)
            topic = envelope.topic
            fan: FanOut | None = None
            subscribers = self.driver.local_subscribers(topic)
            if quorum is not None or len(subscribers) > _DELIVERIES_PER_PASS or topic in self._turns:
                fan = await self._in_turn(envelope, message, offset, quorum)
                delivered = fan.delivered
            else:
                frame = self._frame(topic, message, offset)
                delivered, behind = self._offer(subscribers, frame, envelope.exclude)
                if behind:
                    fan = FanOut(self, frame)
                    fan.delivered = delivered
                    await self._look_closer(fan, topic, behind)
            if fan is None:
                return PublishResult(
                    ok=True,
                    capability=result.capability,
                    matched_local=result.matched_local,
                    delivered=delivered,
                    matching=result.matching,
                    details=result.details,
                )
            if fan.must_wait:
                await fan.wait()
        finally:
            self._publishing -= 1
        return fan.result(result)

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
        except Exception as cause:
            return _failed(cause)

    async def spread(self, envelope: PublishEnvelope, message: bytes) -> None:
        """Offer what another process published to the outbox of every local subscriber of its topic.

        Waits only for subscribers whose policy is to be waited for, or with many subscribers.

        Cancelled: it is delivered to nobody, or to those who had room.
        """
        fan = await self._in_turn(envelope, message, None, None)
        if fan.must_wait:
            await fan.wait()

    def begin(
        self,
        envelope: PublishEnvelope,
        message: bytes,
        *,
        offset: int | None = None,
        recipients: Collection[str] | None = None,
        quorum: Quorum | None = None,
    ) -> Passes:
        """Begin to offer the message to the outbox of every local subscriber of its topic. Never waits.

        Args:
            envelope: whose topic, and whom to leave out.
            message: encoded.
            offset: its number in the topic's history.
            recipients: to these clients alone.
            quorum: counts who has handed it to the system.

        Returns:
            What is left to be done, and what became of it; call its `end` in any case.
        """
        topic, exclude = envelope.topic, envelope.exclude
        client_ids = self.driver.local_subscribers(topic) if recipients is None else recipients
        if quorum is not None:
            client_ids = [client_id for client_id in client_ids if client_id != exclude]
            quorum.matched = len(client_ids)

        def offer(fan: FanOut, some: Iterable[str]) -> Sequence[str]:
            delivered, behind = self._offer(tuple(some), fan.frame, exclude)
            fan.delivered += delivered
            return behind

        return Passes(
            FanOut(self, self._frame(topic, message, offset), quorum),
            client_ids,
            offer=offer,
            look=self._look_at,
            there=partial(self.driver.local_subscribers, topic),
            closely=quorum is not None,
        )

    def _look_at(self, fan: FanOut, client_id: str) -> None:
        subscriber = self._subscribers.get(client_id)
        if subscriber is not None:
            fan.offer(client_id, subscriber)

    async def announce_gap(self, topic: str | None, first: int | None = None, last: int | None = None) -> None:
        """Tell those who asked that messages are missing, in the place in their streams where they are missing.

        Args:
            topic: what is missing there; None where nobody knows of which topics: then everybody is told who asked for
                anything, by the name that it subscribed to.
            first: the first missing position; None where nobody knows.
            last: the last one.

        Cancelled: nobody is told; but once it has begun, everybody is.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if topic is None:
            first = last = None
            seekers = self._terms.seekers()
            await self._tell_gap(seekers, first, last)
            return
        if topic in self._turns:
            await self._turns.wait(topic)
        else:
            self._turns.take(topic)
        try:
            wants = self._terms.wants_gaps
            seekers = [(client, topic) for client in self.driver.local_subscribers(topic) if wants(client, topic)]
            await self._tell_gap(seekers, first, last)
        finally:
            self._turns.end(topic)

    async def _tell_gap(self, seekers: list[tuple[str, str]], first: Offset, last: Offset) -> None:
        for told, (client_id, name) in enumerate(seekers, 1):
            outbox = self._outboxes.get(client_id)
            if outbox is not None:
                gaps = outbox.gaps
                outbox.miss(name, first, last, self._write_gap)
                self.counts.gaps += outbox.gaps - gaps
            if told % _CLOSE_LOOKS_PER_PASS == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()

    # How it is done.

    def _frame(self, topic: str, message: bytes, offset: int | None) -> Published:
        terms = self._terms
        if terms.gaps:
            self._counts_positions = True
            if offset is None:
                offset = self._positions.next(topic)
        elif self._counts_positions:
            self._counts_positions = False
            self._positions.clear()
        return Published(text_frame(message), topic, offset, careful=self._may_conflate or terms.conflating > 0)

    def _offer(self, client_ids: Collection[str], frame: Published, exclude: str | None) -> tuple[int, list[str]]:
        """Offer it to all of these; give the number of those who took it, and who must be looked at more closely."""
        if self.flusher is None or len(client_ids) < _MANY:
            return self._offer_each(client_ids, frame, exclude)
        names = tuple(client_ids)
        round_ = self._round
        if round_ is None or not round_.has_room(len(frame.wire), self.flusher.limits) or round_.names != names:
            round_ = self._round = self._open_round(names, self.flusher, exclude)
        elif exclude is not None and exclude in self._outboxes:
            self.flusher.settle(self._outboxes[exclude])
        round_.add(frame)
        delivered = round_.count
        behind: list[str] = []
        for client_id, outbox in tuple(round_.apart.items()):
            if client_id == exclude:
                continue
            if outbox.offer(frame):
                delivered += 1
            else:
                behind.append(client_id)
        return delivered, behind

    def _open_round(self, names: tuple[str, ...], flusher: Flusher, exclude: str | None) -> Round:
        found = map(self._outboxes.get, names)
        slow = self._slow
        apart: dict[str, Box] = {}
        if not slow and exclude is None:
            boxes: list[Box] = [outbox for outbox in found if outbox is not None]  # None: it is leaving
        else:
            boxes = []
            for name, outbox in zip(names, found, strict=True):
                if outbox is None:
                    continue
                if name in slow or name == exclude:
                    apart[name] = outbox
                else:
                    boxes.append(outbox)
        round_ = Round(names, boxes, apart)
        flusher.open(round_)
        return round_

    def _offer_each(self, client_ids: Iterable[str], frame: Published, exclude: str | None) -> tuple[int, list[str]]:
        outbox_of = self._outboxes.get
        delivered = 0
        behind: list[str] = []
        for client_id in client_ids:
            outbox = outbox_of(client_id)
            if outbox is None or client_id == exclude:
                continue  # None: it is leaving
            if outbox.offer(frame):
                delivered += 1
            else:
                behind.append(client_id)
        return delivered, behind

    async def _in_turn(
        self, envelope: PublishEnvelope, message: bytes, offset: int | None, quorum: Quorum | None
    ) -> FanOut:
        """Offer it to everybody, in as many passes as it takes."""
        topic = envelope.topic
        turn = topic in self._turns
        if turn:
            await self._turns.wait(topic)
        try:
            subscribers = self.driver.local_subscribers(topic)
            fan = FanOut(self, self._frame(topic, message, offset), quorum)
            if quorum is not None:
                behind = [client_id for client_id in subscribers if client_id != envelope.exclude]
                quorum.matched = len(behind)
            elif len(subscribers) <= _DELIVERIES_PER_PASS:
                fan.delivered, behind = self._offer(subscribers, fan.frame, envelope.exclude)
            else:
                if not turn:
                    self._turns.take(topic)
                    turn = True
                behind = await self._offer_in_passes(tuple(subscribers), fan, topic, envelope.exclude)
            if behind:
                await self._look_closer(fan, topic, behind, turn=turn)
        finally:
            if turn:
                self._turns.end(topic)
        return fan

    async def _offer_in_passes(
        self, client_ids: Sequence[str], fan: FanOut, topic: str, exclude: str | None
    ) -> list[str]:
        behind: list[str] = []
        for start in range(0, len(client_ids), _DELIVERIES_PER_PASS):
            part: Iterable[str] = client_ids[start : start + _DELIVERIES_PER_PASS]
            if start:
                await trio.lowlevel.cancel_shielded_checkpoint()
                there = self.driver.local_subscribers(topic)
                part = [client_id for client_id in part if client_id in there]
            delivered, more = self._offer_each(part, fan.frame, exclude)
            fan.delivered += delivered
            behind += more
        return behind

    async def _look_closer(self, fan: FanOut, topic: str, behind: Sequence[str], *, turn: bool = False) -> None:
        """Do for these what their policies say."""
        takes_turn = not turn and len(behind) > _CLOSE_LOOKS_PER_PASS
        if takes_turn:
            self._turns.take(topic)
        try:
            there: Collection[str] | None = None
            for done, client_id in enumerate(behind):
                if done and done % _CLOSE_LOOKS_PER_PASS == 0:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    there = self.driver.local_subscribers(topic)
                subscriber = self._subscribers.get(client_id)
                if subscriber is not None and (there is None or client_id in there):
                    fan.offer(client_id, subscriber)
        finally:
            if takes_turn:
                self._turns.end(topic)

    # What a fan-out asks.

    def policy_of(self, topic: str) -> Overflow:
        """See `_fanout.Rules`."""
        if not callable(self._overflow):
            return self._overflow
        try:
            return check_overflow(self._overflow(topic))
        except ConfigError as wrong:
            logger.error("overflow(%r): %s; the slow are disconnected", topic, wrong)
        except Exception:
            logger.exception("overflow(%r) failed; the slow are disconnected", topic)
        return "disconnect"

    def terms_of(self, client_id: str, topic: str) -> Overflow | None:
        """See `_fanout.Rules`."""
        return self._terms.overflow_of(client_id, topic)

    def gap_writer(self, client_id: str, topic: str) -> WriteGap | None:
        """See `_fanout.Rules`."""
        return self._write_gap if self._terms.wants_gaps(client_id, topic) else None

    def has_gap_seekers(self) -> bool:
        """See `_fanout.Rules`."""
        return self._terms.gaps > 0

    def _write_gap(self, topic: str, first: Offset, last: Offset) -> bytes:
        return text_frame(encode_gap(topic, first, last, int(self._wall_clock() * 1000)))


def _failed(cause: Exception) -> PublishResult:
    """What a driver has raised, as a failure."""
    if isinstance(cause, trio.WouldBlock):
        return PublishResult.failure("BACKPRESSURE", cause)
    if isinstance(cause, (ConnectionClosed, trio.ClosedResourceError, trio.BrokenResourceError)):
        return PublishResult.failure("CONNECTION_CLOSED", cause)
    return PublishResult.failure("ADAPTER_ERROR", cause)
