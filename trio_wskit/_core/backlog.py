"""What waits in an outbox: frames, and notices of what is missing; and what a topic's policy may do to them.

Rules
- A notice of missing messages stands between the messages of its topic, where those that are missing would have been.
- Between two notices of one topic is at least one message of it, else they are one. So there are never more notices
  than messages and topics.
- A notice, a reply and a frame of which a part was written are never dropped: to this module they have no topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, final

from trio_wskit._core.frames import payload_of
from trio_wskit._core.history import GAP
from trio_wskit._core.json_text import dumps
from trio_wskit._core.overflow import Conflate

__all__ = [
    "Frame",
    "GapNotice",
    "Offset",
    "Published",
    "Removed",
    "WriteGap",
    "drop_oldest",
    "encode_gap",
    "note_gap",
    "remove",
    "superseded",
]

Offset = int | None
WriteGap = Callable[[str, Offset, Offset], bytes]
"""Topic, first and last missing position to a whole frame."""


class Frame:
    """One encoded message, made once for all who get it.

    Attributes:
        wire: the whole RFC 6455 frame.
        topic: where it was published; None for a message to one client alone, which is never dropped.
        offset: its position in the topic; None where nobody counts.
    """

    __slots__ = ("offset", "topic", "wire")

    careful: bool = False

    def __init__(self, wire: bytes, topic: str | None = None, offset: Offset = None) -> None:
        self.wire: bytes = wire
        self.topic: str | None = topic
        self.offset: Offset = offset


@final
class Published(Frame):
    """A message that was published.

    Attributes:
        careful: whoever is behind must be looked at before it takes this: its policy may conflate.
        fault: what the function of its key has raised.
    """

    __slots__ = ("_key", "careful", "fault")

    def __init__(self, wire: bytes, topic: str, offset: Offset = None, *, careful: bool = False) -> None:
        self.wire: bytes = wire  # not through super(): one is made for each publish
        self.topic: str | None = topic
        self.offset: Offset = offset
        self.careful: bool = careful
        self.fault: Exception | None = None
        self._key: tuple[Conflate, object] | None = None

    def key(self, policy: Conflate) -> object:
        """Its key by this policy, computed once. Where that fails it has a key of its own."""
        if not callable(policy.key):
            return policy.key
        held = self._key
        if held is not None and held[0] is policy:
            return held[1]
        try:
            key = policy.key_of(payload_of(self.wire))
        except Exception as fault:
            self.fault = fault
            key = object()
        self._key = (policy, key)
        return key


@final
class GapNotice(Frame):
    """A notice of missing messages, which grows until it is written.

    Attributes:
        about: the topic, or the pattern, of which messages are missing.
        first: the first missing position; None where nobody knows.
        last: the last one.
        write: makes its frame.
    """

    __slots__ = ("about", "first", "last", "write")

    def __init__(self, about: str, first: Offset, last: Offset, write: WriteGap) -> None:
        if first is None or last is None:
            first = last = None
        self.about: str = about
        self.first: Offset = first
        self.last: Offset = last
        self.write: WriteGap = write
        super().__init__(write(about, first, last))

    def grow(self, first: Offset, last: Offset) -> int:
        """More is missing behind it. Where the positions do not go on, nobody knows any more.

        Returns:
            By how many bytes it is longer.
        """
        size = len(self.wire)
        if self.first is None or self.last is None or first is None or last is None or first <= self.last:
            self.first = self.last = None
        else:
            self.last = last
        self.wire = self.write(self.about, self.first, self.last)
        return len(self.wire) - size


def encode_gap(topic: str, first: Offset, last: Offset, timestamp_ms: int) -> bytes:
    """Write a gap notice, as a message."""
    return dumps(
        {"type": GAP, "meta": {"timestamp": timestamp_ms}, "payload": {"topic": topic, "from": first, "to": last}}
    )


def drop_oldest(frames: Sequence[Frame], bytes_over: int, frames_over: int) -> list[int] | None:
    """Which messages of topics to drop, the oldest first, to have so much less; None where all are not enough."""
    if bytes_over <= 0 and frames_over <= 0:
        return []
    chosen: list[int] = []
    for position, frame in enumerate(frames):
        if frame.topic is None:
            continue
        chosen.append(position)
        bytes_over -= len(frame.wire)
        frames_over -= 1
        if bytes_over <= 0 and frames_over <= 0:
            return chosen
    return None


def superseded(frames: Iterable[Frame], newer: Published, policy: Conflate) -> list[int]:
    """The queued messages of the same topic and key."""
    topic = newer.topic
    key = newer.key(policy)
    return [
        position
        for position, frame in enumerate(frames)
        if frame.topic == topic and isinstance(frame, Published) and _same(frame.key(policy), key)
    ]


def _same(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # the application's
        return False


class Removed(NamedTuple):
    """What `remove` has changed.

    Attributes:
        made: new notices.
        notices: how many notices there are more.
        size: how many bytes there are more: mostly a negative number.
    """

    made: int
    notices: int
    size: int


def remove(frames: list[Frame], positions: Sequence[int], wants: Callable[[str], WriteGap | None] | None) -> Removed:
    """Take the messages at these positions out, and leave notices in their places for those who want them.

    Only the part of the queue up to the last position is looked at, and as much behind it as it takes to find the next
    message of a topic that has a new notice.

    Args:
        frames: changed in place.
        positions: in order; of messages of topics.
        wants: the way to write a notice about a topic, or None where this client did not ask. None instead of the
            function: the messages are not missing, for there are newer ones.
    """
    if not positions:
        return Removed(0, 0, 0)
    end = positions[-1] + 1
    gone = set(positions)
    kept: list[Frame] = []
    tails: dict[str, GapNotice | None] = {}  # the last of each topic, where that is a notice
    made = merged = size = 0
    for position in range(end):
        frame = frames[position]
        topic = frame.topic
        if isinstance(frame, GapNotice):
            tail = tails.get(frame.about)
            if tail is None:
                tails[frame.about] = frame
                kept.append(frame)
            else:
                merged += 1
                size += tail.grow(frame.first, frame.last) - len(frame.wire)
        elif topic is None or position not in gone:
            if topic is not None:
                tails[topic] = None
            kept.append(frame)
        else:
            size -= len(frame.wire)
            if wants is None:
                continue
            tail = tails.get(topic)
            write = wants(topic) if tail is None else None
            if tail is not None:
                size += tail.grow(frame.offset, frame.offset)
            elif write is not None:
                tails[topic] = notice = GapNotice(topic, frame.offset, frame.offset, write)
                kept.append(notice)
                made += 1
                size += len(notice.wire)
    more, behind = _merge_next(frames, end, {topic: tail for topic, tail in tails.items() if tail is not None})
    frames[:end] = kept
    return Removed(made, made - merged - more, size + behind)


def _merge_next(frames: list[Frame], start: int, tails: dict[str, GapNotice]) -> tuple[int, int]:
    """Where what follows of a topic is a notice too, the two are one: give how many were, and the bytes."""
    position = start
    merged = size = 0
    while tails and position < len(frames):
        frame = frames[position]
        if isinstance(frame, GapNotice):
            tail = tails.pop(frame.about, None)
            if tail is not None:
                merged += 1
                size += tail.grow(frame.first, frame.last) - len(frame.wire)
                del frames[position]
                continue
        elif frame.topic is not None:
            tails.pop(frame.topic, None)
        position += 1
    return merged, size


def note_gap(frames: list[Frame], topic: str, first: Offset, last: Offset, write: WriteGap) -> int:
    """Messages are missing behind all that is queued: grow the notice at the topic's end, or append one.

    Returns:
        How many bytes there are more.
    """
    for frame in reversed(frames):
        if isinstance(frame, GapNotice):
            if frame.about == topic:
                return frame.grow(first, last)
        elif frame.topic == topic:
            break
    notice = GapNotice(topic, first, last, write)
    frames.append(notice)
    return len(notice.wire)
