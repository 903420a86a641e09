"""Publishing into a topic's history, and what a subscription from a place in it needs (see `_catching`).

Rules
- A message gets its number and is handed to the outboxes here in the order of the numbers. With a store that never
  waits, that begins in one step, and `_flow` sees to the rest where there are many; with another one, `_feeds` does.
- Who asks for the past takes turns, and so do the decisions about it: of each there is one in a scheduler pass. So ten
  thousand at once delay nobody else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import attrs
import trio

from trio_wskit._core.frames import text_frame
from trio_wskit._core.history import (
    NOT_KEPT,
    History,
    Position,
    Recovery,
    Replay,
    check_since,
    position_notice,
    position_of,
    stamp,
)
from trio_wskit._core.publishing import PublishEnvelope, PublishResult, Written, message_of
from trio_wskit._core.schema import spec_of
from trio_wskit._outbox import Frame
from trio_wskit.abc import HistoryStore, ImmediateHistoryStore
from trio_wskit.errors import ConfigError, PubSubError
from trio_wskit.pubsub._catching import Catching, Held, Hold, Snapshot
from trio_wskit.pubsub._fanout import FanOut, Quorum
from trio_wskit.pubsub._feeds import Arrival, Feeds
from trio_wskit.pubsub._flow import Flow
from trio_wskit.pubsub._hub import Hub
from trio_wskit.pubsub._turnstile import Turnstile

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["POSITION_META", "Histories"]

logger = logging.getLogger("trio_wskit")

_SWEPT_PER_STEP: Final = 2
_NOBODY: Final[Mapping[str, Any]] = {}
POSITION_META: Final = ("epoch", "offset")
"""Keys that only a history may set."""


def _kind(error: Exception) -> str:
    """What went wrong, in a word: of a store that is unavailable, why."""
    return type(error.__cause__ or error).__name__


@final
class Histories:
    """The topics of one app that keep a history.

    Args:
        keep: which these are.
        store: where.
        hub: local fan-out and the driver.
        limit: messages that may be held for a client, and that it may get at once.
        max_publishing: publishes that may wait at the same time.
        wall_clock: gives seconds since 1970.
        client_of: the client with this id.
    """

    def __init__(
        self,
        keep: Callable[[str], History | None],
        store: HistoryStore,
        hub: Hub,
        *,
        limit: int,
        max_publishing: int,
        wall_clock: Callable[[], float],
        client_of: Callable[[str], Session | None],
    ) -> None:
        given: Any = store
        if not callable(getattr(given, "append", None)):
            raise ConfigError(f"history_store takes a store, not {given!r}: open_redis_history(url) opens one")
        self._keep = keep
        self._store = store
        self._immediate = store if isinstance(store, ImmediateHistoryStore) else None
        self._hub = hub
        self._limit = limit
        self._max_publishing = max_publishing
        self._wall_clock = wall_clock
        self._client_of = client_of
        self._publishing = 0
        self._holds: dict[str, dict[str, Hold]] = {}
        self._feeds = None if self._immediate is not None else Feeds(self)
        self._flow = Flow(hub.turns, self._go_on)
        self._epochs: dict[str, str] = {}  # that subscribers know, where there are no feeds
        self._round: deque[str] = deque()  # of these topics: who is looked at next, for being wanted by nobody
        self.entry: Turnstile = Turnstile()  # who asks for the past begins in turn
        self._decision = Turnstile()

    def of(self, topic: str) -> History | None:
        """How much of a topic is kept; None for nothing, and for patterns."""
        if "*" in topic:
            return None
        keep: Any = self._keep(topic)
        if keep is not None and not isinstance(keep, History):
            raise TypeError(f"history({topic!r}) gives a History or None, not {keep!r}")
        return keep

    # Publishing.

    async def publish(
        self, envelope: PublishEnvelope, message: bytes, keep: History, quorum: Quorum | None = None
    ) -> PublishResult:
        """As `Hub.publish`, and the message is kept.

        Cancelled: with a store that never waits, nothing has happened, or the driver alone may not have sent it;
        another store may have it.
        """
        await self._hub.let_others_run()
        if self._publishing >= self._max_publishing:
            return PublishResult.failure("BACKPRESSURE", None, {"limit": self._max_publishing})
        self._publishing += 1
        fan: FanOut | None = None
        try:
            try:
                if self._immediate is not None:
                    position, fan = await self._keep_here(self._immediate, envelope, message, keep, quorum)
                else:
                    position, envelope, fan = await self._keep_there(envelope, message, keep, quorum)
            except Exception as cause:
                logger.warning("the history of %s failed: %s", envelope.topic, _kind(cause))
                return PublishResult.failure("ADAPTER_ERROR", cause)
            try:
                result = await self._hub.send(envelope)
                if fan is not None and fan.must_wait:
                    await fan.wait()
            finally:
                if fan is not None:
                    fan.end()
        finally:
            self._publishing -= 1
        if fan is None:  # nobody here wants it, or something before it is missing: it goes out when that has come
            return attrs.evolve(result, position=position, written=None if quorum is None else 0)
        return attrs.evolve(fan.result(result), position=position)

    async def arrived(self, envelope: PublishEnvelope, meta: dict[str, Any], keep: History) -> None:
        """Another process has published it. Waits for nobody but subscribers whose policy is to be waited for.

        A store within this process keeps what comes from others, too: its numbers are its own.
        """
        fan: FanOut | None
        if self._immediate is not None:
            for key in POSITION_META:
                meta.pop(key, None)
            message = message_of(envelope.type, meta, envelope.payload)
            _, fan = await self._keep_here(self._immediate, envelope, message, keep, None)
        else:
            message = message_of(envelope.type, meta, envelope.payload)
            position = position_of(meta.get("epoch"), meta.get("offset"))
            if position is None or not position.offset:  # its publisher has another idea of who keeps a history
                try:
                    await self._hub.spread(envelope, message)
                finally:
                    self._go_on(envelope.topic)  # which may have waited for it
                return
            fan = await self._arrived(Arrival(position, envelope, message, None))
        if fan is not None:
            try:
                if fan.must_wait:
                    await fan.wait()
            finally:
                fan.end()

    def doubt(self) -> None:
        """Messages of other processes may have been lost on their way here.

        A store that is shared has them. One of this process has not, and nobody shall be told that it has.
        """
        if self._feeds is not None:
            self._feeds.doubt()
        elif self._immediate is not None:
            self._immediate.clear()

    async def run(self) -> None:
        """Let great fan-outs go on, and find what is missing, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._flow.nursery = nursery
            try:
                if self._feeds is not None:
                    await self._feeds.run()
                else:
                    await trio.sleep_forever()
            finally:
                self._flow.nursery = None

    async def _keep_there(
        self, envelope: PublishEnvelope, message: bytes, keep: History, quorum: Quorum | None
    ) -> tuple[Position, PublishEnvelope, FanOut | None]:
        assert self._feeds is not None
        topic = envelope.topic
        with self._feeds.publishing(topic):
            try:
                position = await self._store.append(topic, message, keep)
            except BaseException:  # it may be there all the same, and shall not be missing here
                self._feeds.doubt(topic)
                raise
            message = stamp(message, position)
            meta = {**envelope.meta, "epoch": position.epoch, "offset": position.offset}
            envelope = attrs.evolve(envelope, meta=meta, payload=Written(message, envelope.type, meta))
            return position, envelope, await self._arrived(Arrival(position, envelope, message, quorum))

    async def _arrived(self, arrival: Arrival) -> FanOut | None:
        assert self._feeds is not None
        topic = arrival.envelope.topic
        try:
            has_turn = await self._flow.enter(topic)
        except BaseException:  # it is there, and shall not be missing here
            self._feeds.doubt(topic)
            raise
        return self._flow.act(topic, partial(self._feeds.arrived, arrival), has_turn=has_turn)

    def _go_on(self, topic: str) -> None:
        if self._feeds is not None:
            self._feeds.go_on(topic)

    async def _keep_here(
        self,
        store: ImmediateHistoryStore,
        envelope: PublishEnvelope,
        message: bytes,
        keep: History,
        quorum: Quorum | None,
    ) -> tuple[Position, FanOut | None]:
        """In one step, once it is the topic's turn."""
        topic = envelope.topic
        has_turn = await self._flow.enter(topic)
        position: Position | None = None

        def send() -> FanOut:
            nonlocal position
            position = store.append_nowait(topic, message, keep)
            if self._epochs.get(topic, position.epoch) != position.epoch:
                self._epochs[topic] = position.epoch
                self.tell_all(topic, Position(position.epoch, position.offset - 1), ())
            return self.fan_out(Arrival(position, envelope, stamp(message, position), quorum), ())

        fan = self._flow.act(topic, send, has_turn=has_turn)
        assert position is not None
        return position, fan

    def fan_out(self, arrival: Arrival, skip: Collection[str]) -> FanOut:
        """See `Outlet`."""
        position, envelope, message, quorum = arrival
        topic, exclude, hub = envelope.topic, envelope.exclude, self._hub
        held = self._holds.get(topic, _NOBODY)
        recipients = None
        if held or skip:
            recipients = [who for who in hub.driver.local_subscribers(topic) if who not in held and who not in skip]
        if held:
            item = Held(position, Frame(text_frame(message), topic, position.offset), envelope, message)
            for client_id, hold in held.items():
                if client_id != exclude and client_id not in skip:  # had: not even if nothing comes of subscribing anew
                    self._hand_over(client_id, topic, hold.add(item))
        if exclude is not None and exclude not in skip:
            self.tell(exclude, topic, position)
        passes = hub.begin(envelope, message, offset=position.offset, recipients=recipients, quorum=quorum)
        return self._flow.begin(topic, passes)

    def is_busy(self, topic: str) -> bool:
        """See `Outlet`."""
        return self._flow.is_busy(topic)

    def tell(self, client_id: str, topic: str, position: Position) -> None:
        """See `Outlet`. It does not get the message that stands there, and shall not take it for lost."""
        self._give(client_id, topic, self._notice(topic, position))

    def tell_all(self, topic: str, position: Position, skip: Collection[str]) -> None:
        """See `Outlet`."""
        notice = self._notice(topic, position)
        for client_id in {*self._hub.driver.local_subscribers(topic), *self._holds.get(topic, _NOBODY)}:
            if client_id not in skip:
                self._give(client_id, topic, notice)

    def _notice(self, topic: str, position: Position) -> Held:
        notice = position_notice(topic, position, int(self._wall_clock() * 1000))
        return Held(position, Frame(text_frame(notice), topic, position.offset), None, notice)

    def _give(self, client_id: str, topic: str, notice: Held) -> None:
        self._flow.serve(client_id, topic)  # what comes before it
        hold = self._holds.get(topic, _NOBODY).get(client_id)
        if hold is not None:
            self._hand_over(client_id, topic, hold.add(notice))
        elif self._hub.has(client_id) and self.is_live(client_id, topic):
            self._hub.outbox_of(client_id).offer(notice.frame)

    def begin_after(self, topic: str, position: Position) -> None:
        """See `Outlet`."""
        for hold in self._holds.get(topic, _NOBODY).values():
            hold.newest = position

    def is_wanted(self, topic: str) -> bool:
        """See `Outlet`."""
        return len(self._hub.driver.local_subscribers(topic)) > 0 or topic in self._holds

    def is_held(self, topic: str) -> bool:
        """See `Outlet`."""
        held = self._holds.get(topic)
        if not held or any(hold.was_live for hold in held.values()):
            return False
        return all(client_id in held for client_id in self._hub.driver.local_subscribers(topic))

    def others_are_live(self, client_id: str, topic: str) -> bool:
        """See `Outlet`."""
        held = self._holds.get(topic, _NOBODY)
        for other in self._hub.driver.local_subscribers(topic):
            hold = held.get(other)
            if other != client_id and (hold is None or hold.was_live):
                return True
        return False

    async def read_after(self, topic: str, since: Position | None) -> Replay:
        """See `Outlet`."""
        keep = self.of(topic)
        assert keep is not None
        return await self._store.read(topic, keep, since, self._limit, self._limit)

    # Subscribing.

    def joined(self, client_id: str, topic: str, position: Position | None) -> None:
        """A client has got all up to this position; None where nobody knows."""
        if self._feeds is None:
            if position is not None:
                self._learn_epoch(client_id, topic, position)
        elif position is None:
            self._feeds.begin(topic)
        else:
            subscribers, held = self._hub.driver.local_subscribers(topic), self._holds.get(topic, _NOBODY)
            others = len(subscribers) - (client_id in subscribers) + len(held) - (client_id in held)
            self._feeds.joined(topic, client_id, position, alone=not others)

    def _learn_epoch(self, client_id: str, topic: str, position: Position) -> None:
        """Somebody subscribes. Where a new epoch has begun, those who were there before do not know it yet."""
        for _ in range(min(_SWEPT_PER_STEP, len(self._round))):
            name = self._round.popleft()
            if self.is_wanted(name):
                self._round.append(name)
            else:
                del self._epochs[name]
        known = self._epochs.get(topic)
        self._epochs[topic] = position.epoch
        if known is None:
            self._round.append(topic)
        elif known != position.epoch:
            self.tell_all(topic, position, (client_id,))

    def catching(
        self, client_id: str, topic: str, keep: History, since: Position | None, last: int, snapshot: Snapshot | None
    ) -> Catching:
        """What `Topics.subscribe` does around the driver's part."""
        return Catching(self, client_id, topic, keep, since, last, snapshot)

    def is_live(self, client_id: str, topic: str) -> bool:
        """True where the client gets the topic's messages already, maybe by a pattern."""
        return client_id in self._hub.driver.local_subscribers(topic)

    def hold(self, client_id: str, topic: str) -> Hold:
        """From now on keep the topic's messages from this client's outbox."""
        self._flow.serve(client_id, topic)  # what is on its way to it came before
        hold = Hold(self._limit, was_live=self.is_live(client_id, topic))
        self._holds.setdefault(topic, {})[client_id] = hold
        return hold

    def let_go(self, client_id: str, topic: str) -> None:
        """Undo `hold`."""
        held = self._holds[topic]
        del held[client_id]
        if not held:
            del self._holds[topic]

    def deliver_late(self, client_id: str, topic: str, hold: Hold) -> None:
        """Nothing came of the subscription anew; a client that was subscribed before gets what was held meanwhile."""
        self._hand_over(client_id, topic, hold.items)

    def _hand_over(self, client_id: str, topic: str, items: Collection[Held]) -> None:
        """What was held, to a client that would have got it without us."""
        if not (items and self._hub.has(client_id) and self.is_live(client_id, topic)):
            return
        for item in items:
            if item.envelope is None:
                self._hub.outbox_of(client_id).offer(item.frame)
            else:
                offset, recipients = item.position.offset, (client_id,)
                self._hub.begin(item.envelope, item.message, offset=offset, recipients=recipients).fan.end()

    async def read(
        self, topic: str, keep: History, since: Position | None, last: int, then: Callable[[Replay], Recovery]
    ) -> Recovery:
        """Read, and decide in turn; without a wait between the two where the store allows it."""
        limit = self._limit
        last = min(last, limit)
        if self._immediate is not None:
            if since is None and not last:
                return then(self._immediate.read_nowait(topic, keep))
            immediate = self._immediate
            return await self._in_turn(lambda: then(immediate.read_nowait(topic, keep, since, last, limit)))
        try:
            replay = await self._store.read(topic, keep, since, last, limit)
        except Exception as error:
            logger.warning("the history of %s cannot be read: %s", topic, _kind(error))
            return NOT_KEPT
        return await self._in_turn(lambda: then(replay))

    async def _in_turn(self, decide: Callable[[], Recovery]) -> Recovery:
        await self._decision.turn()
        try:
            return decide()
        finally:
            self._decision.next()

    async def snapshot_of(self, snapshot: Snapshot, client_id: str, topic: str) -> tuple[Frame, Position]:
        """Ask the application for all that there is."""
        client = self._client_of(client_id)
        if client is None:
            raise PubSubError("CONNECTION_CLOSED", "the client has left")
        message, position = await snapshot(client, topic)
        encoded = spec_of(type(message)).encode(message, {"timestamp": int(self._wall_clock() * 1000)})
        return Frame(text_frame(encoded)), check_since(position)

    def put(self, client_id: str, frames: list[Frame]) -> bool:
        """Give a client all these frames, or none.

        Raises:
            PubSubError: CONNECTION_CLOSED: it has left.
        """
        if not self._hub.has(client_id):
            raise PubSubError("CONNECTION_CLOSED", "the client has left")
        return self._hub.outbox_of(client_id).offer_all(frames)
