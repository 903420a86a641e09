from __future__ import annotations

import json
from typing import Any

import pytest

from trio_wskit._core.backlog import (
    Frame,
    GapNotice,
    Published,
    WriteGap,
    drop_oldest,
    encode_gap,
    note_gap,
    remove,
    superseded,
)
from trio_wskit._core.frames import text_frame
from trio_wskit._core.overflow import conflate


def write(topic: str, first: int | None, last: int | None) -> bytes:
    return text_frame(f"{topic}{first}-{last}".encode())


def everybody(_: str) -> WriteGap | None:
    return write


def nobody(_: str) -> WriteGap | None:
    return None


def queue(words: str) -> list[Frame]:
    """Replies are ``r``, messages ``a1``, notices ``a1-2`` or ``a?-?``; a letter is a topic."""
    frames: list[Frame] = []
    for word in words.split():
        if word == "r":
            frames.append(Frame(text_frame(b"r")))
        elif "-" in word:
            first, last = (None if end == "?" else int(end) for end in word[1:].split("-"))
            frames.append(GapNotice(word[0], first, last, write))
        else:
            offset = int(word[1:]) if word[1:] else None
            body = json.dumps({"type": "T", "payload": word}).encode()
            frames.append(Published(text_frame(body), word[0], offset))
    return frames


def shown(frames: list[Frame]) -> str:
    words: list[str] = []
    for frame in frames:
        if isinstance(frame, GapNotice):
            ends = ["?" if end is None else str(end) for end in (frame.first, frame.last)]
            words.append(f"{frame.about}{'-'.join(ends)}")
            assert frame.wire == write(frame.about, frame.first, frame.last)
        elif frame.topic is None:
            words.append("r")
        else:
            words.append(f"{frame.topic}{'' if frame.offset is None else frame.offset}")
    return " ".join(words)


def _measure(frames: list[Frame]) -> tuple[int, int]:
    return sum(len(frame.wire) for frame in frames), sum(isinstance(frame, GapNotice) for frame in frames)


# --- which are dropped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "bytes_over", "frames_over", "chosen"),
    [
        ("a1 a2", 0, 0, []),
        ("a1 a2", 0, 1, [0]),
        ("r a1 r b1 a2", 0, 2, [1, 3]),
        ("r a1-1 b1", 0, 1, [2]),
        ("r a1-1", 0, 1, None),
        ("a1 a2", 30, 0, [0]),
        ("a1 a2", 40, 0, [0, 1]),
        ("a1 a2", 400, 0, None),
        ("", 1, 0, None),
    ],
)
def test_the_oldest_messages_of_topics_are_dropped_and_no_more_than_needed(
    words: str, bytes_over: int, frames_over: int, chosen: list[int] | None
) -> None:
    assert drop_oldest(queue(words), bytes_over, frames_over) == chosen


# --- gaps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "positions", "left", "made"),
    [
        ("a1 a2 a3", [0], "a1-1 a2 a3", 1),
        ("a1 a2 a3", [0, 1], "a1-2 a3", 1),
        ("a1 r a2 r a3", [0, 2], "a1-2 r r a3", 1),
        ("a1 b7 a2 b8", [0, 1], "a1-1 b7-7 a2 b8", 2),
        ("a1-1 a2 a3", [1], "a1-2 a3", 0),
        ("a1-1 r a2 a3", [2], "a1-2 r a3", 0),
        ("a1 a2-3 a4", [0], "a1-3 a4", 1),
        ("a1 r a2-3 a4", [0], "a1-3 r a4", 1),
        ("a1-1 a2 a3-3 b1-1 a4", [1], "a1-3 b1-1 a4", 0),
        ("a1 b1 a2-2", [0], "a1-2 b1", 1),
        ("a1 a2 a3", [1], "a1 a2-2 a3", 1),
        ("a a", [0], "a?-? a", 1),
        ("a1 a", [0, 1], "a?-?", 1),
        ("a5 a1", [0, 1], "a?-?", 1),
        ("a1 a4 a5", [0, 1], "a1-4 a5", 1),
        ("b1-1 a1", [1], "b1-1 a1-1", 1),
        ("a1-1 b1 a2-2 b2", [1], "a1-2 b1-1 b2", 1),
        ("a1-1 a2 a3-3 a4 a5", [1, 3], "a1-4 a5", 0),
        ("a1 b1-1 a2", [0], "a1-1 b1-1 a2", 1),
        ("a1 a2", [], "a1 a2", 0),
    ],
)
def test_a_notice_stands_where_messages_are_missing_and_there_is_one_for_all_that_are_adjacent(
    words: str, positions: list[int], left: str, made: int
) -> None:
    frames = queue(words)
    # A queue never has two adjacent notices of a topic; one row has, to see that they become one.
    size, notices = _measure(frames)
    removed = remove(frames, positions, everybody)
    assert shown(frames) == left
    assert removed.made == made
    assert (size + removed.size, notices + removed.notices) == _measure(frames)


def test_who_did_not_ask_gets_no_notice() -> None:
    frames = queue("a1 r b1 a2")

    def wants(topic: str) -> WriteGap | None:
        return write if topic == "b" else None

    assert remove(frames, [0, 2], wants).made == 1
    assert shown(frames) == "r b1-1 a2"
    assert remove(frames, [2], nobody).made == 0
    assert shown(frames) == "r b1-1"


def test_what_a_newer_message_replaces_is_not_missing_but_notices_around_it_become_one() -> None:
    frames = queue("a1 a2 b1")
    assert remove(frames, [0, 1], None).made == 0
    assert shown(frames) == "b1"
    frames = queue("a1-1 a2 r a3-3 a4")
    gone = [frames[0], frames[1], frames[3]]
    assert remove(frames, [1], None) == (0, -1, len(write("a", 1, 3)) - sum(len(frame.wire) for frame in gone))
    assert shown(frames) == "a1-3 r a4"


@pytest.mark.parametrize(
    ("words", "left", "more"),
    [
        ("", "a7-8", True),
        ("a6", "a6 a7-8", True),
        ("a5-6", "a5-8", False),
        ("a5-6 b1 r", "a5-8 b1 r", False),
        ("a5-6 a7", "a5-6 a7 a7-8", True),
        ("b1-2", "b1-2 a7-8", True),
        ("a6 b1 r", "a6 b1 r a7-8", True),
        ("a?-?", "a?-?", False),
        ("a8-9", "a?-?", False),
    ],
)
def test_what_is_missing_behind_the_queue_is_noted_at_its_end(words: str, left: str, more: bool) -> None:
    frames = queue(words)
    size = sum(len(frame.wire) for frame in frames)
    count = len(frames)
    assert note_gap(frames, "a", 7, 8, write) == sum(len(frame.wire) for frame in frames) - size
    assert shown(frames) == left
    assert (len(frames) > count) == more


def test_one_end_that_nobody_knows_makes_both_unknown() -> None:
    for first, last in ((1, None), (None, 1)):
        notice = GapNotice("a", first, last, write)
        assert (notice.first, notice.last) == (None, None)
    notice = GapNotice("a", 1, 2, write)
    assert notice.grow(None, 5) == len("None-None") - len("1-2")
    assert (notice.first, notice.last) == (None, None)
    assert notice.grow(7, 8) == 0
    assert (notice.first, notice.last) == (None, None)


def test_a_notice_on_the_wire() -> None:
    assert json.loads(encode_gap("t", 3, 5, 17)) == {
        "type": "$ws:gap",
        "meta": {"timestamp": 17},
        "payload": {"topic": "t", "from": 3, "to": 5},
    }
    assert json.loads(encode_gap("t", None, None, 17))["payload"] == {"topic": "t", "from": None, "to": None}


# --- keys ------------------------------------------------------------------------------------------------------------


def priced(topic: str, key: object) -> Published:
    return Published(text_frame(json.dumps({"type": "P", "payload": key}).encode()), topic)


def test_superseded_are_those_of_the_same_topic_and_key() -> None:
    policy = conflate(lambda m: m.payload)
    frames: list[Frame] = [
        priced("a", 1),
        priced("a", 2),
        priced("b", 1),
        Frame(text_frame(b"reply")),
        Frame(text_frame(b"no"), "a"),
        GapNotice("a", 1, 1, write),
        priced("a", 1),
    ]
    assert superseded(frames, priced("a", 1), policy) == [0, 6]
    assert superseded(frames, priced("b", 2), policy) == []
    assert superseded(frames, priced("a", 9), conflate()) == [0, 1, 6]


def test_a_key_is_computed_once_for_a_message_and_a_policy() -> None:
    asked: list[object] = []

    def key(message: Any) -> object:
        asked.append(message.payload)
        return message.payload

    policy, other = conflate(key), conflate(lambda m: m.type)
    frame = priced("a", 1)
    assert [frame.key(policy) for _ in range(3)] == [1, 1, 1]
    assert asked == [1]
    assert frame.key(other) == "P"
    assert frame.fault is None


def test_a_message_whose_key_fails_is_like_no_other() -> None:
    def key(message: Any) -> object:
        raise ZeroDivisionError

    policy = conflate(key)
    frame = priced("a", 1)
    assert frame.key(policy) is frame.key(policy)
    assert isinstance(frame.fault, ZeroDivisionError)
    assert superseded([priced("a", 1)], frame, policy) == []


def test_keys_that_cannot_be_compared_are_not_the_same() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        def __hash__(self) -> int:
            return 0

    assert superseded([priced("a", 1)], priced("a", 1), conflate(lambda _: Odd())) == []
