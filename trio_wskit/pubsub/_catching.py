"""One subscription with its past.

Rules
- Whoever subscribes to a topic with a history is *held* from before the driver knows of it until it is decided what it
  gets of the past: what is published meanwhile waits in a bounded `Hold`, not in its outbox.
- The decision is one step without a wait: all that was missed, and what was held and is newer, goes into the outbox;
  or, where anything is missing or finds no room, nothing that was missed does. So no client ever gets a part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

from trio_wskit._core.frames import text_frame
from trio_wskit._core.history import Entry, History, Position, Recovery, Replay, stamp
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._outbox import Frame

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.pubsub._history import Histories

__all__ = ["Catching", "Held", "Hold", "Snapshot"]

Snapshot: TypeAlias = "Callable[[Session, str], Awaitable[tuple[object, Position]]]"
"""Gives a message that tells a client all about a topic up to a position."""


class Held(NamedTuple):
    position: Position
    frame: Frame
    envelope: PublishEnvelope | None  # None: it is a notice
    message: bytes


@final
class Hold:
    """What was published to a topic while one client's subscription is under way."""

    __slots__ = ("items", "limit", "newest", "overflowed", "was_live")

    def __init__(self, limit: int, *, was_live: bool) -> None:
        self.limit: int = limit
        self.was_live: bool = was_live  # the client would get them all the same
        self.items: list[Held] = []
        self.newest: Position | None = None
        self.overflowed: bool = False

    def add(self, item: Held) -> list[Held]:
        """Keep it where there is room; else give what is not to be held any more, for a client that is live."""
        self.newest = item.position
        if len(self.items) < self.limit and not self.overflowed:
            self.items.append(item)
            return []
        self.overflowed = True
        over, self.items = self.items, []
        return [*over, item] if self.was_live else []


@final
class Catching:
    """One subscription with its past: ``with`` it around the driver's part, which `recover` follows."""

    __slots__ = (
        "_client_id",
        "_histories",
        "_hold",
        "_keep",
        "_last",
        "_reached",
        "_since",
        "_snapshot",
        "_topic",
    )

    def __init__(
        self,
        histories: Histories,
        client_id: str,
        topic: str,
        keep: History,
        since: Position | None,
        last: int,
        snapshot: Snapshot | None,
    ) -> None:
        self._histories = histories
        self._client_id = client_id
        self._topic = topic
        self._keep = keep
        self._since = since
        self._last = last
        self._snapshot = snapshot
        self._reached: Position | None = None  # once it is decided

    async def enter(self) -> None:
        """Wait for a turn, where there is something of the past to give."""
        if self._since is not None or self._last or self._snapshot is not None:
            entry = self._histories.entry
            await entry.turn()
            entry.next()

    def __enter__(self) -> Catching:
        self._hold = self._histories.hold(self._client_id, self._topic)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._histories.let_go(self._client_id, self._topic)
        if self._reached is None:
            self._histories.deliver_late(self._client_id, self._topic, self._hold)
        self._histories.joined(self._client_id, self._topic, self._reached)

    async def recover(self) -> Recovery:
        """Find out what the client gets, and give it.

        Raises:
            PubSubError: CONNECTION_CLOSED: the client has left. And what the application's snapshot raises.

        Cancelled: it gets nothing.
        """
        since, first = self._since, None
        if self._snapshot is not None:
            first, since = await self._histories.snapshot_of(self._snapshot, self._client_id, self._topic)

        def decide(replay: Replay) -> Recovery:
            return self._decide(replay, first, since)

        return await self._histories.read(self._topic, self._keep, since, self._last, decide)

    def _decide(self, replay: Replay, first: Frame | None, since: Position | None) -> Recovery:
        recovery, self._reached = self._choose(replay, first, since)
        return recovery

    def _choose(self, replay: Replay, first: Frame | None, since: Position | None) -> tuple[Recovery, Position]:
        """What comes of it, and up to where the client has then got all that it will ever get."""
        hold, put = self._hold, self._histories.put
        position, entries = replay.position, replay.entries
        newest = hold.newest or position
        if newest.epoch != position.epoch or hold.overflowed:  # it is long ago that the store was read
            return Recovery(False, newest), newest
        newest = max(newest, position, key=_offset_of)
        # Of an older epoch, or in the replay as well: the store had them before it was read.
        tail = [item for item in hold.items if item.position.epoch == position.epoch]
        tail = [item for item in tail if item.position.offset > position.offset]
        frames = [item.frame for item in tail]
        is_whole = len(tail) == newest.offset - position.offset
        asked = since is not None or self._last > 0
        if asked and entries is not None and is_whole:
            missed = [self._frame_of(entry, position.epoch) for entry in entries]
            if put(self._client_id, [*([] if first is None else [first]), *missed, *frames]):
                return Recovery(True, newest, newest.offset - position.offset + len(entries)), newest
        if hold.was_live:  # these it would have got without us
            frames = [item.frame for item in hold.items]
        elif not is_whole:
            frames.clear()
        return Recovery(False, position if put(self._client_id, frames) and is_whole else newest), newest

    def _frame_of(self, entry: Entry, epoch: str) -> Frame:
        frame: Frame | None = entry.frame
        if frame is None:
            wire = text_frame(stamp(entry.message, Position(epoch, entry.offset)))
            frame = entry.frame = Frame(wire, self._topic, entry.offset)
        return frame


def _offset_of(position: Position) -> int:
    return position.offset
