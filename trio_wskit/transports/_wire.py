"""What every native link does, whatever carries its bytes: parse, answer control frames, match pongs to pings.

Rules
- The parser is fed by whoever reads: `receive`, the poller, or `aclose`; never two of them at a time.
- Frames of our own (pongs, pings, the close) collect in `_urgent` and go out at the next frame boundary.
- `_closing` is set when we begin to close, `_end` when the conversation is over. After either, a frame that was begun
  is finished and a close frame follows, but nothing else is sent (RFC 6455 section 5.5.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from typing import Final

import trio

from trio_wskit._core.deflate import deflated
from trio_wskit._core.frame_parser import Control, FrameParser
from trio_wskit._core.frames import masked, ping_frame, pong_frame
from trio_wskit.errors import ConnectionClosed

__all__ = ["READ_BYTES", "Wire"]

READ_BYTES: Final = 65536

# A peer that sends pings but reads no pongs gets no more of them.
_MAX_URGENT_BYTES: Final = 16384

_ping_numbers: Final = count(1)


class Wire:
    """The part that native links share.

    Args:
        client: our frames are masked, the peer's are not.
        leftover: what was read behind the handshake's head.
        max_message_bytes: larger messages are refused with 1009, a single frame from its header.
        max_fragments: frames that one message may come in; more are refused with 1008.
        deflate_window_bits: permessage-deflate was agreed on; None when not.
    """

    __slots__ = (
        "_changed",
        "_closing",
        "_end",
        "_leftover",
        "_mask",
        "_parser",
        "_pinged",
        "_plain",
        "_receiving",
        "_urgent",
        "_window_bits",
        "_writing",
    )

    def __init__(
        self,
        *,
        client: bool,
        leftover: bytes,
        max_message_bytes: int,
        max_fragments: int,
        deflate_window_bits: int | None,
    ) -> None:
        self._parser = FrameParser(
            client=client,
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            deflate=deflate_window_bits is not None,
        )
        self._mask = client
        self._window_bits = deflate_window_bits
        self._plain = not client and deflate_window_bits is None  # frames go out as they come from above
        self._leftover = leftover
        self._urgent: bytes = b""
        self._end: tuple[int, str] | None = None
        self._closing: tuple[int, str] | None = None
        self._receiving = False
        self._writing = False
        self._changed: trio.Event | None = None  # somebody waits for a reader or writer to leave
        self._pinged: dict[bytes, trio.Event] | None = None

    def _closed(self) -> ConnectionClosed:
        """Why nothing more comes, or is sent."""
        code, reason = self._end or self._closing or (1006, "")
        return ConnectionClosed(code, reason)

    def _parse(self, data: bytes) -> list[bytes]:
        """Take one read; empty means that the peer will send no more. `_conclude` once the messages are dealt with."""
        parser = self._parser
        if not data:
            self._finish(1006, "")
            return []
        messages = parser.feed(data)
        if parser.control is not None:
            self._take_control(parser.control)
            parser.control = None
        return messages

    def _conclude(self) -> None:
        """Answer the peer's close, or its error. Messages that came before have had their chance to be answered."""
        closed = self._parser.closed
        if closed is not None and self._end is None:
            if closed.answer:
                self._say(closed.answer)
            self._finish(closed.code, closed.reason)

    def _take_control(self, control: Control) -> None:
        for payload in control.pongs:
            if self._pinged is not None and (pong := self._pinged.pop(payload, None)) is not None:
                pong.set()
        for payload in control.pings:
            if len(self._urgent) > _MAX_URGENT_BYTES:
                return
            self._say(pong_frame(payload))

    def _say(self, whole: bytes) -> None:
        """Put a control frame of ours in front of what is written next."""
        if self._end is None and self._closing is None:
            self._urgent += masked(whole, os.urandom(4)) if self._mask else whole

    def _start_close(self, code: int, reason: str) -> None:
        """Say goodbye, unless that has been said."""
        self._conclude()
        if self._end is None and self._closing is None:
            self._say(self._parser.start_close(code, reason))
            self._closing = (code, reason)

    def _finish(self, code: int, reason: str) -> None:
        """The conversation is over; tell whoever waits."""
        if self._end is None:
            self._end = (code, reason)
        if self._pinged is not None:
            for pong in self._pinged.values():
                pong.set()  # but it stays here, as one that did not come
        self._wake()

    def _start_receiving(self) -> None:
        if self._receiving:
            if self._closing is not None:
                raise self._closed()  # whoever closes reads now, and throws away what comes
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _wait_for_change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _dressed(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Give frames the form that this link's peer wants: compressed, masked."""
        if self._window_bits is not None:
            bits = self._window_bits
            frames = [deflated(one, bits) for one in frames]
        if self._mask:
            # RFC 6455 section 10.3: from a source that nobody can foresee.
            frames = [masked(one, os.urandom(4)) for one in frames]
        return frames

    def _new_ping(self) -> tuple[bytes, trio.Event]:
        payload = next(_ping_numbers).to_bytes(8, "big")
        if self._pinged is None:
            self._pinged = {}
        pong = self._pinged[payload] = trio.Event()
        self._say(ping_frame(payload))
        return payload, pong

    def _forget_ping(self, payload: bytes) -> bool:
        """True if its pong has come."""
        if self._pinged is None:
            return True
        answered = self._pinged.pop(payload, None) is None
        if not self._pinged:
            self._pinged = None
        return answered
