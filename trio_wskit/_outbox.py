"""What waits for a connection's socket, and the one who writes it.

Rules
- A frame is accepted whole or not at all; accepted frames reach the wire in the order in which they were accepted.
- Frames leave in one write: those of a batch when the batch ends (`cork` and `uncork`), all others once a scheduler
  pass (`Flusher`). Nobody but `flush` and `run_writer` touches the transport's write side, and never both at a time.
- While the kernel takes everything, there is no writer task. It exists from the first frame that did not fit until the
  last one is written.
- Every frame of a topic may be dropped by the topic's policy; replies and errors never: see `_queue`.
- What the kernel did not take is charged to the app's byte budget; what only waits for the end of a pass is not.
- A write that is cancelled or too slow may have torn a frame: the connection is aborted, for nothing else is legal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

import outcome
import trio

from trio_wskit._core.backlog import Frame
from trio_wskit._core.frames import Shared
from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit._queue import Queue, Waiter, notices_of, size_of
from trio_wskit.abc import Transport
from trio_wskit.errors import ConnectionClosed

__all__ = ["Frame", "Outbox"]

_SENDS_PER_PASS: Final = 64  # a task that only sends still lets the others run this often
_WRITE_BYTES: Final = 65536  # what one write of the writer takes from the queue


@final
class _Sender(Waiter):
    __slots__ = ("_task",)

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self._task = trio.lowlevel.current_task()

    def accepted(self) -> None:
        trio.lowlevel.reschedule(self._task)

    def refused(self, closed: ConnectionClosed) -> None:
        trio.lowlevel.reschedule(self._task, outcome.Error(ConnectionClosed(closed.code, closed.reason)))


@final
class Outbox(Queue, trio.abc.SendChannel[Frame]):
    """The bounded queue in front of one transport.

    Args:
        transport: where frames go.
        limits: ``outbox_messages``, ``outbox_bytes`` and ``write_timeout`` are used.
        flusher: who flushes what was accepted outside a cork.
        start_writer: starts `run_writer` as a task of the connection; False when its nursery is closed.
        on_broken: told once, when a write has found that nothing more can be sent.

    Attributes:
        aborted: True once `abort` has dropped the link: whoever reads it may never be told.
    """

    __slots__ = (
        "_corked",
        "_dirty",
        "_empty",
        "_flusher",
        "_on_broken",
        "_start_writer",
        "_transport",
        "_until_pass",
        "aborted",
    )

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        flusher: Flusher,
        start_writer: Callable[[], bool],
        on_broken: Callable[[ConnectionClosed], object],
    ) -> None:
        super().__init__(limits)
        self._transport = transport
        self._flusher = flusher
        self._start_writer = start_writer
        self._on_broken = on_broken
        self._corked = False
        self._dirty = False
        self._empty: trio.Event | None = None
        self._until_pass = _SENDS_PER_PASS
        self.aborted: bool = False

    def offer(self, frame: Frame) -> bool:
        """Accept the frame if there is room. Never waits, never raises.

        Returns:
            False where there is no room, or where the connection is closed; also while the peer does not read and the
            frame is a careful one: then look closer, and call `offer_behind`.
        """
        if self._flusher.rounds:
            self._flusher.settle(self)
        if self._writing:
            return not frame.careful and self.offer_behind(frame)
        size = len(frame.wire)
        frames = self._frames
        if frames:
            if self._bytes + size > self._limits.outbox_bytes or len(frames) >= self._limits.outbox_messages:
                return False
            if self._waiting:
                return False  # whoever waits for room came first
        if self._broken is not None:
            return False
        frames.append(frame)
        self._bytes += size
        if not self._dirty and not self._corked:
            self._dirty = True
            self._flusher.add(self)
        return True

    def offer_all(self, frames: Sequence[Frame]) -> bool:
        """Accept all these frames, in their order, or none. Never waits, never raises.

        Returns:
            False where there is no room for all of them, or where the connection is closed.
        """
        if len(frames) < 2:
            return self._broken is None if not frames else self.offer(frames[0])
        self._settle()
        size = size_of(frames)
        if not self._fits_all(len(frames), size):
            self.flush()  # what waits for the end of a pass or a batch may go at once
            if not self._fits_all(len(frames), size):
                return False
        if self._broken is not None:
            return False
        self._frames += frames
        self._bytes += size
        self._changed()
        return self.closed is None

    def _fits_all(self, count: int, size: int) -> bool:
        limits = self._limits
        return (
            len(self._frames) + count <= limits.outbox_messages
            and self._bytes + size <= limits.outbox_bytes
            and not self._waiting
        )

    def _changed(self) -> None:
        if self._writing:
            if self._budget is not None:
                self._budget.charge(self, self._bytes)
        elif self._frames and not self._dirty and not self._corked:
            self._dirty = True
            self._flusher.add(self)

    def push(self, frame: Frame) -> bool:
        """Accept a frame that must not be lost and cannot wait: an error. It may use twice the bounds.

        Returns:
            False where even that is used up, or the connection is closed: disconnect the client.
        """
        if self.offer(frame):
            return True
        self.flush()  # what waits for the end of a batch may go at once
        if self.offer(frame):
            return True
        limits = self._limits
        if (
            self._broken is not None
            or self._bytes + len(frame.wire) > 2 * limits.outbox_bytes
            or len(self._frames) >= 2 * limits.outbox_messages
        ):
            return False
        self._append(frame)
        return self._broken is None

    def send_nowait(self, frame: Frame) -> None:
        """Accept the frame, or raise.

        Raises:
            trio.WouldBlock: there is no room.
            ConnectionClosed: nothing more can be sent.
        """
        if self.offer(frame):
            return
        self.flush()  # what waits for the end of a batch may go at once
        if self.offer(frame):
            return
        if self._broken is not None:
            raise ConnectionClosed(self._broken.code, self._broken.reason)
        raise trio.WouldBlock

    async def send(self, value: Frame) -> None:
        """Accept the frame; wait for room if there is none. Waiting senders are served first come, first served.

        Raises:
            ConnectionClosed: nothing more can be sent; the frame was not sent.

        Cancelled: the frame was not accepted. It is a cancellation point each time, but lets other tasks run only every
        64th time, or when it waits.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.accept(value):
            await self.accept_later(value)

    def accept(self, frame: Frame) -> bool:
        """The usual case of `send`: False where it must wait, or where it is time to let others run."""
        self._until_pass -= 1
        return self._until_pass > 0 and self.offer(frame)

    async def accept_later(self, frame: Frame) -> None:
        """The rest of `send` after `accept` gave False."""
        try:
            self.send_nowait(frame)
        except trio.WouldBlock:
            await self._wait_for_room(frame)
            return
        if self._until_pass <= 0:
            self._until_pass = _SENDS_PER_PASS
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_for_room(self, frame: Frame) -> None:
        sender = _Sender(frame)
        self.wait_for_room(sender)

        def give_up(_: object) -> trio.lowlevel.Abort:
            self.give_up(sender)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    # Leaving.

    def cork(self) -> None:
        """From now until `uncork` collect what is accepted. The caller must not wait in between."""
        self._corked = True

    def uncork(self) -> None:
        """Send what was collected, in one write."""
        self._corked = False
        if self._frames:
            self.flush()

    def take(self, frames: Sequence[Frame], size: int) -> None:
        """See `_flusher.Box`. It may use twice the bounds, where the system takes nothing just then."""
        if self._broken is not None:
            return
        fits = not self._frames or self._fits_all(len(frames), size)
        self._frames += frames
        self._bytes += size
        if fits:
            self._changed()
        else:
            self._flush()

    def pass_on(self, frames: Sequence[Frame], size: int, wires: Shared) -> None:
        """See `_flusher.Box`."""
        if self._frames or self._writing or self._broken is not None:
            self.take(frames, size)
            return
        try:
            left = self._transport.write_nowait(wires)
        except ConnectionClosed as closed:
            self._fail(closed)
            return
        if left:
            self._frames += frames
            self._bytes += size
            self._write_later(left)

    def flush(self) -> None:
        """Hand over to the system what it takes without waiting; the writer task gets the rest."""
        self._settle()
        self._flush()

    def _flush(self) -> None:
        self._dirty = False
        frames = self._frames
        if self._writing or not frames or self._broken is not None:
            return
        try:
            if len(frames) == 1:
                left = self._transport.write_nowait((frames[0].wire,))
            else:
                left = self._transport.write_nowait([frame.wire for frame in frames])
        except ConnectionClosed as closed:
            self._fail(closed)
            return
        if not left:
            frames.clear()
            self._bytes = self._notices = 0
            if self._waiting is not None:
                self._cleared()
            return
        self._write_later(left)

    def _write_later(self, left: Sequence[bytes]) -> None:
        self._keep(left)
        self._settle()  # as long as it is not behind: who publishes was told that it would get it
        self._writing = self._start_writer()
        if self._writing:
            self._falls_behind()
            if self._budget is not None:
                self._budget.charge(self, self._bytes)

    def _settle(self) -> None:
        """Take what is ours of the rounds, before anything else."""
        if self._flusher.rounds:
            self._flusher.settle(self)

    def _cleared(self) -> None:
        """The system has everything: tell those who want to know, and let in who waits."""
        if self._watched:
            watched, self._watched = self._watched, None
            for ticket in watched.values():
                ticket.written()
        self._admit()

    def _keep(self, left: Sequence[bytes]) -> None:
        """Keep what the system did not take; a rest of a frame may not be dropped any more."""
        taken = len(self._frames) - len(left)
        first = self._frames[taken]
        if left[0] is not first.wire:
            self._frames[taken] = Frame(left[0])
        del self._frames[:taken]
        self._bytes = size_of(self._frames)
        self._notices = notices_of(self._frames)

    async def run_writer(self) -> None:
        """Write until nothing waits. Cancelled in the middle of a write: the connection is aborted."""
        try:
            while self._frames:
                batch = self._take_batch()
                with trio.move_on_after(self._limits.write_timeout) as deadline:
                    await self._transport.write([frame.wire for frame in batch])
                if deadline.cancelled_caught:
                    self.abort("the peer did not read in time")
                    return
                if self._bytes:  # else all was forgotten meanwhile
                    self._bytes -= size_of(batch)
                if self._watched:
                    self._tell_written(batch)
                self._admit()
                if self._budget is not None:
                    self._budget.progressed(self)
        except ConnectionClosed as closed:
            self._fail(closed)
        except BaseException:
            self.abort("a write was cancelled")
            raise
        finally:
            self._writing = False
            self._keeps_up()
            if self._budget is not None:
                self._budget.charge(self, 0)
            if self._empty is not None:
                self._empty.set()
                self._empty = None

    def _take_batch(self) -> list[Frame]:
        size = count = 0
        for count, frame in enumerate(self._frames, 1):  # noqa: B007 - count is used after the loop
            size += len(frame.wire)
            if size >= _WRITE_BYTES:
                break
        batch = self._frames[:count]
        del self._frames[:count]
        if self._notices:
            self._notices -= notices_of(batch)
        return batch

    async def drained(self) -> None:
        """Wait until the system has everything, or the connection is closed."""
        self._corked = False
        await trio.lowlevel.checkpoint_if_cancelled()
        self._settle()
        while self._writing or self._frames:
            if not self._writing:
                self._writing = True
                self._falls_behind()
                await self.run_writer()
                continue
            if self._empty is None:
                self._empty = trio.Event()
            await self._empty.wait()  # another frame may be accepted before we are here again

    def abort(self, reason: str = "") -> None:
        """Drop the link at once: a frame may be torn, and nothing may follow it."""
        self.aborted = True
        self._transport.abort()
        self._fail(ConnectionClosed(1006, reason))

    def _fail(self, closed: ConnectionClosed) -> None:
        self.break_off(closed)
        self._on_broken(closed)

    def break_off(self, closed: ConnectionClosed) -> None:
        """Nothing can be sent any more: forget what is queued, and tell who waits."""
        self._forget(closed)

    def forget(self, closed: ConnectionClosed) -> None:
        """Accept nothing more, and forget what waits, but for the first frame: a part of it may be written."""
        self._settle()
        first, size = self._frames[:1], self._bytes
        waiting = size_of(self._frames[1:])
        self.break_off(closed)
        self._frames += first
        self._notices = notices_of(first)
        self._bytes = size - waiting

    async def aclose(self) -> None:
        """Accept nothing more. What was accepted before is still written."""
        self.flush()
        if self._broken is None:
            self._broken = ConnectionClosed(1000, "closed by this side")
            self._falls_behind()
        await trio.lowlevel.checkpoint()
