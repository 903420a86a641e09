"""Hands on the messages of topics in the order of their numbers, whatever way and in whatever order they come here.

For histories that several processes share: a number is given by the store, and the message then comes by the answer
to its publisher, or through a broker; one may overtake another, and one may be lost.

Rules
- A message goes out when all before it have; one that came before is dropped.
- Where one is missing for `_HOLE_SECONDS`, the store is read, and what it has goes out. What it has not is left out:
  clients see that by the numbers. So it is, too, when the store does not answer for `_PATIENCE`.
  While a publish of this process is under way that began before, it may be the missing one, and is waited for as long.
- A subscriber who got messages from the store that have not come here yet does not get them again: it has a *floor*.
- The first who read the store sets the place to begin; who read it before and is done later is told where that is.
  Where somebody gets messages already and has no place (by a pattern, or because the store did not answer), the first
  message that comes sets it: what others got from the store may be on its way here.
- Where a message is on its way to many, the next one waits.
- When another epoch begins, every subscriber is told before the first message of it.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol, final

import trio

from trio_wskit._core.history import Position, Replay, stamp
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub._fanout import FanOut, Quorum

__all__ = ["Arrival", "Feeds", "Outlet"]

logger = logging.getLogger("trio_wskit")

_HOLE_SECONDS: Final = 0.1
_PATIENCE: Final = 5.0
_WAITING: Final = 1000  # messages of a topic that wait for one that is missing; the store has the others
_SWEPT_PER_STEP: Final = 2
_READERS: Final = 16  # topics that are read at the same time, whatever is missing


class Arrival(NamedTuple):
    """A message that came here, by whatever way."""

    position: Position
    envelope: PublishEnvelope
    message: bytes
    quorum: Quorum | None = None


class Outlet(Protocol):
    """What feeds need of their house. When a topic is not busy any more, it calls `Feeds.go_on`."""

    def fan_out(self, arrival: Arrival, skip: Collection[str]) -> FanOut:
        """Give it to all subscribers but these."""
        ...

    def tell_all(self, topic: str, position: Position, skip: Collection[str]) -> None:
        """Tell all subscribers but these where the topic stands now."""
        ...

    def tell(self, client_id: str, topic: str, position: Position) -> None:
        """Tell this subscriber."""
        ...

    def begin_after(self, topic: str, position: Position) -> None:
        """Nothing up to a position goes out here: who is about to subscribe gets that from the store, or never."""
        ...

    def is_busy(self, topic: str) -> bool:
        """True where a message of it is on its way to many: the next one waits."""
        ...

    def is_wanted(self, topic: str) -> bool:
        """True where somebody here subscribes to it, or is about to."""
        ...

    def is_held(self, topic: str) -> bool:
        """True where nobody gets messages yet, and somebody is about to, who will have `joined`, or `begin`."""
        ...

    def is_live(self, client_id: str, topic: str) -> bool:
        """True where this client gets the topic's messages."""
        ...

    def others_are_live(self, client_id: str, topic: str) -> bool:
        """True where somebody else gets the topic's messages already."""
        ...

    async def read_after(self, topic: str, since: Position | None) -> Replay:
        """Read what came after a position; without one, as much as there is."""
        ...


@final
class _Feed:
    __slots__ = ("floors", "gone", "hole_since", "newest", "too_many", "waiting")

    def __init__(self) -> None:
        self.newest: Position | None = None  # that went out
        self.waiting: dict[Position, Arrival] = {}
        self.gone: Position | None = None  # what does not wait up to here will never come
        self.hole_since: float | None = None  # the store has not what is missing, but it may be under way
        self.too_many: bool = False  # some came while there was no place to begin from, and could not wait for it
        self.floors: dict[str, Position] = {}


@final
class Feeds:
    """The topics that somebody here subscribes to.

    Args:
        outlet: where messages go.
    """

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._feeds: dict[str, _Feed] = {}
        self._round: deque[tuple[str, _Feed]] = deque()  # who is looked at next, for being wanted by nobody
        self._doubtful: dict[str, None] = {}
        self._begun: set[str] = set()
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None  # while it runs
        self._readers = trio.CapacityLimiter(_READERS)
        self._publishing: dict[str, dict[object, float]] = {}  # of each topic: those under way, and since when

    def __len__(self) -> int:
        return len(self._feeds)

    @contextmanager
    def publishing(self, topic: str) -> Generator[None]:
        """From before the store has a message of this process until that has `arrived`."""
        this = object()
        self._publishing.setdefault(topic, {})[this] = trio.current_time()
        try:
            yield
        finally:
            others = self._publishing[topic]
            del others[this]
            if not others:
                del self._publishing[topic]

    def arrived(self, arrival: Arrival) -> FanOut | None:
        """A message has come. Never waits.

        Returns:
            What came of it, where it went out at once; then wait for it and end it.
        """
        position, topic = arrival.position, arrival.envelope.topic
        feed = self._feed_of(topic)
        if feed is None:
            return None
        newest = feed.newest
        if newest is None:
            if self._outlet.is_held(topic):  # somebody reads the store, and will tell from where on
                if len(feed.waiting) < _WAITING:
                    feed.waiting[position] = arrival
                else:
                    feed.too_many = True
                return None
            newest = feed.newest = self._place_before(topic, feed, position)
            self._send_waiting(topic, feed)
            newest = feed.newest
        if newest == Position(position.epoch, position.offset - 1) and not self._outlet.is_busy(topic):
            fan = self._send(feed, arrival)
            if feed.waiting:
                self._send_waiting(topic, feed)
            return fan
        if newest.epoch != position.epoch or newest.offset < position.offset:
            if len(feed.waiting) < _WAITING:
                feed.waiting[position] = arrival
            self.doubt(topic)
        return None

    def joined(self, topic: str, client_id: str, position: Position, *, alone: bool) -> None:
        """A client has got all up to a position, and gets from here what comes after it.

        Args:
            topic: which.
            client_id: whose.
            position: the newest that it got or knows to have missed.
            alone: nobody else here subscribes to the topic.
        """
        feed = self._feed_of(topic)
        if feed is None:
            return
        newest = feed.newest
        if newest is None and not alone and self._outlet.others_are_live(client_id, topic):
            self._joined_the_placeless(topic, feed, client_id, position)
        elif newest is None or (alone and not (newest.epoch == position.epoch and newest.offset > position.offset)):
            feed.newest = position
            feed.floors.clear()
            if not alone:
                self._outlet.begin_after(topic, position)  # others may have read the store before, and be done later
            self._send_waiting(topic, feed)
        elif newest.epoch != position.epoch:
            feed.floors[client_id] = position
            self.doubt(topic)
        elif newest.offset < position.offset:
            feed.floors[client_id] = position
            self.doubt(topic)  # what it got was lost on its way here, or is late
        else:
            feed.floors.pop(client_id, None)

    def _joined_the_placeless(self, topic: str, feed: _Feed, client_id: str, position: Position) -> None:
        feed.floors.pop(client_id, None)
        feed.floors[client_id] = position  # the last of all
        if feed.waiting or feed.too_many:
            feed.newest = self._place_before(topic, feed)
            self._send_waiting(topic, feed)
        elif any(floor.epoch != position.epoch for floor in feed.floors.values()):
            feed.newest = self._place_before(topic, feed)  # who knows another epoch is to be told
            self.doubt(topic)

    def _place_before(self, topic: str, feed: _Feed, *came: Position) -> Position:
        """Where to begin: before what came, and before what those need who have a place."""
        place = self._place_of(topic, feed)
        epoch = came[0].epoch if place is None else place.epoch
        offsets = [one.offset - 1 for one in (*came, *feed.waiting) if one.epoch == epoch]
        return Position(epoch, min(offsets if place is None else [*offsets, place.offset]))

    def _place_of(self, topic: str, feed: _Feed) -> Position | None:
        """Where those stand who have a place: the last of them, of those who are in the epoch of the first."""
        live = self._outlet.is_live
        feed.floors = {who: floor for who, floor in feed.floors.items() if live(who, topic)}
        epoch = next((floor.epoch for floor in feed.floors.values()), None)
        return min((one for one in feed.floors.values() if one.epoch == epoch), key=_offset_of, default=None)

    def begin(self, topic: str) -> None:
        """Somebody who read the store learned nothing: where nobody else knows, begin with what came."""
        feed = self._feed_of(topic)
        if feed is not None and feed.newest is None and not self._outlet.is_held(topic):
            self._leave_out(topic, feed)

    def go_on(self, topic: str) -> None:
        """The topic is not busy any more: send what waits."""
        feed = self._feeds.get(topic)
        if feed is not None and feed.newest is not None and feed.waiting:
            self._send_waiting(topic, feed)

    def doubt(self, topic: str | None = None) -> None:
        """Something may be missing at the end of a topic, or of all: look what the store has, in a while."""
        for name in tuple(self._feeds) if topic is None else (topic,):
            self._doubtful[name] = None
        self._wake.set()

    def _feed_of(self, topic: str) -> _Feed | None:
        self._sweep()
        feed = self._feeds.get(topic)
        if not self._outlet.is_wanted(topic):
            self._feeds.pop(topic, None)
            return None
        if feed is None:
            feed = self._feeds[topic] = _Feed()
            self._round.append((topic, feed))
        return feed

    def _sweep(self) -> None:
        for _ in range(min(_SWEPT_PER_STEP, len(self._round))):
            topic, feed = self._round.popleft()
            if self._feeds.get(topic) is not feed:
                continue
            if self._outlet.is_wanted(topic):
                self._round.append((topic, feed))
            else:
                del self._feeds[topic]

    def _send(self, feed: _Feed, arrival: Arrival) -> FanOut:
        position = arrival.position
        feed.newest = position
        if not feed.floors:
            return self._outlet.fan_out(arrival, ())
        floors, feed.floors = feed.floors, {}
        skip: list[str] = []
        for client_id, floor in floors.items():
            if floor.epoch != position.epoch or position.offset <= floor.offset:
                skip.append(client_id)
            if floor.epoch != position.epoch or position.offset < floor.offset:
                feed.floors[client_id] = floor
        return self._outlet.fan_out(arrival, skip)

    def _send_late(self, feed: _Feed, arrival: Arrival) -> None:
        """Send what nobody waits for any more."""
        fan = self._send(feed, arrival)
        if fan.must_wait and self._nursery is not None:
            self._nursery.start_soon(self._wait_for, fan)
        else:
            fan.end()

    @staticmethod
    async def _wait_for(fan: FanOut) -> None:
        try:
            await fan.wait()
        finally:
            fan.end()

    def _send_waiting(self, topic: str, feed: _Feed) -> None:
        """Send what has no hole before it any more, and drop what went out."""
        while (newest := feed.newest) is not None:
            if self._outlet.is_busy(topic):
                return
            arrival = feed.waiting.pop(Position(newest.epoch, newest.offset + 1), None)
            if arrival is not None:
                self._send_late(feed, arrival)
                continue
            self._drop_old(feed)
            first = min((one.offset for one in feed.waiting if one.epoch == newest.epoch), default=None)
            gone = feed.gone
            if first is None or gone is None or gone.epoch != newest.epoch or gone.offset + 1 < first:
                break
            feed.newest = Position(newest.epoch, first - 1)
        if feed.waiting or feed.too_many:
            feed.too_many = False
            self.doubt(topic)
        else:
            feed.hole_since = None

    @staticmethod
    def _drop_old(feed: _Feed) -> None:
        newest = feed.newest
        assert newest is not None
        for position in tuple(feed.waiting):
            if position.epoch == newest.epoch and position.offset <= newest.offset:
                del feed.waiting[position]

    # What is missing.

    async def run(self) -> None:
        """Mend holes, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                for topic in tuple(self._doubtful):
                    if topic not in self._begun:  # who is at it looks again
                        self._begun.add(topic)
                        nursery.start_soon(self._mend, topic)

    async def _mend(self, topic: str) -> None:
        try:
            give_up = trio.current_time() + _PATIENCE
            while True:
                await trio.sleep(_HOLE_SECONDS)
                self._doubtful.pop(topic, None)
                feed = self._feeds.get(topic)
                if feed is None or not self._outlet.is_wanted(topic):
                    return
                since = feed.newest or self._place_of(topic, feed)
                if since is None:
                    return
                try:
                    replay = await self._read(topic, since)
                except Exception as error:
                    if trio.current_time() < give_up:
                        continue
                    logger.warning("messages of %s are left out: %s", topic, type(error).__name__)
                    self._leave_out(topic, feed)
                    return
                if self._feeds.get(topic) is feed:
                    self._take(topic, feed, since, replay)
                if topic not in self._doubtful:
                    return
                give_up = trio.current_time() + _PATIENCE
        finally:
            self._begun.discard(topic)
            if topic in self._doubtful:
                self._wake.set()

    async def _read(self, topic: str, since: Position) -> Replay:
        async with self._readers:
            replay = await self._outlet.read_after(topic, since)
            if replay.entries is None:
                replay = await self._outlet.read_after(topic, None)
        return replay

    def _take(self, topic: str, feed: _Feed, since: Position, replay: Replay) -> None:
        """Send what the store has, in its order."""
        position, entries = replay.position, replay.entries or ()
        if feed.newest is None:
            place = self._place_of(topic, feed)
            if place is None or position == place:
                return  # nobody has missed anything: the first that comes sets the place
            if place != since:
                self.doubt(topic)
                return
            feed.newest = place
        newest = feed.newest
        if position.epoch != newest.epoch:
            if newest != since or self._outlet.is_busy(topic):
                self.doubt(topic)  # it moved on while we read, or does so now: look again
                return
            came = [one.offset for one in feed.waiting if one.epoch == position.epoch]
            first = entries[0].offset if entries else position.offset + 1
            newest = self._begin_epoch(topic, feed, position.epoch, min([first, *came]))
        self._forget_other_epochs(topic, feed, position.epoch)
        for entry in entries:
            place = Position(position.epoch, entry.offset)
            if place.offset > newest.offset and place not in feed.waiting:
                feed.waiting[place] = Arrival(place, PublishEnvelope(topic, ""), stamp(entry.message, place))
        if not self._may_come(topic, feed):
            feed.gone = position  # what neither the store has nor waits; what is later is on its way
            feed.hole_since = None
        self._send_waiting(topic, feed)

    def _may_come(self, topic: str, feed: _Feed) -> bool:
        """True where what is missing may be one that is published here, and its publisher does not know its number."""
        now = trio.current_time()
        if feed.hole_since is None:
            feed.hole_since = now
        since = next(iter(self._publishing.get(topic, {}).values()), math.inf)
        return since <= feed.hole_since and now < feed.hole_since + _PATIENCE

    def _begin_epoch(self, topic: str, feed: _Feed, epoch: str, first: int) -> Position:
        feed.newest = start = Position(epoch, first - 1)
        feed.floors = {who: floor for who, floor in feed.floors.items() if floor.epoch == epoch}
        self._outlet.tell_all(topic, start, feed.floors)
        return start

    def _forget_other_epochs(self, topic: str, feed: _Feed, epoch: str) -> None:
        """They are over, or began while we read: then the next look tells."""
        if topic not in self._doubtful:  # else somebody may have read, while we did, what is newer
            feed.floors = {who: floor for who, floor in feed.floors.items() if floor.epoch == epoch}
        if any(place.epoch != epoch for place in feed.waiting):
            feed.waiting = {place: one for place, one in feed.waiting.items() if place.epoch == epoch}
            self.doubt(topic)

    def _leave_out(self, topic: str, feed: _Feed) -> None:
        """Go on without what is missing; of several epochs, with the one that came last."""
        if feed.waiting:
            epoch = next(reversed(feed.waiting)).epoch
            first = min(place.offset for place in feed.waiting if place.epoch == epoch)
            if feed.newest is None:
                feed.newest = Position(epoch, first - 1)
            elif feed.newest.epoch != epoch:
                self._begin_epoch(topic, feed, epoch, first)
            feed.waiting = {place: one for place, one in feed.waiting.items() if place.epoch == epoch}
            feed.gone = Position(epoch, first - 1)
            self._send_waiting(topic, feed)
        newest = feed.newest
        if newest is None:
            return
        floors, feed.floors = feed.floors, {}
        for client_id, floor in floors.items():
            if floor.epoch != newest.epoch:
                self._outlet.tell(client_id, topic, newest)  # it goes on with what comes here
            elif floor.offset > newest.offset:
                feed.floors[client_id] = floor


def _offset_of(position: Position) -> int:
    return position.offset
