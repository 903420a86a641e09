"""What has come and waits for its dispatcher: a bounded channel of batches, with one reader and one writer.

It does what a Trio memory channel does for that case, at a third of its cost: nothing but a parked task while the
reader waits, which is what most connections do most of the time. The writer asks `is_full` after each batch, and stops
then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from typing import Any, Final, TypeVar, final

import outcome
import trio
from trio.lowlevel import current_task, reschedule

from trio_wskit._core.envelope import Envelope

__all__ = ["WOKEN", "Inbox"]

T = TypeVar("T")

_BATCH_BYTES: Final = 65536


@final
class Woken(outcome.Outcome[None]):
    """What a reader is woken with. An `outcome.Value` can be unwrapped once; this one serves for all of them."""

    __slots__ = ()

    def unwrap(self) -> None: ...

    def send(self, gen: Generator[T, None, object]) -> T:
        return gen.send(None)

    async def asend(self, agen: AsyncGenerator[T, None]) -> T:
        return await agen.asend(None)


WOKEN: Final = Woken()


@final
class Inbox:
    """The channel of one connection.

    Args:
        capacity: batches.
        on_room: called when a batch is taken from a full channel: the writer may go on. It must not write at once.

    Attributes:
        was_full: set when a batch is taken from a full channel; for whoever wants to know, who resets it.
    """

    __slots__ = ("_batches", "_bytes", "_capacity", "_closed", "_on_room", "_reader", "was_full")

    def __init__(self, capacity: int, on_room: Callable[[], None]) -> None:
        self._capacity = capacity
        self._on_room = on_room
        self._batches: list[list[Envelope]] = []
        self._bytes = 0  # of what was added to the last batch
        self._reader: trio.lowlevel.Task | None = None  # parked
        self._closed = False
        self.was_full: bool = False

    def __len__(self) -> int:
        """Batches that wait."""
        return len(self._batches)

    @property
    def is_full(self) -> bool:
        """True when the writer must stop."""
        return len(self._batches) >= self._capacity

    @property
    def messages(self) -> int:
        """Messages that wait."""
        return sum(map(len, self._batches))

    def put_nowait(self, batch: list[Envelope], messages: Iterable[bytes]) -> None:
        """Add a batch. The writer has seen to it that there is room.

        A transport that gives one message at a time shall have as much room as one that gives all that a read gave:
        small batches are joined until there are 64 KiB in one.

        Args:
            batch: not empty; it becomes the channel's.
            messages: what the envelopes were decoded from.

        Raises:
            trio.WouldBlock: there is no room.
        """
        if self._batches:
            self._bytes += sum(map(len, messages))
            if self._bytes <= _BATCH_BYTES:
                self._batches[-1] += batch
                return
            if len(self._batches) >= self._capacity:
                raise trio.WouldBlock
        self._bytes = 0
        self._batches.append(batch)
        if self._reader is not None:
            reschedule(self._reader, WOKEN)
            self._reader = None

    @property
    def closed(self) -> bool:
        """True once nothing more will come."""
        return self._closed

    def close(self) -> None:
        """Nothing more will come; what waits can still be taken."""
        self._closed = True
        if self._reader is not None:
            reschedule(self._reader, WOKEN)
            self._reader = None

    async def get(self) -> list[Envelope]:
        """Take the oldest batch; wait if there is none.

        Raises:
            trio.EndOfChannel: it is closed and empty.

        Cancelled: nothing was taken.
        """
        if self._batches:
            await trio.lowlevel.checkpoint()
        elif not self._closed:
            await trio.lowlevel.wait_task_rescheduled(self.park())
        return self.take()

    def park(self) -> Callable[[Any], trio.lowlevel.Abort]:
        """Half of `get`, for a reader that saves a coroutine: the task that calls it is woken when there is something.

        Returns:
            What `trio.lowlevel.wait_task_rescheduled` takes. It is to be awaited at once.
        """
        self._reader = current_task()
        return self._stop_waiting

    def take(self) -> list[Envelope]:
        """Take the oldest batch.

        Raises:
            trio.EndOfChannel: there is none.
        """
        batches = self._batches
        if not batches:
            raise trio.EndOfChannel
        if len(batches) == self._capacity:
            self.was_full = True
            self._on_room()
        return batches.pop(0)

    def _stop_waiting(self, _: Any) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED
