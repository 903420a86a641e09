"""Histories driven at random in virtual time, beside a list; see `history_model` for what must be so."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import trio
import trio.lowlevel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.client.guest import GuestRun
from tests.pubsub.drivers import ScriptedDriver, SlowStore
from tests.pubsub.history_model import Log, Subscriber, watch
from tests.sessions import House, Said, open_house
from trio_wskit import Limits, TopicPattern
from trio_wskit._core.history import NOT_KEPT, History, Position, Recovery, Replay
from trio_wskit.pubsub import MemoryHistory, _passes
from trio_wskit.pubsub._catching import Catching

TOPICS = ("a", "b")
ALL = TopicPattern("*")
KEEP = {"a": History(size=4, ttl=10, keep_position=50), "b": History(size=50, ttl=100)}
SECONDS = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
LATE = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
CANCELLED = st.sampled_from([None, None, None, 0.0, 0.2, 0.6, 1.5, 3.0])

catching: Any = Catching
choose, leave = catching._choose, catching.__exit__
passes: Any = _passes
PASS = passes._DELIVERIES_PER_PASS


class HistoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = GuestRun()
        self.house: House
        self.store: MemoryHistory | SlowStore
        self.driver = ScriptedDriver()
        self.logs = {topic: Log(KEEP[topic].size) for topic in TOPICS}
        self.positions: dict[str, list[Position]] = {topic: [] for topic in TOPICS}
        self.subscribers: list[Subscriber] = []
        self.count = 0
        self.waited = 0.0
        self.leave = trio.Event()
        self.ended = trio.Event()
        self.failed: BaseException | None = None

    @initialize(slow=st.booleans(), room=st.sampled_from([6, 1024]), in_passes=st.booleans())
    def begin(self, slow: bool, room: int, in_passes: bool) -> None:
        async def start() -> None:
            opened = trio.Event()
            self.store = SlowStore() if slow else MemoryHistory()
            watch(self.store, self.logs, self.positions)

            async def live() -> None:
                limits = Limits(ping_interval=math.inf, outbox_messages=room)
                try:
                    async with open_house(
                        history=KEEP,
                        history_store=self.store,
                        limits=limits,
                        pubsub=self.driver,
                        overflow="drop_newest",
                    ) as self.house:
                        for _ in range(3):
                            await self._connect()
                        opened.set()
                        await self.leave.wait()
                except BaseException as error:
                    self.failed = error
                self.ended.set()

            trio.lowlevel.spawn_system_task(live)
            await opened.wait()

        self.room = room
        passes._DELIVERIES_PER_PASS = 1 if in_passes else PASS
        self._watch_decisions()
        self.run.do(start)

    def _watch_decisions(self) -> None:
        """Write down where in a client's stream it is decided what it gets, or that nobody knows."""

        def subscriber_of(one: Any) -> Subscriber:
            return next(other for other in self.subscribers if other.client.client_id == one._client_id)

        def watched(one: Any, replay: Replay, first: Any, since: Position | None) -> Any:
            event = subscriber_of(one).decides(one._topic, since, one._hold.was_live)
            event.recovery, reached = choose(one, replay, first, since)
            return event.recovery, reached

        def watched_leave(one: Any, *error: Any) -> None:
            subscriber = subscriber_of(one)
            if one._reached is None:
                self._look(subscriber, one._topic, one._hold.was_live)
            leave(one, *error)

        catching._choose, catching.__exit__ = watched, watched_leave

    # What happens.

    async def _connect(self) -> None:
        self.subscribers.append(Subscriber(await self.house.connect(), self.logs))

    async def _publish(self, topic: str) -> None:
        self.count += 1
        text = str(self.count)
        result = await self.house.app.publish(topic, Said(f"{topic} {text}"))
        assert result.ok, result

    async def _resume(
        self, subscriber: Subscriber, topic: str, since: Position | None, cancelled: float | None = None
    ) -> Recovery | None:
        topics = subscriber.client.session.topics
        recovery: Recovery | None = None
        with trio.move_on_after(math.inf if cancelled is None else cancelled):
            recovery = await topics.subscribe(topic, since=since)
        if recovery is None:
            return None
        if recovery is NOT_KEPT:
            assert isinstance(self.store, SlowStore)
            return recovery
        position = recovery.position
        assert position is not None
        if recovery.recovered:
            assert since is not None
            assert recovery.replayed == position.offset - since.offset
            assert position.epoch == since.epoch
            start = since
        else:
            assert recovery.replayed == 0
            start = position
        assert recovery.start == start
        self.positions[topic].append(position)
        return recovery

    def _is_live(self, subscriber: Subscriber, topic: str) -> bool:
        return subscriber.client.client_id in self.driver.local_subscribers(topic)

    def _look(self, subscriber: Subscriber, topic: str, before: bool) -> None:
        """Something was done about a subscription that tells of no position."""
        now = self._is_live(subscriber, topic)
        if now and not before:
            subscriber.is_live(topic)
        elif before and not now:
            subscriber.is_gone(topic)

    async def _unsubscribe(self, subscriber: Subscriber, topic: str) -> None:
        names = TOPICS if topic == ALL else (topic,)
        before = [self._is_live(subscriber, name) for name in names]
        await subscriber.client.session.topics.unsubscribe(topic)
        for name, was in zip(names, before, strict=True):
            self._look(subscriber, name, was)

    @rule(topic=st.sampled_from(TOPICS), count=st.integers(1, 6))
    def publish(self, topic: str, count: int) -> None:
        async def publish() -> None:
            for _ in range(count):
                await self._publish(topic)
                await trio.lowlevel.checkpoint()  # an outbox is flushed

        self.run.do(publish)
        self.hear()

    @precondition(lambda self: len(self.subscribers) < 4)
    @rule()
    def connect(self) -> None:
        self.run.do(self._connect)

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data())
    def follow_all_or_not(self, data: st.DataObject) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers), "who")
        self.run.do(partial(self._follow_all_or_not, subscriber))
        self.hear()

    async def _follow_all_or_not(self, subscriber: Subscriber) -> None:
        topics = subscriber.client.session.topics
        if ALL in topics:
            await self._unsubscribe(subscriber, ALL)
            return
        before = [self._is_live(subscriber, topic) for topic in TOPICS]
        await topics.subscribe(ALL)
        for topic, was in zip(TOPICS, before, strict=True):
            self._look(subscriber, topic, was)

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data(), topic=st.sampled_from(TOPICS))
    def unsubscribe(self, data: st.DataObject, topic: str) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers), "who")
        self.run.do(partial(self._unsubscribe, subscriber, topic))
        self.hear()

    def since(self, data: st.DataObject, topic: str) -> Position | None:
        known = self.positions[topic]
        if not known:
            return None
        position = data.draw(st.sampled_from(known[-3:]), "position")
        match data.draw(st.sampled_from(["it", "it", "it", "it", "before", "future", "epoch", "none"]), "which"):
            case "before":
                return Position(position.epoch, max(0, position.offset - 3))
            case "future":
                return Position(position.epoch, position.offset + 100)
            case "epoch":
                return Position("nobody's", position.offset)
            case "none":
                return None
            case _:
                return position

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data(), topic=st.sampled_from(TOPICS))
    def resume(self, data: st.DataObject, topic: str) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers), "who")
        since = self.since(data, topic)

        async def resume() -> None:
            log = self.logs[topic]
            recovery = await self._resume(subscriber, topic, since)
            assert recovery is not None
            position = recovery.position
            assert position is not None
            kept = [one for one, _ in log.all[max(log.kept_from, len(log.all) - KEEP[topic].size) :]]
            if trio.current_time() >= log.kept_until:
                kept.clear()
            missed = -1 if since is None or since.epoch != position.epoch else position.offset - since.offset
            expected = 0 <= missed <= min(sum(one.epoch == position.epoch for one in kept), self.room)
            assert recovery.recovered == expected, (since, recovery, kept)

        self.run.do(resume)
        self.hear()

    @precondition(lambda self: len(self.subscribers) > 1)
    @rule(data=st.data(), topic=st.sampled_from(TOPICS))
    def resume_while_others_publish(self, data: st.DataObject, topic: str) -> None:
        """All at the same time: some resume, twice even, some are cancelled, some publish, and the store forgets."""
        jobs: list[tuple[float, Callable[[], Any]]] = []
        loses_after = data.draw(st.sampled_from([None, None, None, 0.5, 1.0]), "loses")
        if loses_after is not None:
            jobs.append((loses_after, self._clear_soon))
        if isinstance(self.store, SlowStore):
            fails = data.draw(st.sampled_from([None, None, (0.0, 0.5), (0.5, 1.0), (1.0, 2.0)]), "fails")
            self.store.before_read = data.draw(SECONDS, "before_read")
            self.store.after_read = data.draw(LATE, "after_read")
            if loses_after is None:
                self.store.append_delays = data.draw(st.lists(st.tuples(SECONDS, SECONDS), max_size=8), "appends")
            if fails is None:
                self.store.read_delays = data.draw(st.lists(st.tuples(SECONDS, LATE), max_size=6), "readings")
            else:
                self.store.before_read = min(0.5, self.store.before_read)
                self.store.after_read = min(0.5, self.store.after_read)
                jobs += [(fails[0], partial(self._fail, True)), (fails[1], partial(self._fail, False))]
        self.driver.pause = data.draw(SECONDS, "pause")
        by_client: list[list[Any]] = []
        for subscriber in self.subscribers:
            some: list[Any] = []
            for _ in range(data.draw(st.sampled_from([0, 1, 2, 3]), "resumes")):
                what = data.draw(st.sampled_from(["anew", "again", "again", "pattern"]), "how")
                since, cancelled = (
                    (None, None) if what == "pattern" else (self.since(data, topic), data.draw(CANCELLED))
                )
                some.append((subscriber, what, data.draw(SECONDS, "wait"), since, cancelled))
            by_client.append(some)
        for wait in data.draw(st.lists(SECONDS, min_size=2, max_size=8), "publishes"):
            cancelled = data.draw(CANCELLED, "publisher cancelled") if isinstance(self.store, SlowStore) else None
            jobs.append((wait, partial(self._publish_or_not, topic, cancelled)))

        async def in_turn(some: list[Any]) -> None:
            for subscriber, what, wait, since, cancelled in some:
                await trio.sleep(wait)
                if what == "pattern":
                    await self._follow_all_or_not(subscriber)
                    continue
                if what == "anew":
                    await self._unsubscribe(subscriber, topic)
                await self._resume(subscriber, topic, since, cancelled)

        async def later(wait: float, job: Callable[[], Any]) -> None:
            await trio.sleep(wait)
            await job()

        async def all_of_it() -> None:
            async with trio.open_nursery() as nursery:
                for some in by_client:
                    nursery.start_soon(in_turn, some)
                for wait, job in jobs:
                    nursery.start_soon(later, wait, job)

        finished: list[bool] = []

        async def begin() -> None:
            async def run() -> None:
                try:
                    await all_of_it()
                except BaseException as error:
                    self.failed = error
                finished.append(True)

            trio.lowlevel.spawn_system_task(run)

        self.run.do(begin)
        for _ in range(30):
            if not finished:
                self.run.sleep(1)
        assert finished, "it hangs"
        assert self.failed is None, repr(self.failed)
        if isinstance(self.store, SlowStore):
            self.store.before_read = self.store.after_read = 0.0
            self.store.append_delays.clear()
            self.store.read_delays.clear()
            self.run.sleep(8)  # readings that are under way, and what they find missing
        self.driver.pause = 0.0
        assert {line.partition(":")[0].partition(" ")[0] for line in self.house.logged()} <= {"the"}
        self.hear()

    async def _publish_or_not(self, topic: str, cancelled: float | None) -> None:
        with trio.move_on_after(math.inf if cancelled is None else cancelled):
            await self._publish(topic)

    async def _fail(self, fails: bool) -> None:
        assert isinstance(self.store, SlowStore)
        self.store.read_error = OSError("gone") if fails else None

    async def _clear_soon(self) -> None:
        self._clear()

    def _clear(self) -> None:
        inner = self.store.inner if isinstance(self.store, SlowStore) else self.store
        inner.clear()

    @rule()
    def lose_the_store(self) -> None:
        self._clear()

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers), "who")
        self.subscribers.remove(subscriber)
        self.run.do(subscriber.client.leave)

    @precondition(lambda self: self.waited < 200)
    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0, 60.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.waited += seconds  # a house has no more than 1,000 seconds
        self.run.sleep(seconds)

    # What must be so.

    def hear(self) -> None:
        if isinstance(self.store, SlowStore):
            self.run.sleep(1)  # what is missing is looked for

        async def hear() -> None:
            for subscriber in self.subscribers:
                await subscriber.client.heard()

        self.run.do(hear)
        for subscriber in self.subscribers:
            subscriber.check()

    def teardown(self) -> None:
        catching._choose, catching.__exit__ = choose, leave
        passes._DELIVERIES_PER_PASS = PASS
        if not hasattr(self, "house"):
            return
        try:
            desk: Any = self.house.app._desk  # pyright: ignore[reportPrivateUsage]
            assert desk.histories._holds == {}
        finally:
            self._end()
        assert self.failed is None, repr(self.failed)

    def _end(self) -> None:
        """Whatever was under way when a check failed: nothing here may wait for a time that does not pass."""

        async def leave() -> None:
            self.driver.pause = 0.0
            self.leave.set()

        self.run.do(leave)
        for _ in range(10):
            if not self.ended.is_set():
                self.run.sleep(60)
        self.run.close()


TestHistory = HistoryMachine.TestCase
TestHistory.settings = settings(max_examples=25, stateful_step_count=20)
