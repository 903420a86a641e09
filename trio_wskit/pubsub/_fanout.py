"""One message on its way to the subscribers of this process, once some of them are behind: what their policies do.

Rules
- Those who have room have the message before anybody is waited for.
- What waits for room waits in the outbox, behind what came before it; so a later publish may go on meanwhile, and no
  subscriber sees two messages of a topic in another order than the others.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Literal, Protocol, cast, final

import attrs
import trio

from trio_wskit._core.backlog import Published, WriteGap
from trio_wskit._core.overflow import Block, Conflate, Overflow
from trio_wskit._core.publishing import PublishResult
from trio_wskit._outbox import Outbox
from trio_wskit._queue import Waiter
from trio_wskit.errors import ConfigError, ConnectionClosed

__all__ = ["BackpressureCounts", "FanOut", "Quorum", "Subscriber", "make_quorum"]

logger = logging.getLogger("trio_wskit")


class Subscriber(Protocol):
    """A client of this process."""

    outbox: Outbox

    def too_slow(self) -> None:
        """Disconnect it: it did not read what its topics sent. Never waits."""
        ...

    def evicted(self, used: int, limit: float) -> None:
        """See `_queue.Owner`."""
        ...


@final
@attrs.define
class BackpressureCounts:
    """What an App's subscribers did not get as it was published, since the App was made.

    The same for one connection: ``session.outbox.dropped``, ``conflated``, ``blocked`` and ``gaps``.

    Attributes:
        dropped: messages that a policy has dropped, once for each outbox.
        conflated: messages that were removed from an outbox because a newer one with the same key came.
        blocked: how often a publish had to wait for an outbox.
        disconnected: clients that were disconnected because their own outbox was full.
        evicted: clients that were disconnected because all outboxes together were above the byte budget.
        gaps: notices of missing messages that were queued.
    """

    dropped: int = 0
    conflated: int = 0
    blocked: int = 0
    disconnected: int = 0
    evicted: int = 0
    gaps: int = 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@final
class Quorum:
    """Counts the outboxes that have handed a message to the system.

    Args:
        share: of the matched subscribers.
        deadline: until when to wait, as `trio.current_time` counts.

    Attributes:
        matched: how many subscribers there are.
        count: how many of their outboxes have handed it over.
    """

    __slots__ = ("_deadline", "_needed", "_open", "_over", "_share", "count", "matched")

    def __init__(self, share: float, deadline: float) -> None:
        self._share = share
        self._deadline = deadline
        self._needed = 0
        self._open = 0  # that may still do it
        self._over: trio.Event | None = None
        self.matched: int = 0
        self.count: int = 0

    def accepted(self, outbox: Outbox) -> None:
        """The outbox has the message as its last."""
        outbox.flush()
        if outbox.queued_bytes:
            self.queued(outbox)
        elif outbox.closed is None:
            self.count += 1

    def queued(self, outbox: Outbox) -> None:
        """The same, and it waits there."""
        self._open += 1
        outbox.watch(self)

    def written(self) -> None:
        """See `_queue.Ticket`."""
        self._open -= 1
        self.count += 1
        self._look()

    def lost(self) -> None:
        """See `_queue.Ticket`."""
        self._open -= 1
        self._look()

    def _look(self) -> None:
        if self._over is not None and self._is_decided():
            self._over.set()

    def _is_decided(self) -> bool:
        return self.count >= self._needed or self.count + self._open < self._needed

    async def wait(self) -> None:
        """Wait until enough have it, or can have it no more, or the time is over. Cancelled: nothing is undone."""
        self._needed = math.ceil(self._share * self.matched - 1e-9)
        if self._is_decided():
            return
        self._over = trio.Event()
        with trio.move_on_at(self._deadline):
            await self._over.wait()


def make_quorum(quorum: float | None, within: float | None) -> Quorum:
    """Refuse a quorum that is none; the time counts from now.

    Raises:
        ConfigError: a share that is not above 0 and at most 1, or a time that is not finite and above 0, or one
            without the other.
    """
    if quorum is None or not _is_number(quorum) or not 0 < quorum <= 1:
        raise ConfigError(f"publish(quorum=…) takes a share above 0, at most 1, not {quorum!r}")
    if within is None or not _is_number(within) or not 0 < within < math.inf:
        raise ConfigError(f"publish(within=…) takes a finite number of seconds above 0, with a quorum, not {within!r}")
    return Quorum(quorum, trio.current_time() + within)


@final
class _Blocked(Waiter):
    """A publish that waits for one outbox."""

    __slots__ = ("client_id", "deadline", "fan", "subscriber", "then")

    def __init__(self, fan: FanOut, client_id: str, subscriber: Subscriber, policy: Block) -> None:
        super().__init__(fan.frame)
        self.fan: FanOut = fan
        self.client_id: str = client_id
        self.subscriber: Subscriber = subscriber
        self.deadline: float = trio.current_time() + policy.seconds
        self.then: Literal["drop_newest", "disconnect"] = policy.then

    def accepted(self) -> None:
        self.fan.unblocked(self, took=True)

    def refused(self, closed: ConnectionClosed) -> None:
        self.fan.unblocked(self, took=False)


class Rules(Protocol):
    """What the hub knows."""

    counts: BackpressureCounts

    def policy_of(self, topic: str) -> Overflow:
        """The topic's own policy."""
        ...

    def terms_of(self, client_id: str, topic: str) -> Overflow | None:
        """The subscription's own policy."""
        ...

    def gap_writer(self, client_id: str, topic: str) -> WriteGap | None:
        """How to tell this client what is missing of the topic; None where it did not ask."""
        ...

    def has_gap_seekers(self) -> bool:
        """False where nobody asked."""
        ...


@final
class FanOut:
    """One message, and what has become of it so far.

    Args:
        rules: the hub.
        frame: the message.
        quorum: counts who has handed it to the system, where that was asked for.

    Attributes:
        delivered: outboxes that took it.
        dropped: outboxes in which something was dropped for it, or it was.
        conflated: outboxes in which it took the place of an older one.
        blocked: outboxes that it had to wait for.
    """

    __slots__ = (
        "_ended",
        "_over",
        "_policy",
        "_rules",
        "_through",
        "_waiting",
        "blocked",
        "conflated",
        "delivered",
        "dropped",
        "frame",
        "quorum",
    )

    def __init__(self, rules: Rules, frame: Published, quorum: Quorum | None = None) -> None:
        self._rules = rules
        self._policy: Overflow | None = None
        self._waiting: dict[_Blocked, None] | None = None
        self._over: trio.Event | None = None
        self._through: trio.Event | None = None  # while it goes on
        self._ended = False
        self.frame: Published = frame
        self.quorum: Quorum | None = quorum
        self.delivered: int = 0
        self.dropped: int = 0
        self.conflated: int = 0
        self.blocked: int = 0

    def offer(self, client_id: str, subscriber: Subscriber) -> None:
        """Offer it to one who is behind, and do what its policy says. Never waits."""
        outbox = subscriber.outbox
        outbox.flush()  # what only waits for the end of this pass is no reason to drop anything
        frame = self.frame
        if not (frame.careful and outbox.congested) and outbox.offer(frame):
            self._accepted(outbox)
            return
        if _is_closed(outbox):
            return
        policy = self._policy_for(client_id)
        if isinstance(policy, Conflate):
            fault = frame.fault
            removed = outbox.conflate(frame, policy)
            if frame.fault is not fault:  # said once for each message, not for each subscriber
                logger.error("the key of a message of topic %s failed", frame.topic, exc_info=frame.fault)
            self._rules.counts.conflated += removed
            self.conflated += removed > 0
        if outbox.offer_behind(frame):
            self._accepted(outbox)
        elif _is_closed(outbox):
            pass  # it was over the byte budget
        elif isinstance(policy, Block):
            self._block(client_id, subscriber, policy)
        elif policy == "disconnect":
            self._disconnect(subscriber)
        elif policy == "drop_newest" or not self._displaced(client_id, outbox):
            self._lost(client_id, outbox)

    def _policy_for(self, client_id: str) -> Overflow:
        topic = cast("str", self.frame.topic)
        own = self._rules.terms_of(client_id, topic)
        if own is not None:
            return own
        if self._policy is None:
            self._policy = self._rules.policy_of(topic)  # asked once, and only if somebody is behind
        return self._policy

    def _accepted(self, outbox: Outbox) -> None:
        self.delivered += 1
        if self.quorum is not None:
            self.quorum.accepted(outbox)

    def _disconnect(self, subscriber: Subscriber) -> None:
        self._dropped(subscriber.outbox)
        self._rules.counts.disconnected += 1
        subscriber.too_slow()

    def _dropped(self, outbox: Outbox) -> None:
        self.dropped += 1
        outbox.dropped += 1
        self._rules.counts.dropped += 1

    def _displaced(self, client_id: str, outbox: Outbox) -> bool:
        """Older messages made room."""
        dropped, gaps = outbox.dropped, outbox.gaps
        wants = partial(self._rules.gap_writer, client_id) if self._rules.has_gap_seekers() else None
        taken = outbox.offer_instead(self.frame, wants)
        counts = self._rules.counts
        counts.dropped += outbox.dropped - dropped
        counts.gaps += outbox.gaps - gaps
        if taken:
            self.dropped += outbox.dropped > dropped  # it may have been full of notices
            self._accepted(outbox)
        return taken or _is_closed(outbox)

    def _lost(self, client_id: str, outbox: Outbox) -> None:
        self._dropped(outbox)
        frame = self.frame
        topic = cast("str", frame.topic)
        write = self._rules.gap_writer(client_id, topic)
        if write is not None:
            gaps = outbox.gaps
            outbox.miss(topic, frame.offset, frame.offset, write)
            self._rules.counts.gaps += outbox.gaps - gaps

    # Waiting.

    def _block(self, client_id: str, subscriber: Subscriber, policy: Block) -> None:
        outbox = subscriber.outbox
        blocked = _Blocked(self, client_id, subscriber, policy)
        if self._waiting is None:
            self._waiting = {}
        self._waiting[blocked] = None
        self.blocked += 1
        outbox.blocked += 1
        self._rules.counts.blocked += 1
        outbox.wait_for_room(blocked)

    def unblocked(self, blocked: _Blocked, *, took: bool) -> None:
        """The outbox has taken it; or never will, for its connection is closed."""
        assert self._waiting is not None
        del self._waiting[blocked]
        if took:
            self.delivered += 1
            if self.quorum is not None:
                self.quorum.queued(blocked.subscriber.outbox)
        if not self._waiting and self._over is not None:
            self._over.set()

    def result(self, driver: PublishResult) -> PublishResult:
        """What came of it, with what the driver says."""
        return attrs.evolve(
            driver,
            delivered=self.delivered,
            dropped=self.dropped,
            conflated=self.conflated,
            blocked=self.blocked,
            written=None if self.quorum is None else self.quorum.count,
        )

    @property
    def must_wait(self) -> bool:
        """Whether `wait` has anything to wait for."""
        return bool(self._waiting) or self.quorum is not None or self._through is not None

    def goes_on(self) -> None:
        """Not everybody was offered it yet."""
        self._through = trio.Event()

    def is_through(self) -> None:
        """Now everybody was."""
        if self._through is not None:
            self._through.set()
            self._through = None
        if self._ended:
            self.end()

    async def wait(self) -> None:
        """Wait until everybody was offered it, for those that block, at the same time, and then for the quorum.

        Cancelled: those that have no room do not get it.
        """
        try:
            if self._through is not None:
                await self._through.wait()
            waiting = self._waiting
            while waiting:
                self._over = trio.Event()
                with trio.move_on_at(min(blocked.deadline for blocked in waiting)):
                    await self._over.wait()
                now = trio.current_time()
                for blocked in [blocked for blocked in waiting if blocked.deadline <= now]:
                    self._give_up(blocked)
        finally:
            self.end()
        if self.quorum is not None:
            await self.quorum.wait()

    def end(self) -> None:
        """Wait no more: those that have no room do not get it."""
        self._ended = True
        for blocked in tuple(self._waiting or ()):
            self._give_up(blocked)

    def _give_up(self, blocked: _Blocked) -> None:
        assert self._waiting is not None
        if blocked not in self._waiting:
            return  # what was done for another has ended its connection
        del self._waiting[blocked]
        outbox = blocked.subscriber.outbox
        if blocked.then == "disconnect":
            outbox.give_up(blocked)
            self._disconnect(blocked.subscriber)
            return
        gaps = outbox.gaps
        outbox.give_up(blocked, self._rules.gap_writer(blocked.client_id, cast("str", self.frame.topic)))
        self._dropped(outbox)
        self._rules.counts.gaps += outbox.gaps - gaps


def _is_closed(outbox: Outbox) -> bool:
    return outbox.closed is not None
