"""An outbox with policies, beside a model that is a list."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast, final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_wskit import ByteBudget, Limits
from trio_wskit._core.backlog import Frame, GapNotice, Published, WriteGap
from trio_wskit._core.frames import payload_of, text_frame
from trio_wskit._core.overflow import conflate
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Outbox
from trio_wskit._queue import Waiter
from trio_wskit.abc import Transport
from trio_wskit.errors import ConnectionClosed

TOPICS = ("a", "b")
MESSAGES = 5
BY_KEY = conflate(lambda m: m.payload["key"])


@final
class Late(Waiter):
    """Waits for room."""

    __slots__ = ("log",)

    def __init__(self, frame: Frame, log: list[Frame]) -> None:
        super().__init__(frame)
        self.log = log

    def accepted(self) -> None:
        self.log.append(self.frame)

    def refused(self, closed: ConnectionClosed) -> None:
        raise AssertionError("it is never closed")


@final
class OutboxMachine(RuleBasedStateMachine):
    """Each message has a number of its own, that rises. What becomes of each is noted.

    The peer never reads by itself: `read` has the system take the frames at the front, as a writer would.
    """

    def __init__(self) -> None:
        super().__init__()
        self.budget = ByteBudget(10**9)
        self.outbox = Outbox(
            cast("Transport", self), Limits(outbox_messages=MESSAGES), Flusher(), lambda: True, lambda _: None
        )
        self.outbox.account_to(self.budget, cast("Any", None))
        self.outbox._writing = True  # the system takes nothing
        self.next = 0
        self.positions: dict[str, int] = dict.fromkeys(TOPICS, 0)
        self.model: list[Frame] = []  # accepted and not written, in order
        self.waiting: list[Late] = []
        self.let_in: list[Frame] = []  # of those who waited
        self.written: list[Frame] = []
        self.dropped: list[Published] = []
        self.conflated: list[Published] = []
        self.wants: set[str] = set()

    # What the machine does.

    def write_gap(self, topic: str, first: int | None, last: int | None) -> bytes:
        return text_frame(json.dumps({"gap": topic, "from": first, "to": last}).encode())

    def gap_writer(self, topic: str) -> WriteGap | None:
        return self.write_gap

    def message(self, topic: str, key: int) -> Published:
        self.next += 1
        self.positions[topic] += 1
        body = {"type": "M", "payload": {"key": key, "n": self.next}}
        return Published(text_frame(json.dumps(body).encode()), topic, self.positions[topic])

    def stands_in_line(self, topic: str) -> bool:
        """Whether a message of the topic waits for room, or a notice of one that did: nothing may go before that."""
        line = [waiter.frame for waiter in self.outbox._waiting or ()]
        return any(topic in (frame.topic, frame.about if isinstance(frame, GapNotice) else None) for frame in line)

    def note_waiters(self) -> None:
        """Those who were let in meanwhile."""
        self.model += self.let_in
        self.waiting = [late for late in self.waiting if late.frame not in self.let_in]
        self.let_in.clear()

    @rule()
    def reply(self) -> None:
        self.next += 1
        frame = Frame(text_frame(json.dumps({"type": "R", "n": self.next}).encode()))
        if self.outbox.offer(frame):
            self.model.append(frame)

    @rule(topic=st.sampled_from(TOPICS), key=st.integers(0, 2))
    def drop_newest(self, topic: str, key: int) -> None:
        frame = self.message(topic, key)
        if self.outbox.offer(frame):
            self.model.append(frame)
        else:
            self.dropped.append(frame)
            self.outbox.miss(topic, frame.offset, frame.offset, self.write_gap)

    @rule(topic=st.sampled_from(TOPICS), key=st.integers(0, 2))
    def drop_oldest(self, topic: str, key: int) -> None:
        frame = self.message(topic, key)
        if self.outbox.offer(frame):
            self.model.append(frame)
            return
        droppable = [one for one in self.model if isinstance(one, Published)]
        before = self.outbox.dropped
        if self.outbox.offer_instead(frame, self.gap_writer):
            gone = droppable[: self.outbox.dropped - before]
            assert len(gone) == 1
            self.dropped += gone
            self.model = [one for one in self.model if one not in gone]
            self.model.append(frame)
            self.note_waiters()
        else:
            assert not droppable or self.stands_in_line(topic)
            self.dropped.append(frame)
            self.outbox.miss(topic, frame.offset, frame.offset, self.write_gap)

    @rule(topic=st.sampled_from(TOPICS), key=st.integers(0, 2))
    def conflate(self, topic: str, key: int) -> None:
        frame = self.message(topic, key)
        older = [
            one
            for one in self.model
            if isinstance(one, Published) and one.topic == topic and one.key(BY_KEY) == frame.key(BY_KEY)
        ]
        if self.stands_in_line(topic):
            older = []
        assert self.outbox.conflate(frame, BY_KEY) == len(older)
        self.conflated += older
        self.model = [one for one in self.model if one not in older]
        if self.outbox.offer_behind(frame):
            self.model.append(frame)
        elif self.outbox.offer_instead(frame, self.gap_writer):
            if len(self.model) - len([one for one in self.model if one in self.outbox._frames]):
                (gone,) = [one for one in self.model if one not in self.outbox._frames]
                assert isinstance(gone, Published)
                self.dropped.append(gone)
                self.model.remove(gone)
            self.model.append(frame)
            self.note_waiters()
        else:
            self.dropped.append(frame)
            self.outbox.miss(topic, frame.offset, frame.offset, self.write_gap)

    @precondition(lambda self: len(self.waiting) < 4)
    @rule(topic=st.sampled_from((*TOPICS, None)), key=st.integers(0, 2))
    def wait(self, topic: str | None, key: int) -> None:
        frame = Frame(text_frame(b"{}")) if topic is None else self.message(topic, key)
        if self.outbox.offer(frame):
            self.model.append(frame)
        else:
            late = Late(frame, self.let_in)
            self.waiting.append(late)
            self.outbox.wait_for_room(late)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        late = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(late)
        if isinstance(late.frame, Published):
            self.dropped.append(late.frame)
            self.outbox.give_up(late, self.write_gap)
        else:
            self.outbox.give_up(late)
        self.note_waiters()

    @rule(topic=st.sampled_from(TOPICS))
    def announce(self, topic: str) -> None:
        self.positions[topic] += 3
        self.outbox.miss(topic, self.positions[topic] - 2, self.positions[topic], self.write_gap)

    @rule(count=st.integers(1, 4))
    def read(self, count: int) -> None:
        """The system takes so many frames."""
        batch = self.outbox._frames[:count]
        del self.outbox._frames[:count]
        self.outbox._bytes -= sum(len(frame.wire) for frame in batch)
        self.outbox._notices -= sum(isinstance(frame, GapNotice) for frame in batch)
        self.written += batch
        self.model = [frame for frame in self.model if frame not in batch]
        self.outbox._admit()
        self.note_waiters()

    # What is always so.

    @invariant()
    def the_queue_is_the_models_with_notices_in_between(self) -> None:
        assert [one for one in self.outbox._frames if not isinstance(one, GapNotice)] == self.model

    @invariant()
    def the_counts_are_right(self) -> None:
        outbox = self.outbox
        assert outbox.queued_bytes == sum(len(frame.wire) for frame in outbox._frames)
        assert outbox._notices == sum(isinstance(frame, GapNotice) for frame in outbox._frames)
        assert outbox.charged in (0, outbox.queued_bytes)
        assert self.budget.used == outbox.charged
        assert outbox.conflated == len(self.conflated)
        assert len(self.model) <= MESSAGES

    @invariant()
    def there_are_no_more_notices_than_messages_and_topics(self) -> None:
        tails: dict[str, bool] = {}
        for frame in self.outbox._frames:
            if isinstance(frame, GapNotice):
                assert not tails.get(frame.about), "two notices with no message between"
                tails[frame.about] = True
            elif frame.topic is not None:
                tails[frame.topic] = False

    @invariant()
    def nothing_is_reordered_and_what_is_missing_is_told_in_its_place(self) -> None:
        stream = [*self.written, *self.outbox._frames]
        numbers = [body.get("n") or body["payload"]["n"] for body in map(_body, stream) if body.get("type") == "R"]
        assert numbers == sorted(numbers), "replies stand in the order in which they were accepted"
        lost = {(frame.topic, frame.offset) for frame in self.dropped}
        told: set[tuple[str, int]] = set()
        for topic in TOPICS:
            last = 0
            for frame in stream:
                if isinstance(frame, GapNotice) and frame.about == topic:
                    assert frame.first is not None
                    assert frame.last is not None
                    assert last < frame.first <= frame.last
                    told |= {(topic, n) for n in range(frame.first, frame.last + 1)}
                    last = frame.last
                elif isinstance(frame, Published) and frame.topic == topic:
                    assert frame.offset is not None
                    assert frame.offset > last
                    assert (topic, frame.offset) not in told
                    last = frame.offset
        in_line = {
            (waiter.frame.about, n)
            for waiter in self.outbox._waiting or ()
            if isinstance(waiter.frame, GapNotice) and waiter.frame.first is not None and waiter.frame.last is not None
            for n in range(waiter.frame.first, waiter.frame.last + 1)
        }
        assert lost <= told | in_line

    def teardown(self) -> None:
        """Read everything: then all is accounted for."""
        while self.outbox._frames or self.outbox._waiting:
            self.read(4)
        assert self.outbox.queued_bytes == 0

    # A transport's.

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        return frames


def _body(frame: Frame) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(payload_of(frame.wire))
    return body


TestOutboxWithPolicies = OutboxMachine.TestCase
TestOutboxWithPolicies.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
