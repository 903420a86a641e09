"""What waits for a connection's socket: one bounded queue, who waits for room in it, and what policies do to it.

It has no socket, no task and no clock; `_outbox.Outbox` adds them.

Rules
- Frames keep the order in which they were accepted.
- Whoever waits for room gets in first come, first served; only a topic's policy may put a newer message before one that
  waits, and never before one of the same topic.
- A notice of missing messages always has room: there are never more of them than messages and topics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from trio_wskit._budget import ByteBudget
from trio_wskit._core.backlog import (
    Frame,
    GapNotice,
    Offset,
    Published,
    WriteGap,
    drop_oldest,
    note_gap,
    remove,
    superseded,
)
from trio_wskit._core.options import Limits
from trio_wskit._core.overflow import Conflate
from trio_wskit.errors import ConnectionClosed

__all__ = ["Owner", "Queue", "Ticket", "Waiter", "notices_of", "size_of"]


class Owner(Protocol):
    """Whose outbox it is."""

    def evicted(self, used: int, limit: float) -> None:
        """Disconnect it: too many bytes wait for all sockets together, and its own has taken none for longest."""
        ...


class Ticket(Protocol):
    """Wants to know what becomes of a frame. None of these may wait."""

    def written(self) -> None:
        """The system has it."""
        ...

    def lost(self) -> None:
        """It will never be written."""
        ...


class Waiter:
    """Waits for room for a frame; see `Outbox.wait_for_room`.

    Attributes:
        frame: what it wants to have accepted.
    """

    __slots__ = ("frame",)

    def __init__(self, frame: Frame) -> None:
        self.frame: Frame = frame

    def accepted(self) -> None:
        """There is room now: the frame is the last in the queue."""

    def refused(self, closed: ConnectionClosed) -> None:
        """There will be none."""


class Queue(ABC):
    """The part of an outbox that is the same whatever is behind it.

    Args:
        limits: ``outbox_messages`` and ``outbox_bytes`` are used.

    Attributes:
        dropped: messages that a topic's policy has dropped.
        conflated: messages that were removed because a newer one with the same key came.
        blocked: publishes that had to wait for room here.
        gaps: notices of missing messages.
        charged: bytes that the budget counts for it.
        name: whose it is, where it is enrolled.
    """

    __slots__ = (
        "_broken",
        "_budget",
        "_bytes",
        "_frames",
        "_limits",
        "_notices",
        "_owner",
        "_slow",
        "_waiting",
        "_watched",
        "_writing",
        "blocked",
        "charged",
        "conflated",
        "dropped",
        "gaps",
        "name",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._frames: list[Frame] = []
        self._bytes = 0  # of what is queued and of what the writer holds
        self._notices = 0  # of the frames: these need no room
        self._writing = False
        self._waiting: deque[Waiter] | None = None  # made when somebody first waits, or watches
        self._watched: dict[Frame, Ticket] | None = None
        self._budget: ByteBudget | None = None
        self._owner: Owner | None = None
        self._broken: ConnectionClosed | None = None
        self._slow: set[str] | None = None
        self.name: str = ""
        self.dropped: int = 0
        self.conflated: int = 0
        self.blocked: int = 0
        self.gaps: int = 0
        self.charged: int = 0

    def account_to(self, budget: ByteBudget, owner: Owner) -> None:
        """From now on what the socket does not take is charged to this budget."""
        self._budget = budget
        self._owner = owner

    def enrol(self, name: str, slow: set[str]) -> None:
        """From now until `strike_off` it is in `slow`, by this name, whenever it cannot take a message at once."""
        self.name = name
        self._slow = slow
        if self._writing or self._broken is not None:
            self._falls_behind()

    def strike_off(self) -> None:
        """See `enrol`."""
        if self._slow is not None:
            self._slow.discard(self.name)
            self._slow = None

    def _falls_behind(self) -> None:
        if self._slow is not None:
            self._slow.add(self.name)

    def _keeps_up(self) -> None:
        if self._slow is not None and self._broken is None:
            self._slow.discard(self.name)

    @property
    def queued_bytes(self) -> int:
        """Bytes accepted that the system has not taken yet."""
        self._settle()
        return self._bytes

    @property
    def congested(self) -> bool:
        """True while the peer does not read as fast as we write."""
        return self._writing

    @property
    def closed(self) -> ConnectionClosed | None:
        """Why nothing more is accepted; None while the outbox is open."""
        return self._broken

    @abstractmethod
    def _settle(self) -> None:
        """Take what was accepted elsewhere, before anything else."""

    @abstractmethod
    def _changed(self) -> None:
        """Something was added: see that it leaves, and tell the budget, which may end this connection."""

    def offer_behind(self, frame: Frame) -> bool:
        """The same for one that is `congested`."""
        if not self._fits(len(frame.wire)) or self._waiting or self._broken is not None:
            return False
        self._append(frame)
        return self._broken is None

    def _fits(self, size: int) -> bool:
        limits = self._limits
        return (
            self._bytes + size <= limits.outbox_bytes and len(self._frames) - self._notices < limits.outbox_messages
        ) or not (self._frames or self._writing)

    def _append(self, frame: Frame) -> None:
        """Queue it, see that it leaves, and tell the budget, which may end this connection."""
        self._frames.append(frame)
        self._bytes += len(frame.wire)
        self._changed()

    def evict(self, used: int, limit: float) -> None:
        """See `_budget.Debtor`."""
        assert self._owner is not None
        self._budget = None  # what its writer still holds is not charged: it has a second to go
        self._owner.evicted(used, limit)

    def wait_for_room(self, waiter: Waiter) -> None:
        """Queue up behind all who wait for room: in its turn `waiter` is told that it has it, or that it never will.

        To be called when `offer` has given False, and the outbox is open.
        """
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(waiter)

    def give_up(self, waiter: Waiter, write: WriteGap | None = None) -> None:
        """Wait no more. With `write`, a notice of the missing message stands in its place."""
        assert self._waiting is not None
        frame = waiter.frame
        if write is not None and isinstance(frame, Published) and frame.topic is not None:
            self._miss_in_line(waiter, frame.topic, frame.offset, write)
        self._waiting.remove(waiter)
        self._admit()  # a smaller frame may fit where this one did not

    def _miss_in_line(self, waiter: Waiter, topic: str, offset: Offset, write: WriteGap) -> None:
        """Behind those of its topic that wait before it, or else behind the queue."""
        assert self._waiting is not None
        earlier: Waiter | None = None
        for other in self._waiting:
            if other is waiter:
                break
            if topic == _topic_of(other.frame):
                earlier = other
        if earlier is None:
            self._miss(topic, offset, offset, write)
        elif isinstance(earlier.frame, GapNotice):
            earlier.frame.grow(offset, offset)
        else:
            self.gaps += 1
            self._waiting.insert(self._waiting.index(waiter), Waiter(GapNotice(topic, offset, offset, write)))

    def _admit(self) -> None:
        """Let in who waits, while there is room."""
        waiting = self._waiting
        while waiting:
            waiter = waiting[0]
            frame = waiter.frame
            if isinstance(frame, GapNotice):
                waiting.popleft()
                self._note_gap(frame.about, frame.first, frame.last, frame.write)
            elif self._fits(len(frame.wire)):
                waiting.popleft()
                self._frames.append(frame)
                self._bytes += len(frame.wire)
                waiter.accepted()
            else:
                break
        self._changed()

    # What the policies of topics do.

    def offer_instead(self, frame: Frame, wants: Callable[[str], WriteGap | None] | None = None) -> bool:
        """Accept a topic's frame, and drop the oldest messages of topics, as many as it takes to make room.

        Args:
            frame: the newest.
            wants: the way to write a notice about a topic; None where the client did not ask.

        Returns:
            False where dropping them all is not enough, for replies stay: then nothing was dropped.
        """
        if self._broken is not None or self._others_wait(frame.topic):
            return False
        frames = self._frames
        limits = self._limits
        oldest = drop_oldest(
            frames,
            self._bytes + len(frame.wire) - limits.outbox_bytes,
            len(frames) - self._notices + 1 - limits.outbox_messages,
        )
        if oldest is None:
            return False
        self._remove(oldest, wants or _nobody)
        self.dropped += len(oldest)
        self._append(frame)
        if self._waiting:
            self._admit()  # what was dropped, or conflated before, may have been larger
        return self._broken is None

    def conflate(self, frame: Published, policy: Conflate) -> int:
        """Remove queued messages of the same topic that have the same key.

        Returns:
            How many there were. Then offer the newer one.
        """
        if self._broken is not None or self._others_wait(frame.topic):
            return 0
        older = superseded(self._frames, frame, policy)
        self._remove(older, None)
        self.conflated += len(older)
        return len(older)

    def miss(self, topic: str, first: Offset, last: Offset, write: WriteGap) -> None:
        """Leave a notice of missing messages behind all that is accepted. It always has room, and grows.

        Args:
            topic: what the client knows it by.
            first: the first missing position; None where nobody knows.
            last: the last one.
            write: makes a frame of it.
        """
        self._settle()
        if self._broken is not None:
            return
        for waiter in reversed(self._waiting or ()):
            if isinstance(waiter.frame, GapNotice) and waiter.frame.about == topic:
                waiter.frame.grow(first, last)
                return
            if waiter.frame.topic == topic:
                assert self._waiting is not None
                self.gaps += 1
                self._waiting.append(Waiter(GapNotice(topic, first, last, write)))
                return
        self._miss(topic, first, last, write)

    def _miss(self, topic: str, first: Offset, last: Offset, write: WriteGap) -> None:
        self.gaps += self._note_gap(topic, first, last, write)
        self._changed()

    def _note_gap(self, topic: str, first: Offset, last: Offset, write: WriteGap) -> int:
        """At the end of the queue: 1 where there is one notice more, 0 where one has grown."""
        count = len(self._frames)
        self._bytes += note_gap(self._frames, topic, first, last, write)
        more = len(self._frames) - count
        self._notices += more
        return more

    def _others_wait(self, topic: str | None) -> bool:
        """Whether an earlier message of the topic waits for room: nothing may go before that."""
        return any(topic == _topic_of(waiter.frame) for waiter in self._waiting or ())

    def _remove(self, positions: Sequence[int], wants: Callable[[str], WriteGap | None] | None) -> None:
        frames = self._frames
        if self._watched:
            for position in positions:
                self._tell_lost(frames[position])
        if not self._notices and (wants is None or wants is _nobody):
            for position in reversed(positions):
                self._bytes -= len(frames[position].wire)
                del frames[position]
            return
        removed = remove(frames, positions, wants)
        self.gaps += removed.made
        self._notices += removed.notices
        self._bytes += removed.size

    def watch(self, ticket: Ticket) -> None:
        """Tell `ticket` what becomes of the frame that was accepted last, and is still queued."""
        if self._watched is None:
            self._watched = {}
        if self._waiting is None:
            self._waiting = deque()
        self._watched[self._frames[-1]] = ticket

    def _tell_written(self, batch: Sequence[Frame]) -> None:
        assert self._watched is not None
        for frame in batch:
            ticket = self._watched.pop(frame, None)
            if ticket is not None:
                ticket.written()

    def _tell_lost(self, frame: Frame) -> None:
        if self._watched:
            ticket = self._watched.pop(frame, None)
            if ticket is not None:
                ticket.lost()

    # The end.

    def _forget(self, closed: ConnectionClosed) -> None:
        """Nothing can be sent any more: forget what is queued, and tell who waits."""
        self._settle()
        if self._broken is None:
            self._broken = closed
        self._falls_behind()
        self._frames.clear()
        self._bytes = self._notices = 0
        if self._budget is not None:
            self._budget.charge(self, 0)
        if self._watched:
            watched, self._watched = self._watched, None
            for ticket in watched.values():
                ticket.lost()
        if self._waiting:
            waiting, self._waiting = self._waiting, None
            for waiter in waiting:
                waiter.refused(closed)


def notices_of(frames: Sequence[Frame]) -> int:
    """How many of them are notices."""
    return sum(isinstance(frame, GapNotice) for frame in frames)


def size_of(frames: Sequence[Frame]) -> int:
    """Bytes on the wire."""
    return sum(len(frame.wire) for frame in frames)


def _topic_of(frame: Frame) -> str | None:
    return frame.about if isinstance(frame, GapNotice) else frame.topic


def _nobody(topic: str) -> None:
    """Nobody asked to be told what is missing."""
