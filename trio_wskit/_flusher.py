"""Sends, once a scheduler pass, what was accepted during the last one: so all that a client gets joins into one write.

Rules
- What goes to one client alone waits in its outbox. What is published to many waits in a `Round`, in none of their
  outboxes: so a fan-out touches each of them once, when it is sent.
- A round is a promise: each outbox of it has room. Whatever else comes for one of them, or happens to it, first makes
  it take what is its own (`settle`); so it keeps the order in which things were accepted.
- At most one round collects messages; another may be on its way out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import length_hint
from typing import Final, Protocol, final

import trio

from trio_wskit._core.backlog import Frame
from trio_wskit._core.frames import Shared
from trio_wskit._core.options import Limits

__all__ = ["Box", "Flusher", "Round"]

logger = logging.getLogger("trio_wskit")

_FLUSHES_PER_PASS: Final = 256  # a checkpoint after so many sends keeps the loop fair, and costs about 1 % of them
_ROUND_MESSAGES: Final = 64
_ROUND_BYTES: Final = 65536
_DEFAULTS: Final = Limits()


class Box(Protocol):
    """An outbox. None of these may wait."""

    @property
    def name(self) -> str:
        """Whose it is."""
        ...

    def offer(self, frame: Frame) -> bool:
        """Accept the frame if there is room."""
        ...

    def flush(self) -> None:
        """Hand over to the system what it takes without waiting."""
        ...

    def take(self, frames: Sequence[Frame], size: int) -> None:
        """Accept a round's messages, for which there is room."""
        ...

    def pass_on(self, frames: Sequence[Frame], size: int, wires: Shared) -> None:
        """The same, but hand them over to the system if nothing is before them."""
        ...

    def abort(self, reason: str = "") -> None:
        """Drop the link at once."""
        ...


@final
class Round:
    """Messages that were published to the same outboxes, and are in none of them yet.

    Args:
        names: of all clients that they are published to.
        boxes: theirs, but of those that stand apart.
        apart: outboxes that get each message by itself, by name: because they are behind.

    Attributes:
        names: as given.
        apart: these, and those that have taken their share since.
        is_open: whether it takes more messages.
        frames: the messages.
        size: their bytes.
    """

    __slots__ = ("_boxes", "_gone", "_left", "_places", "apart", "frames", "is_open", "names", "size")

    def __init__(self, names: tuple[str, ...], boxes: Sequence[Box], apart: dict[str, Box]) -> None:
        self.names: tuple[str, ...] = names
        self.apart: dict[str, Box] = apart
        self.is_open: bool = True
        self.frames: list[Frame] = []
        self.size: int = 0
        self._boxes = boxes
        self._left: Iterator[Box] = iter(boxes)
        self._gone: set[Box] = set()
        self._places: dict[Box, int] | None = None  # made when the first one settles

    @property
    def count(self) -> int:
        """How many outboxes are in it."""
        return len(self._boxes) - len(self._gone)

    def has_room(self, size: int, limits: Limits) -> bool:
        """Whether a message of so many bytes may be added."""
        return (
            self.is_open
            and len(self.frames) < min(limits.outbox_messages, _ROUND_MESSAGES)
            and self.size + size <= min(limits.outbox_bytes, _ROUND_BYTES)
        )

    def add(self, frame: Frame) -> None:
        """One message more."""
        self.frames.append(frame)
        self.size += len(frame.wire)

    def settle(self, box: Box) -> None:
        """Let this outbox take its share now, unless it has it; from now on it stands apart."""
        places = self._places
        if places is None:
            places = self._places = {one: place for place, one in enumerate(self._boxes)}
        place = places.get(box, -1)
        if place >= len(self._boxes) - length_hint(self._left) and box not in self._gone:
            self._gone.add(box)
            self.apart[box.name] = box
            box.take(self.frames, self.size)

    def settle_all(self) -> None:
        """Let all take theirs."""
        frames, size, gone = self.frames, self.size, self._gone
        for box in self._left:
            if box in gone:
                continue
            try:
                box.take(frames, size)
            except Exception as error:  # a transport's bug: one connection's failure touches no other
                _failed(box, error)

    async def send(self) -> None:
        """Send it, and let others run now and then."""
        self.is_open = False
        frames, size, gone, left = self.frames, self.size, self._gone, self._left
        wires = Shared([frame.wire for frame in frames])
        while True:
            for box in islice(left, _FLUSHES_PER_PASS):
                if gone and box in gone:
                    continue
                try:
                    box.pass_on(frames, size, wires)
                except Exception as error:  # as above
                    _failed(box, error)
            if not length_hint(left):
                return
            await trio.lowlevel.checkpoint()


@final
class Flusher:
    """Sends what was accepted in one scheduler pass in the next one.

    Args:
        limits: of the outboxes.

    Attributes:
        limits: as given.
        rounds: those that are not wholly sent.
    """

    def __init__(self, limits: Limits = _DEFAULTS) -> None:
        self.limits: Limits = limits
        self.rounds: list[Round] = []
        self._collecting: Round | None = None
        self._dirty: list[Box] = []
        self._parked: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope(shield=True)

    def add(self, box: Box) -> None:
        """Flush this outbox."""
        self._dirty.append(box)
        if self._parked is not None:
            self._wake()

    def open(self, round_: Round) -> None:
        """Send this round; the one that has collected until now goes into the outboxes, in front of it."""
        before = self._collecting
        if before is not None:
            for one in self.rounds:  # one that is on its way out has what comes first
                one.settle_all()
            self.rounds.remove(before)
        self._collecting = round_
        self.rounds.append(round_)
        if self._parked is not None:
            self._wake()

    def settle(self, box: Box) -> None:
        """Let this outbox take its share of all rounds now: something is about to come behind it."""
        for one in self.rounds:
            one.settle(box)

    def _wake(self) -> None:
        assert self._parked is not None
        trio.lowlevel.reschedule(self._parked)
        self._parked = None

    async def run(self) -> None:
        """Run until `stop`: shielded, so that goodbyes are still sent when all around it is cancelled."""
        with self._scope:
            while True:
                if not self._dirty and self._collecting is None:
                    self._parked = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
                if self._collecting is not None:
                    await self._send_round()
                await self._flush_all()

    async def _send_round(self) -> None:
        # A function of its own, as the next one: while nothing is to be done, no variable shall keep what is gone.
        collected, self._collecting = self._collecting, None
        assert collected is not None
        try:
            await collected.send()
        finally:
            self.rounds.remove(collected)

    async def _flush_all(self) -> None:
        dirty, self._dirty = self._dirty, []
        for done, box in enumerate(dirty, 1):
            try:
                box.flush()
            except Exception as error:  # a transport's bug: one connection's failure touches no other
                _failed(box, error)
            if done % _FLUSHES_PER_PASS == 0:
                await trio.lowlevel.checkpoint()

    def stop(self) -> None:
        """End `run`."""
        self._scope.cancel()

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED


def _failed(box: Box, error: Exception) -> None:
    logger.error("a transport failed", exc_info=error)
    box.abort()
