"""One after the other, in the order in which they came, and one in a pass of the scheduler."""

from __future__ import annotations

from typing import final

import trio

__all__ = ["Turnstile"]


@final
class Turnstile:
    """Lets one through in a pass.

    A `trio.Lock` would do as well, but keeps an exception, its traceback and frames for each who waits: thousands of
    those are what the garbage collector then walks through, while everybody waits for it.
    """

    __slots__ = ("_lot", "_taken")

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()
        self._taken = False

    async def turn(self) -> None:
        """Wait for one's turn, and say `next` then. Cancelled: it was not one's turn."""
        if self._taken:
            await self._lot.park()
            return
        self._taken = True
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self.next()
            raise

    def next(self) -> None:
        """One's turn is over: let the next one through."""
        if not self._lot.unpark():
            self._taken = False
