"""What the client hands on: bounded, with a policy for when nobody takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Literal, TypeVar, cast, final

import trio

from trio_wskit.errors import ConfigError

__all__ = ["Bell", "Overflow", "Stream", "again", "check_bounds"]

Overflow = Literal["wait", "drop_oldest", "drop_newest"]

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# While a request waits for its answer, the client must go on reading: the answer may be behind what nobody takes.
# A stream that waits may hold so many times its capacity then.
_STRETCH: Final = 8


def again(error: E) -> E:
    """A copy of an exception that several will raise, so that each has a traceback of its own."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__suppress_context__ = error.__suppress_context__
    return copy


def check_bounds(capacity: int, overflow: Overflow) -> None:
    """Refuse a capacity that is no whole number above 0, and an overflow policy that does not exist."""
    if not isinstance(cast("object", capacity), int) or capacity < 1:
        raise ConfigError(f"capacity takes a whole number above 0, not {capacity!r}")
    if overflow not in ("wait", "drop_oldest", "drop_newest"):
        raise ConfigError(f"overflow takes 'wait', 'drop_oldest' or 'drop_newest', not {overflow!r}")


@final
class Bell:
    """Wakes who waits for something to change, and lets them look for themselves."""

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def ring(self) -> None:
        """Wake everybody who waits now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next ring."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


@final
class Stream(trio.abc.ReceiveChannel[T], Generic[T]):
    """What has come and waits to be taken, in its order. Iterate over it, or call `receive`.

    Args:
        capacity: items.
        overflow: what happens to an item for which there is no room: the client stops reading until there is (``wait``;
            the server is then pushed back), or the oldest or the newest item is dropped, and counted.
        on_room: called when an item was taken, and when the stream is closed.
        gap: makes the item that stands where items were dropped, from their number.
    """

    def __init__(
        self,
        capacity: int,
        overflow: Overflow = "wait",
        *,
        on_room: Callable[[], None] = lambda: None,
        gap: Callable[[int], T] | None = None,
    ) -> None:
        check_bounds(capacity, overflow)
        self.dropped: int = 0
        self.capacity: Final = capacity
        self.overflow: Final = overflow
        self._items: deque[T] = deque()
        self._on_room = on_room
        self._gap = gap
        self._lost_before = 0  # dropped since the last gap: older than every item here
        self._lost_behind = 0  # newer than every item here
        self._takers = trio.lowlevel.ParkingLot()
        self._ended = False
        self._error: Exception | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def must_wait(self, *, stretch: bool) -> bool:
        """True where the one who puts has to wait for `on_room`; `stretch` while a request waits for its answer."""
        if self.overflow != "wait" or self._closed or self._ended:
            return False
        return len(self._items) >= self.capacity * (_STRETCH if stretch else 1)

    def put(self, item: T) -> None:
        """Add an item. For ``wait``, whoever calls has asked `must_wait`."""
        if self._closed or self._ended:
            return
        if self.overflow != "wait" and len(self._items) >= self.capacity:
            self.dropped += 1
            if self.overflow == "drop_newest":
                self._lost_behind += 1
                return
            self._items.popleft()
            self._lost_before += 1
        elif self._lost_behind:
            self._mark_lost_behind()
        self._items.append(item)
        self._takers.unpark()

    def _mark_lost_behind(self) -> None:
        if self._gap is not None:
            self._items.append(self._gap(self._lost_behind))
        self._lost_behind = 0

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come: after what is here, iteration ends, or raises `error`."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._takers.unpark_all()

    async def receive(self) -> T:
        """Take the oldest item; wait if there is none.

        Raises:
            trio.EndOfChannel: nothing more will come. (Iteration then ends.)
            ConnectionClosed: the client has given up; or what else ended it, such as the error of a subscription.
            trio.ClosedResourceError: the stream was closed on this side.

        Cancelled: nothing was taken.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._closed:
            if self._lost_before:
                lost, self._lost_before = self._lost_before, 0
                if self._gap is not None:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    return self._gap(lost)
            if not self._items and self._lost_behind:
                self._mark_lost_behind()
            if self._items:
                item = self._items.popleft()
                self._on_room()
                await trio.lowlevel.cancel_shielded_checkpoint()
                return item
            if self._ended:
                await trio.lowlevel.cancel_shielded_checkpoint()
                if self._error is not None:
                    raise again(self._error)
                raise trio.EndOfChannel
            await self._takers.park()
        raise trio.ClosedResourceError

    def close(self) -> None:
        """Take nothing more; what is here is dropped."""
        self._closed = True
        self._items.clear()
        self._takers.unpark_all()
        self._on_room()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()
        await trio.lowlevel.checkpoint()
