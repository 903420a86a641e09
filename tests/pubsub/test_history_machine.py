"""Histories driven at random in virtual time, beside a model that is a list.

Rules that hold at every moment
- A topic's messages have one order. Who is subscribed gets them from one place on, each once, none left out.
- Who resumes and is told `recovered` goes on right after the place that it named; who is told otherwise goes on right
  after the position that it is told. Whatever is published, resumed or forgotten at the same time, and however late
  the store answers whom.
- Where the store has lost all, who is subscribed goes on with the new epoch, or is told where that stands.
- Where nothing else goes on, it is recovered exactly when the model has all of it.
- In the end nothing is held for anybody.
"""

from __future__ import annotations

import json
import math
from typing import Any

import trio
import trio.lowlevel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.client.guest import GuestRun
from tests.pubsub.drivers import ScriptedDriver, SlowStore
from tests.sessions import Client, House, Said, open_house
from trio_wskit import Limits
from trio_wskit._core.history import History, Position, Recovery, Replay
from trio_wskit.pubsub import MemoryHistory

TOPICS = ("a", "b")
KEEP = {"a": History(size=4, ttl=10, keep_position=50), "b": History(size=50, ttl=100)}
SECONDS = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
LATE = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])


class Log:
    """What was published to one topic, in its order; and what is kept of it."""

    def __init__(self) -> None:
        self.all: list[tuple[Position, str]] = []
        self.kept_until = -math.inf
        self.kept_from = 0
        self.begun: dict[str, int] = {}  # where each epoch begins

    def add(self, position: Position, text: str, ttl: float) -> None:
        now = trio.current_time()
        if now >= self.kept_until:
            self.kept_from = len(self.all)
        self.kept_until = now + ttl
        self.begun.setdefault(position.epoch, len(self.all))
        self.all.append((position, text))

    def after(self, start: Position) -> int:
        """Where in `all` the first message after a position stands, or will stand."""
        places = [at for at, (one, _) in enumerate(self.all) if one.epoch == start.epoch]
        later = [at for at in places if self.all[at][0].offset > start.offset]
        return later[0] if later else places[-1] + 1 if places else self.begun[start.epoch]


class Subscriber:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[tuple[str, Position, str | None]] = []  # what came; None: it goes on after that position
        self.at: dict[str, int] = {}  # in each topic's log, the place of the next message


class HistoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = GuestRun()
        self.house: House
        self.store: MemoryHistory | SlowStore
        self.driver = ScriptedDriver()
        self.logs = {topic: Log() for topic in TOPICS}
        self.positions: dict[str, list[Position]] = {topic: [] for topic in TOPICS}
        self.subscribers: list[Subscriber] = []
        self.count = 0
        self.waited = 0.0
        self.leave = trio.Event()
        self.ended = trio.Event()
        self.failed: BaseException | None = None

    @initialize(slow=st.booleans(), room=st.sampled_from([6, 1024]))
    def begin(self, slow: bool, room: int) -> None:
        async def start() -> None:
            opened = trio.Event()
            self.store = SlowStore() if slow else MemoryHistory()
            self._watch(self.store.inner if isinstance(self.store, SlowStore) else self.store)

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
                            self.subscribers.append(Subscriber(await self.house.connect()))
                        opened.set()
                        await self.leave.wait()
                except BaseException as error:
                    self.failed = error
                self.ended.set()

            trio.lowlevel.spawn_system_task(live)
            await opened.wait()

        self.room = room
        self.run.do(start)

    # What happens.

    async def _publish(self, topic: str) -> None:
        self.count += 1
        text = str(self.count)
        result = await self.house.app.publish(topic, Said(f"{topic} {text}"))
        assert result.ok, result

    def _watch(self, inner: Any) -> None:
        """Write down what the store keeps, and when an epoch begins."""
        append, read = inner.append_nowait, inner.read_nowait

        def append_nowait(topic: str, message: bytes, keep: History) -> Position:
            position: Position = append(topic, message, keep)
            text = json.loads(message)["payload"]["text"].partition(" ")[2]
            self.logs[topic].add(position, text, keep.ttl)
            self.positions[topic].append(position)
            return position

        def read_nowait(topic: str, *args: Any) -> Replay:
            replay: Replay = read(topic, *args)
            self.logs[topic].begun.setdefault(replay.position.epoch, len(self.logs[topic].all))
            return replay

        inner.append_nowait = append_nowait
        inner.read_nowait = read_nowait

    async def _resume(self, subscriber: Subscriber, topic: str, since: Position | None) -> Recovery:
        recovery = await subscriber.client.session.topics.subscribe(topic, since=since)
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
        subscriber.events.append((topic, start, None))
        self.positions[topic].append(position)
        return recovery

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
        async def connect() -> None:
            self.subscribers.append(Subscriber(await self.house.connect()))

        self.run.do(connect)

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
        """All at the same time: some resume, twice even, some publish, and the store forgets."""
        loses_after = data.draw(st.sampled_from([None, None, None, 0.5, 1.0]), "loses")
        if isinstance(self.store, SlowStore):
            self.store.before_read = data.draw(SECONDS, "before_read")
            self.store.after_read = data.draw(LATE, "after_read")
            if loses_after is None:
                self.store.append_delays = data.draw(st.lists(st.tuples(SECONDS, SECONDS), max_size=8), "appends")
        self.driver.pause = data.draw(SECONDS, "pause")
        resumes = [
            (subscriber, self.since(data, topic), data.draw(SECONDS, "wait"))
            for subscriber in self.subscribers
            for _ in range(data.draw(st.sampled_from([0, 1, 1, 2]), "resumes"))
        ]
        publishes = data.draw(st.lists(SECONDS, min_size=2, max_size=8), "publishes")

        async def resume(subscriber: Subscriber, since: Position | None, wait: float) -> None:
            await trio.sleep(wait)
            await subscriber.client.session.topics.unsubscribe(topic)
            await self._collect(subscriber)
            await self._resume(subscriber, topic, since)
            await self._collect(subscriber)

        async def publish(wait: float) -> None:
            await trio.sleep(wait)
            await self._publish(topic)

        async def lose(wait: float) -> None:
            await trio.sleep(wait)
            self._clear()

        async def all_of_it() -> None:
            async with trio.open_nursery() as nursery:
                by_client: dict[int, list[Any]] = {}
                for one in resumes:
                    by_client.setdefault(id(one[0]), []).append(one)

                async def in_turn(some: list[Any]) -> None:
                    for subscriber, since, wait in some:
                        await resume(subscriber, since, wait)

                for some in by_client.values():
                    nursery.start_soon(in_turn, some)
                for wait in publishes:
                    nursery.start_soon(publish, wait)
                if loses_after is not None:
                    nursery.start_soon(lose, loses_after)

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
            self.run.sleep(8)  # readings that are under way, and what they find missing
        self.driver.pause = 0.0
        self.hear()

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

    async def _collect(self, subscriber: Subscriber) -> None:
        for one in await subscriber.client.heard():
            position = Position(one["meta"]["epoch"], one["meta"]["offset"])
            if one["type"] == "$ws:position":
                topic = one["payload"]["topic"]
                subscriber.events.append((topic, position, None))
            else:
                topic, _, text = one["payload"]["text"].partition(" ")
                subscriber.events.append((topic, position, text))

    def hear(self) -> None:
        if isinstance(self.store, SlowStore):
            self.run.sleep(1)  # what is missing is looked for

        async def hear() -> None:
            for subscriber in self.subscribers:
                await self._collect(subscriber)

        self.run.do(hear)
        for subscriber in self.subscribers:
            for topic, position, what in subscriber.events:
                log = self.logs[topic]
                if what is None:
                    subscriber.at[topic] = log.after(position)
                    continue
                at = subscriber.at[topic]
                assert at < len(log.all), f"{position} came, and was not published"
                assert log.all[at] == (position, what), f"{position} came, and {log.all[at]} is the next"
                subscriber.at[topic] = at + 1
            subscriber.events.clear()
            for topic, at in subscriber.at.items():
                left = self.logs[topic].all[at:]
                assert not left, f"{left} did not come"

    def teardown(self) -> None:
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
