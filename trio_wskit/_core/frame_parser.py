"""What arrives in pieces becomes whole messages: the receiving half of RFC 6455, for either side, without I/O.

    OPEN ──peer's close──> CLOSED (`closed` holds its code, and the close frame that answers it)
      └──broken protocol─> CLOSED (`closed` holds 1002, 1007 or 1009, and the close frame that says so)

Once closed, nothing that comes is looked at. Our own close (`start_close`) does not stop messages from coming: the peer
may have sent them before it knew; it only means that the peer's close frame needs no answer any more.

One pass over each read: whole data frames take the short way, all others are checked from their header before their
payload is waited for, so that a bad or too large frame is refused before it is buffered.
"""

from __future__ import annotations

import codecs
from typing import Final, final

import attrs

from trio_wskit._core.deflate import inflate
from trio_wskit._core.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Binary,
    close_frame,
    is_close_code,
)
from trio_wskit._core.masking import apply_mask
from trio_wskit.errors import RemoteProtocolError

__all__ = ["Closed", "Control", "FrameParser"]

_WHOLE_TEXT: Final = 0x80 | TEXT
_WHOLE: Final = (_WHOLE_TEXT, 0x80 | BINARY)
_COMPRESSED: Final = 0x40  # RSV1, RFC 7692 section 6
_UTF8: Final = codecs.getincrementaldecoder("utf-8")


@final
@attrs.frozen
class Closed:
    """The end of a conversation.

    Attributes:
        code: the peer's close code (1005 when it gave none), or ours when the peer broke the protocol.
        reason: the peer's text, or ours.
        answer: the close frame to send now; empty when ours has gone out already.
        by_peer: True when a close frame came, False when the protocol was broken.
    """

    code: int
    reason: str
    answer: bytes
    by_peer: bool


@final
@attrs.define
class Control:
    """The payloads of the control frames that came since the last look, in order."""

    pings: list[bytes] = attrs.field(factory=list[bytes])
    pongs: list[bytes] = attrs.field(factory=list[bytes])


@final
class FrameParser:
    """Cuts a byte stream into messages.

    Args:
        client: True when the peer is a server, whose frames are not masked.
        max_message_bytes: the largest message, in bytes of payload after inflating; above it, the answer is 1009.
        max_fragments: frames that one message may come in; above it, the answer is 1008.
        deflate: permessage-deflate was agreed on, without context takeover.

    Attributes:
        control: pings to be answered and pongs; None while there are none. Whoever deals with them sets it to None.
        closed: how the conversation ended; None while it goes on.
    """

    # Idle, this is all there is: no buffer is kept from one message to the next.
    __slots__ = (
        "_announced",
        "_client",
        "_close_sent",
        "_compressed",
        "_count",
        "_deflate",
        "_max_bytes",
        "_max_fragments",
        "_message",
        "_opcode",
        "_partial",
        "_utf8",
        "closed",
        "control",
    )

    def __init__(
        self,
        *,
        client: bool = False,
        max_message_bytes: int = 1 << 20,
        max_fragments: int = 1 << 17,
        deflate: bool = False,
    ) -> None:
        self._client = client
        self._max_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._deflate = deflate
        self.control: Control | None = None
        self.closed: Closed | None = None
        self._close_sent = False
        # The beginning of a frame whose rest has not come, and how many bytes there must be before a look is worth it.
        self._partial: bytearray | None = None
        self._announced = 0
        # The fragments of an unfinished message, joined; None when there is none.
        self._message: bytearray | None = None
        self._opcode = CONTINUATION
        self._compressed = False
        self._count = 0
        self._utf8: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take what one read gave; return the messages that are now whole, text as UTF-8, binary as `Binary`.

        Look at `control` and `closed` afterwards. Messages that came before a close or an error are returned.
        """
        if self.closed is not None:
            return []
        partial = self._partial
        if partial is not None:
            partial += data
            if len(partial) < self._announced:
                return []
            data = bytes(partial)
            self._partial = None
        messages: list[bytes] = []
        try:
            rest = self._cut(data, messages)
        except RemoteProtocolError as exc:
            self._end(exc.close_code, str(exc), by_peer=False)
            return messages
        except UnicodeDecodeError:
            self._end(1007, "text that is not UTF-8", by_peer=False)
            return messages
        if rest < len(data) and self.closed is None:
            self._partial = bytearray(data[rest:] if rest else data)
        return messages

    def start_close(self, code: int = 1000, reason: str = "") -> bytes:
        """Make our close frame; from now on the peer's is not answered.

        Raises:
            LocalProtocolError: as `close_frame`; nothing has changed then.
        """
        whole = close_frame(code, reason)
        self._close_sent = True
        return whole

    def _cut(self, data: bytes, messages: list[bytes]) -> int:
        """Take every whole frame of `data`; return where the first unfinished one begins."""
        end = len(data)
        at = 0
        key_size, mask_bit = (0, 0) if self._client else (4, 0x80)
        max_bytes = self._max_bytes
        while end - at >= 2:
            first = data[at]
            second = data[at + 1]
            length = second & 0x7F
            whole = first in _WHOLE and self._message is None
            if not whole or second & 0x80 != mask_bit:
                self._check_head(first, second, mask_bit)
            start = at + 2 + key_size
            if length > 125:
                size = 2 if length == 126 else 8
                start += size
                if at + 2 + size > end:
                    self._announced = 2 + size
                    return at
                length = _long_length(data, at + 2, size)
            if length > max_bytes and not first & 0x8:  # control frames are short already
                raise _too_big(length, max_bytes)
            stop = start + length
            if stop > end:
                if not whole:
                    self._check_sum(first, length)
                self._announced = stop - at
                return at
            payload = apply_mask(data[start:stop], data[start - 4 : start]) if key_size else data[start:stop]
            at = stop
            if not whole:
                self._take(first, payload, messages)
                if self.closed is not None:
                    return at
            elif first == _WHOLE_TEXT:
                if not payload.isascii():
                    payload.decode()
                messages.append(payload)
            else:
                messages.append(Binary(payload))
        self._announced = 2
        return at

    def _check_head(self, first: int, second: int, mask_bit: int) -> None:
        """Refuse what no payload can put right, from the first two bytes (RFC 6455 sections 5.1 to 5.5)."""
        if second & 0x80 != mask_bit:
            raise RemoteProtocolError("a frame that is not masked" if mask_bit else "a masked frame from a server")
        opcode = first & 0x0F
        if first & 0x70 and not (first & 0x70 == _COMPRESSED and self._deflate and opcode in (TEXT, BINARY)):
            raise RemoteProtocolError("reserved bits that were not agreed on")
        if opcode in (CLOSE, PING, PONG):
            if not first & 0x80:
                raise RemoteProtocolError("a control frame in fragments")
            if second & 0x7F > 125:
                raise RemoteProtocolError("a control frame of more than 125 bytes")
        elif opcode in (TEXT, BINARY):
            if self._message is not None:
                raise RemoteProtocolError("a new message inside an unfinished one")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise RemoteProtocolError("a continuation of nothing")
        else:
            raise RemoteProtocolError(f"a frame of the reserved kind {opcode}")

    def _check_sum(self, first: int, length: int) -> None:
        """Refuse a fragment from its header when the message becomes too large with it."""
        if self._message is not None and first & 0x0F == CONTINUATION and len(self._message) + length > self._max_bytes:
            raise _too_big(len(self._message) + length, self._max_bytes)

    def _take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """Take one whole frame that is a control frame, a fragment, or compressed."""
        opcode = first & 0x0F
        if opcode & 0x8:
            self._take_control(opcode, payload)
            return
        message = self._message
        if message is None:
            self._opcode = opcode
            self._compressed = bool(first & _COMPRESSED)
            if first & 0x80:
                messages.append(self._finish(payload))
                return
            message = self._message = bytearray()
            self._count = 0
            self._utf8 = _UTF8() if opcode == TEXT and not self._compressed else None
        self._check_sum(first, len(payload))
        message += payload
        self._count += 1
        if self._count > self._max_fragments:
            raise RemoteProtocolError(f"a message in more than {self._max_fragments} fragments", 1008)
        final_one = bool(first & 0x80)
        if self._utf8 is not None:
            self._utf8.decode(payload, final_one)  # refuses bad text as soon as it shows, not at the message's end
        if final_one:
            self._message = self._utf8 = None
            messages.append(self._finish(bytes(message)))

    def _finish(self, payload: bytes) -> bytes:
        if self._compressed:
            payload = inflate(payload, self._max_bytes)
            if self._opcode == TEXT:
                payload.decode()
        return Binary(payload) if self._opcode == BINARY else payload

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._take_close(payload)
            return
        if self.control is None:
            self.control = Control()
        (self.control.pings if opcode == PING else self.control.pongs).append(payload)

    def _take_close(self, payload: bytes) -> None:
        if not payload:
            self._end(1005, "", by_peer=True)
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) < 2 or not is_close_code(code):
            raise RemoteProtocolError("a close frame without a valid code")
        self._end(code, payload[2:].decode(), by_peer=True)

    def _end(self, code: int, reason: str, *, by_peer: bool) -> None:
        # The same goes back (RFC 6455 section 5.5.1 asks for the code alone; but it is what the peer shows its user).
        answer = b"" if self._close_sent else close_frame(code, reason)
        self.closed = Closed(code, reason, answer, by_peer)
        self._close_sent = True
        self._partial = self._message = self._utf8 = None


def _long_length(data: bytes, at: int, size: int) -> int:
    """Read a length of 2 or 8 bytes; it must be the shortest form, and below 2 to the 63rd (RFC 6455 section 5.2)."""
    length = int.from_bytes(data[at : at + size], "big")
    if length < (126 if size == 2 else 65536) or length >= 1 << 63:
        raise RemoteProtocolError("a frame length that is not in its shortest form")
    return length


def _too_big(length: int, limit: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a message of {length} bytes or more, above the limit of {limit}", 1009)
