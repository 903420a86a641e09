"""What a subscriber of topics with a history may get, beside a list of what was published.

Rules that hold at every moment
- A topic's messages have one order. Who is subscribed gets them from one place on, each once, none left out.
- Who resumes and is told `recovered` goes on right after the place that it named; who is told otherwise goes on right
  after the position that it is told. Whatever is published, resumed, cancelled or forgotten at the same time, however
  late the store answers whom, and if it does not answer at all.
- Who is subscribed and subscribes again, and is not told `recovered`, goes on where it was, or after what it is told.
- Who is live without a position (by a pattern, or because the store did not answer) begins no later than with the
  first message that was published after that and has come.
- A message whose publisher was cancelled, and which the store has no more when it is read, is left out.
- Where the store has lost all, who is subscribed goes on with the new epoch, or is told where that stands.
- Where nothing else goes on, it is recovered exactly when the model has all of it.
- In the end nothing is held for anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import trio

from tests.pubsub.drivers import SlowStore
from tests.sessions import Client
from trio_wskit._core.frames import payload_of
from trio_wskit._core.history import History, Position, Recovery, Replay
from trio_wskit.pubsub import MemoryHistory

__all__ = ["Log", "Subscriber", "watch"]


class Log:
    """What was published to one topic, in its order; and what is kept of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.all: list[tuple[Position, str]] = []
        self.arrived: list[Position] = []  # that their publishers know, in that order
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

    def first_to_come(self, start: int) -> int | None:
        """Of the messages from a place on, where the one stands that came first; None where none has."""
        there = {position: at for at, (position, _) in enumerate(self.all) if at >= start}
        return next((there[one] for one in self.arrived if one in there), None)

    def next_from(self, at: int, until: int, start: int) -> int:
        """The next message that must come, before one that has come, to one who is live since a place."""
        gone = max(start, len(self.all) - self.size)
        while at < min(until, gone) and self.all[at][0] not in self.arrived:
            at += 1
        return at

    def is_one_epoch(self, start: int) -> bool:
        return len({position.epoch for position, _ in self.all[start:]}) < 2


class Said:
    """A message that came."""

    def __init__(self, position: Position, text: str) -> None:
        self.position = position
        self.text = text


class Told:
    """A notice that came."""

    def __init__(self, position: Position) -> None:
        self.position = position


class Decided:
    """Here it was decided what comes of a subscription."""

    def __init__(self, since: Position | None, was_live: bool) -> None:
        self.since = since
        self.was_live = was_live
        self.recovery: Recovery | None = None


class Live:
    """From here on it gets messages, and nobody told it a position."""

    def __init__(self, start: int) -> None:
        self.start = start


class Gone:
    """From here on it gets nothing."""


class Place:
    """Where one stands in a topic.

    Attributes:
        at: the next message; None where nobody knows.
        start: of one who came without a position: what was published before this may come, and need not.
        told: places where it may also go on, for it was told so.
    """

    def __init__(self, at: int | None, start: int = 0) -> None:
        self.at = at
        self.start = start
        self.told: set[int] = set()


class Subscriber:
    """A client, and what it got, in the order of the wire."""

    def __init__(self, client: Client, logs: dict[str, Log]) -> None:
        self.client = client
        self.logs = logs
        self.events: list[tuple[str, Said | Told | Decided | Live | Gone]] = []
        self.places: dict[str, Place] = {}
        transport: Any = client.transport
        write = transport.write_nowait

        def write_nowait(frames: Sequence[bytes]) -> Sequence[bytes]:
            left: Sequence[bytes] = write(frames)
            assert not left, "it did not read"
            for frame in frames:
                self._came(json.loads(payload_of(frame)))
            return left

        transport.write_nowait = write_nowait

    def _came(self, one: dict[str, Any]) -> None:
        position = Position(one["meta"]["epoch"], one["meta"]["offset"])
        if one["type"] == "$ws:position":
            self.events.append((one["payload"]["topic"], Told(position)))
        else:
            topic, _, text = one["payload"]["text"].partition(" ")
            self.events.append((topic, Said(position, text)))

    def _add(self, topic: str, event: Decided | Live | Gone) -> None:
        self.client.session.outbox.flush()  # what comes before it
        self.events.append((topic, event))

    def decides(self, topic: str, since: Position | None, was_live: bool) -> Decided:
        event = Decided(since, was_live)
        self._add(topic, event)
        return event

    def is_live(self, topic: str) -> None:
        self._add(topic, Live(len(self.logs[topic].all)))

    def is_gone(self, topic: str) -> None:
        self._add(topic, Gone())

    def check(self) -> None:
        """All that came was to come, and nothing is left out."""
        for topic, event in self.events:
            self._follow(topic, event)
        self.events.clear()
        for topic, place in self.places.items():
            log = self.logs[topic]
            if place.at is None:
                first = log.first_to_come(place.start)
                if log.is_one_epoch(place.start) and not place.told:
                    assert first is None, f"{log.all[first:]} did not come to who has no position"
            elif place.start >= len(log.all):
                pass  # it began with what came late, and was published before it was live, as all that is between
            elif log.next_from(place.at, len(log.all), place.start) != len(log.all) and len(log.all) not in place.told:
                raise AssertionError(f"{log.all[place.at :]} did not come")

    def _follow(self, topic: str, event: Said | Told | Decided | Live | Gone) -> None:
        log = self.logs[topic]
        match event:
            case Gone():
                self.places.pop(topic, None)
            case Live(start=start):
                self.places.setdefault(topic, Place(None, start))
            case Told(position=position):
                told = self.places[topic].told if topic in self.places else set[int]()
                self.places[topic] = Place(log.after(position))
                self.places[topic].told = told  # it may have been held, and be older than what was told
            case Decided(recovery=None):
                pass  # it raised
            case Decided(recovery=recovery):
                assert recovery is not None
                assert recovery.position is not None
                if recovery.recovered:
                    assert event.since is not None
                    self.places[topic] = Place(log.after(event.since))
                elif event.was_live and topic in self.places:
                    self.places[topic].told.add(log.after(recovery.position))
                else:
                    self.places[topic] = Place(log.after(recovery.position))
            case Said(position=position, text=text):
                assert (position, text) in log.all, f"{position} came, and was not published"
                self._said(log, self.places[topic], log.all.index((position, text)))

    @staticmethod
    def _said(log: Log, place: Place, index: int) -> None:
        if place.at is None:
            first = log.first_to_come(place.start)
            late = index > len(log.all) if first is None else index > first
            if late and log.is_one_epoch(place.start):
                assert index in place.told, f"{log.all[index]} came, and one that came here before did not"
        elif index not in (place.at, log.next_from(place.at, index, place.start)) and index not in place.told:
            raise AssertionError(f"{log.all[index]} came, and {log.all[place.at :][:1]} is the next")
        place.at = index + 1
        place.told = {told for told in place.told if told > place.at}


def watch(store: MemoryHistory | SlowStore, logs: dict[str, Log], positions: dict[str, list[Position]]) -> None:
    """Write down what the store keeps, when it is known here, and when an epoch begins."""
    inner: Any = store.inner if isinstance(store, SlowStore) else store
    append, read, append_slowly = inner.append_nowait, inner.read_nowait, store.append

    def append_nowait(topic: str, message: bytes, keep: History) -> Position:
        position: Position = append(topic, message, keep)
        text = json.loads(message)["payload"]["text"].partition(" ")[2]
        logs[topic].add(position, text, keep.ttl)
        positions[topic].append(position)
        if not isinstance(store, SlowStore):
            logs[topic].arrived.append(position)
        return position

    def read_nowait(topic: str, *args: Any) -> Replay:
        replay: Replay = read(topic, *args)
        logs[topic].begun.setdefault(replay.position.epoch, len(logs[topic].all))
        return replay

    async def append_and_know(topic: str, message: bytes, keep: History) -> Position:
        position = await append_slowly(topic, message, keep)
        logs[topic].arrived.append(position)
        return position

    inner.append_nowait = append_nowait
    inner.read_nowait = read_nowait
    if isinstance(store, SlowStore):
        store.append = append_and_know  # type: ignore[method-assign]
