"""Presence against a model: people come, go, reconnect, speak; processes die and begin anew; time passes."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_wskit._core.presence import PresenceBeat, PresenceTable, TopicDiff
from trio_wskit._core.presence_book import PresenceBook
from trio_wskit.presence import PresenceList, PresenceView
from trio_wskit.presence._messages import messages_of

DEBOUNCE, LINGER, TTL = 1, 3, 10
TOPIC = "t"


class Process:
    """A process: its book and its name at the store."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.book = PresenceBook(DEBOUNCE, LINGER)
        self.last_beat = -math.inf


class Presences(RuleBasedStateMachine):
    """The book, the table and the messages together, as the service joins them; the model knows only people.

    Times are whole seconds. The model: an identity is there while a living process has a device of it.
    """

    @initialize(processes=st.integers(1, 3))
    def begin(self, processes: int) -> None:
        self.now = 100
        self.table = PresenceTable()
        self.names = 0
        self.processes = [self._process() for _ in range(processes)]
        self.view = PresenceView(PresenceList(TOPIC, 0, []))
        self.devices: dict[str, dict[str, dict[str, int]]] = {}  # the model: identity -> process -> device -> state
        self.mentioned: list[str] = []
        self.settled = True

    def _process(self) -> Process:
        self.names += 1
        return Process(f"p{self.names}")

    def _pick(self, which: int) -> Process:
        return self.processes[which % len(self.processes)]

    @rule(
        which=st.integers(0, 2),
        client=st.sampled_from("abc"),
        who=st.sampled_from(["ann", "bob"]),
        state=st.integers(0, 2),
    )
    def join(self, which: int, client: str, who: str, state: int) -> None:
        """A connection is there, maybe as somebody else than before."""
        process = self._pick(which)
        for by_process in self.devices.values():
            by_process.get(process.name, {}).pop(client, None)
        process.book.join(client, TOPIC, who, str(state).encode(), self.now)
        self.devices.setdefault(who, {}).setdefault(process.name, {})[client] = state
        self.settled = False

    @rule(which=st.integers(0, 2), client=st.sampled_from("abc"))
    def leave(self, which: int, client: str) -> None:
        """A connection is gone."""
        process = self._pick(which)
        for by_process in self.devices.values():
            by_process.get(process.name, {}).pop(client, None)
        process.book.leave_all(client, self.now)
        self.settled = False

    @precondition(lambda self: self.settled)
    @rule(which=st.integers(0, 2), client=st.sampled_from("abc"), away=st.integers(0, LINGER - 1))
    def reconnect(self, which: int, client: str, away: int) -> None:
        """Whoever is back in time was never away."""
        process = self._pick(which)
        for who, by_process in self.devices.items():
            devices = by_process.get(process.name, {})
            if list(devices)[-1:] == [client]:
                state = devices[client]
                self.mentioned.clear()
                process.book.leave_all(client, self.now)
                if len(devices) == 1:
                    self.wait(away)
                process.book.join(client, TOPIC, who, str(state).encode(), self.now)
                self.wait(LINGER + 2 * DEBOUNCE)
                assert who not in self.mentioned

    @rule(which=st.integers(0, 2), lost=st.booleans())
    def beat(self, which: int, lost: bool) -> None:
        """A process tells the store; its answer may be lost."""
        self._beat(self._pick(which), lost=lost)

    @rule(which=st.integers(0, 2))
    def die(self, which: int) -> None:
        """A process dies, and another takes its place."""
        index = which % len(self.processes)
        self.processes[index] = self._process()
        self.settled = False

    @rule()
    def the_store_forgets(self) -> None:
        """The store loses its memory, and its clock goes on."""
        self.table = PresenceTable()
        self.settled = False

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        """Time passes, and every process does what is due."""
        for _ in range(seconds):
            self.now += 1
            for process in self.processes:
                if process.book.due() <= self.now or self.now - process.last_beat >= TTL // 3:
                    self._beat(process, lost=False)

    @rule()
    def settle(self) -> None:
        """So much time passes that everybody knows everything."""
        self.wait(LINGER + DEBOUNCE + TTL + 2 * TTL // 3 + 1)
        self.settled = True

    def _beat(self, process: Process, *, lost: bool) -> None:
        more = True
        while more:
            changes, doubtful = process.book.take(self.now)
            process.number += 1
            beat = PresenceBeat(
                node=process.name,
                number=process.number,
                first=process.last_beat == -math.inf,
                changes=changes,
                doubtful=doubtful,
                ttl=TTL,
            )
            answer = self.table.beat(beat, self.now * 1000)
            if lost:
                process.book.doubt(changes, self.now)
                return
            known = answer.known
            if known:
                process.last_beat = self.now
                process.book.confirm(changes, answer.refused, self.now)
                known = bool(process.book.doubts) or process.book.held == answer.held
            if not known:
                self._call_again(process)
            for diff in answer.diffs:
                self._publish(diff)
            more = answer.more

    def _call_again(self, process: Process) -> None:
        self.names += 1
        old, process.name = process.name, f"p{self.names}"
        process.last_beat = -math.inf
        process.book.start_again(self.now)
        for by_process in self.devices.values():
            if old in by_process:
                by_process[process.name] = by_process.pop(old)

    def _publish(self, diff: TopicDiff) -> None:
        for message in messages_of(diff):
            self.mentioned += [*message.leaves, *(member.id for member in message.joins)]
            if not self.view.apply(message):
                snapshot = self.table.members(TOPIC, self.now * 1000)
                self.view = PresenceView(PresenceList(TOPIC, snapshot.version, []))
                self.view.members = {identity: int(state) for identity, state in snapshot.members.items()}

    # What must hold.

    @precondition(lambda self: getattr(self, "settled", False))
    @invariant()
    def everybody_knows_who_is_there(self) -> None:
        """When nothing is under way the store, and whoever watches, know the truth."""
        alive = {process.name for process in self.processes}
        truth: dict[str, set[int]] = {}
        for who, by_process in self.devices.items():
            states = {
                next(reversed(devices.values())) for name, devices in by_process.items() if name in alive and devices
            }
            if states:
                truth[who] = states
        snapshot = self.table.members(TOPIC, self.now * 1000)
        assert snapshot.members.keys() == truth.keys()
        assert all(int(snapshot.members[who]) in states for who, states in truth.items())
        assert self.table.count(TOPIC, self.now * 1000) == len(truth)
        if truth:  # what a store has forgotten in which nobody is, nobody is told
            assert self.view.members == {who: int(state) for who, state in snapshot.members.items()}


TestPresence = Presences.TestCase
TestPresence.settings = settings(max_examples=120, stateful_step_count=30)
