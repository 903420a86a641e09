"""`Gate` beside a model: whatever comes in whatever order, each message is handed on once, and each hole is told."""

from __future__ import annotations

from typing import Any, TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.envelope import Envelope
from trio_wskit._core.history import Position
from trio_wskit.client._gate import Gate, Track

T = "t"
OFFSETS = st.integers(1, 12)
Step: TypeAlias = tuple[Any, ...]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("message"), OFFSETS),
    st.tuples(st.just("message"), OFFSETS),
    st.tuples(st.just("left out"), OFFSETS),
    st.tuples(st.just("gap"), OFFSETS, OFFSETS),
    st.tuples(st.just("ask")),
    st.tuples(st.just("goes on")),
    st.tuples(st.just("anew"), OFFSETS),
)


def envelope_of(step: Step) -> Envelope:
    match step:
        case ("message", offset):
            return Envelope("NEWS", {"epoch": "e", "offset": offset}, {"n": offset})
        case ("left out", offset):
            return Envelope("$ws:position", {"epoch": "e", "offset": offset}, {"topic": T})
        case _:
            return Envelope("$ws:gap", {}, {"topic": T, "from": step[1], "to": step[2]})


class Model:
    """What a client should see: offsets, and (lost,) for a hole."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.newest = 0
        self.kept: list[Step] | None = None

    def take(self, step: Step) -> None:
        match step:
            case ("ask",):
                self.kept = []
            case ("goes on",) | ("anew", _) if self.kept is None:
                pass  # nobody asked
            case ("goes on",):
                kept, self.kept = self.kept or [], None
                for one in kept:
                    self.take(one)
            case ("anew", offset):
                self.newest, self.kept = offset, None
            case _ if self.kept is not None:
                self.kept.append(step)
            case ("gap", first, last):
                if first > last:
                    self.seen.append((None,))
                elif last > self.newest:
                    self.seen.append((last - self.newest,))
                    self.newest = last
            case (kind, offset) if offset > self.newest:
                if offset > self.newest + 1:
                    self.seen.append((offset - self.newest - 1,))
                if kind == "message":
                    self.seen.append(offset)
                self.newest = offset
            case _:
                pass


@given(st.lists(STEPS, max_size=40))
def test_each_message_once_and_each_hole_told(steps: list[Step]) -> None:
    model, gate, seen = Model(), Gate(), list[object]()
    track = Track(T, lambda lost: seen.append((lost,)))
    gate.add(track)
    gate.asks(track)
    gate.answered(track, Position("e", 0), goes_on=False)
    for step in steps:
        model.take(step)
        if step[0] == "ask":
            gate.asks(track)
        elif step[0] in ("goes on", "anew"):
            if track.asking:
                position = Position("e", step[1]) if step[0] == "anew" else track.newest
                gate.answered(track, position, goes_on=step[0] == "goes on")
        elif not gate.keeps(envelope_of(step)):
            seen.append(envelope_of(step).meta["offset"])
        while (one := gate.next_released()) is not None:
            seen.append(one.meta["offset"])
    assert seen == model.seen
    assert track.newest == Position("e", model.newest)


@given(st.lists(st.tuples(st.sampled_from(["e1", "e2", "e3"]), OFFSETS), max_size=40), st.permutations(["e1", "e2"]))
def test_what_nobody_knows_yet_is_handed_on_in_its_order_once_it_is_known(
    messages: list[tuple[str, int]], answers: list[str]
) -> None:
    gate = Gate()
    missing: list[object] = []
    tracks = {epoch: Track(epoch, missing.append) for epoch in ("e1", "e2")}
    for track in tracks.values():
        gate.add(track)
        gate.asks(track)
    for epoch, offset in messages:
        assert gate.keeps(Envelope("NEWS", {"epoch": epoch, "offset": offset}, None))
    assert gate.next_released() is None
    seen: list[tuple[str, int]] = []
    for epoch in answers:
        gate.answered(tracks[epoch], Position(epoch, 6), goes_on=False)
        while (one := gate.next_released()) is not None:
            seen.append((one.meta["epoch"], one.meta["offset"]))
    for epoch in ("e1", "e2"):
        newest = 6
        expected: list[int] = []
        for kind, offset in messages:
            if kind == epoch and offset > newest:
                expected.append(offset)
                newest = offset
        assert [offset for kind, offset in seen if kind == epoch] == expected
    assert [one for one in seen if one[0] == "e3"] == [one for one in messages if one[0] == "e3"]


def news(epoch: str, offset: int) -> Envelope:
    return Envelope("NEWS", {"epoch": epoch, "offset": offset}, None)


def goes_on(gate: Gate) -> list[tuple[str, int]]:
    """All that is let go now."""
    found: list[tuple[str, int]] = []
    while (one := gate.next_released()) is not None:
        found.append((one.meta["epoch"], one.meta["offset"]))
    return found


def asking(gate: Gate, topic: str = T) -> Track:
    track = Track(topic, lambda _: None)
    gate.add(track)
    gate.asks(track)
    return track


def test_who_leaves_before_the_answer_lets_go_what_nobody_knows() -> None:
    gate = Gate()
    track = asking(gate)
    assert gate.keeps(news("e", 1))
    gate.remove(track)
    assert goes_on(gate) == [("e", 1)]
    assert not gate.keeps(news("e", 2))


def test_what_nobody_knew_on_a_connection_that_is_lost_is_not_shown_on_the_next() -> None:
    gate = Gate()
    track = asking(gate)
    assert gate.keeps(news("old", 6))
    gate.connected()
    gate.asks(track)
    gate.answered(track, Position("new", 0), goes_on=False)
    assert goes_on(gate) == []
    assert not gate.keeps(news("new", 1))


def test_a_topic_that_is_asked_for_again_before_its_answer_is_asked_for_once() -> None:
    gate = Gate()
    track = asking(gate)
    gate.asks(track)
    gate.answered(track, Position("e", 0), goes_on=False)
    assert not gate.keeps(news("of nobody", 1))


def test_a_track_that_ends_leaves_the_next_of_its_topic_in_peace() -> None:
    gate = Gate()
    first = asking(gate)
    second = asking(gate)
    gate.remove(first)
    gate.answered(second, Position("e", 3), goes_on=False)
    assert gate.keeps(news("e", 3))
    assert (goes_on(gate), gate.duplicates) == ([], 1)


def test_the_answer_to_who_has_left_changes_nothing() -> None:
    gate = Gate()
    track = asking(gate)
    gate.remove(track)
    gate.answered(track, Position("e", 3), goes_on=False)
    assert track.newest is None
    assert not gate.keeps(news("e", 1))
