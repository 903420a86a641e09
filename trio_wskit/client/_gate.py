"""Puts the messages of topics with a history in order: each once, none without a sign that one is missing.

Rules
- A message belongs to a topic by its epoch, which is of one topic alone.
- From asking for a topic until the answer, its messages are kept: only the answer tells what comes before them. Before
  the first answer nobody knows the topic's epoch; so what has an epoch that nobody knows is kept as well.
- After the answer they are let go in their order. One that came before is dropped; where one is missing, the topic is
  told before what comes after it is handed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast, final

from trio_wskit._core.envelope import Envelope
from trio_wskit._core.history import GAP, POSITION, Position, position_of

__all__ = ["Gate", "Track"]

_KEPT: Final = 4096  # messages of one topic that may wait for its answer, and of all that nobody knows


@final
class Track:
    """One topic, as it comes.

    Args:
        topic: its name.
        on_missing: called with the number of messages that are missing, or None where nobody knows.

    Attributes:
        newest: the position of the last message that was handed on or is known to be missing; None where the topic
            keeps no history, or nothing of it is known yet.
        asking: True while the server's answer is waited for.
        kept: what waits for it.
    """

    __slots__ = ("asking", "kept", "newest", "on_missing", "topic")

    def __init__(self, topic: str, on_missing: Callable[[int | None], None]) -> None:
        self.topic: str = topic
        self.on_missing: Callable[[int | None], None] = on_missing
        self.newest: Position | None = None
        self.asking: bool = False
        self.kept: deque[Envelope] = deque(maxlen=_KEPT)  # what falls out at the old end is found missing


@final
class Gate:
    """What every message of one client goes through.

    Attributes:
        duplicates: messages that came before, and were dropped.
        released: what was kept and goes on now, through `next_released`.
    """

    def __init__(self) -> None:
        self.duplicates: int = 0
        self._tracks: dict[str, Track] = {}  # by topic
        self._epochs: dict[str, Track] = {}
        self._asking = 0
        self._unknown: deque[Envelope] = deque()
        self.released: deque[tuple[Track | None, Envelope]] = deque()

    def add(self, track: Track) -> None:
        """From now on there is this topic."""
        self._tracks[track.topic] = track

    def remove(self, track: Track) -> None:
        """From now on its messages are nobody's."""
        if self._tracks.get(track.topic) is track:
            del self._tracks[track.topic]
        track.kept.clear()
        self._stops_asking(track)
        self._set_newest(track, None)
        self._let_unknown_go()

    def connected(self) -> None:
        """There is a new connection: what was kept is of the old one, and the server has it yet."""
        self._unknown.clear()

    def asks(self, track: Track) -> None:
        """The server is asked for the topic, maybe again."""
        track.kept.clear()
        if not track.asking:
            track.asking = True
            self._asking += 1

    def answered(self, track: Track, position: Position | None, *, goes_on: bool) -> None:
        """The server's answer has come.

        Args:
            track: whose.
            position: of the newest message; None where there is no history.
            goes_on: what comes follows on what was there; else it follows on the position.
        """
        if self._tracks.get(track.topic) is not track:
            return  # nobody wants it any more
        self._stops_asking(track)
        if not goes_on:
            self._set_newest(track, position)
            track.kept.clear()
        self.released.extend((track, one) for one in track.kept)
        track.kept.clear()
        if position is not None:
            unknown, self._unknown = self._unknown, deque()
            for one in unknown:
                if one.meta["epoch"] == position.epoch:
                    self.released.append((track, one))
                else:
                    self._unknown.append(one)
        self._let_unknown_go()

    def next_released(self) -> Envelope | None:
        """What was kept and goes on now: to be handed on before anything else that comes."""
        while self.released:
            track, envelope = self.released.popleft()
            if track is None or not self._passes_by(track, envelope):
                return envelope
        return None

    def _stops_asking(self, track: Track) -> None:
        if track.asking:
            track.asking = False
            self._asking -= 1

    def _let_unknown_go(self) -> None:
        if not self._asking:
            self.released.extend((None, one) for one in self._unknown)
            self._unknown.clear()

    def _set_newest(self, track: Track, position: Position | None) -> None:
        epochs, old = self._epochs, track.newest
        if old is not None and epochs.get(old.epoch) is track:
            del epochs[old.epoch]
        if position is not None and epochs.setdefault(position.epoch, track) is not track:
            position = None  # two names of one topic: one of them keeps the order for both
        track.newest = position

    def keeps(self, envelope: Envelope) -> bool:
        """Look at what comes. False: hand it on; True: it is kept, or was for us, or came before."""
        kind = envelope.type
        if kind in (POSITION, GAP):
            payload: Any = envelope.payload
            name: Any = cast("dict[str, Any]", payload).get("topic") if isinstance(payload, dict) else None
            track = self._tracks.get(name) if isinstance(name, str) else None
            if track is None:
                return False  # and nobody wants it
        else:
            epoch = envelope.meta.get("epoch")
            if epoch is None or position_of(epoch, envelope.meta.get("offset")) is None:
                return False
            track = self._epochs.get(epoch)
            if track is None:
                return self._keeps_unknown(envelope)
        if track.asking:
            track.kept.append(envelope)
            return True
        return self._passes_by(track, envelope)

    def _keeps_unknown(self, envelope: Envelope) -> bool:
        if not self._asking:
            return False
        self._unknown.append(envelope)
        if len(self._unknown) > _KEPT:  # it may be of a topic that nobody asked for: it must not be lost
            self.released.append((None, self._unknown.popleft()))
        return True

    def _passes_by(self, track: Track, envelope: Envelope) -> bool:
        """Move the track forward; True where that is all."""
        if envelope.type == GAP:
            self._told_of_gap(track, cast("dict[str, Any]", envelope.payload))
            return True
        position = position_of(envelope.meta.get("epoch"), envelope.meta.get("offset"))
        if position is None:
            return envelope.type == POSITION
        newest = track.newest
        if newest is None or newest.epoch != position.epoch:
            # Only a notice can say so: what else has an epoch came here by it. Nobody knows what was in between.
            track.on_missing(None)
        elif position.offset <= newest.offset:
            self.duplicates += envelope.type != POSITION
            return True
        elif position.offset > newest.offset + 1:
            track.on_missing(position.offset - newest.offset - 1)
        self._set_newest(track, position)
        return envelope.type == POSITION

    def _told_of_gap(self, track: Track, payload: dict[str, Any]) -> None:
        first, last, newest = payload.get("from"), payload.get("to"), track.newest
        places = [position_of("any", one) for one in (first, last)]
        if first is None or last is None or None in places or first > last:
            track.on_missing(None)
        elif newest is None:
            track.on_missing(last - first + 1)
        elif last > newest.offset:
            track.on_missing(last - newest.offset)  # those before `from` too: they did not come either
            self._set_newest(track, Position(newest.epoch, last))
