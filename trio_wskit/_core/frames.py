"""RFC 6455 frames, made and taken apart whole. No I/O, no state; see `frame_parser` for what arrives in pieces.

What travels inside the package is the server's own form: one whole, unmasked frame. A client masks it on its way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self, final

from trio_wskit._core.masking import apply_mask
from trio_wskit.errors import LocalProtocolError

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Binary",
    "Shared",
    "binary_frame",
    "close_frame",
    "close_payload",
    "frame",
    "is_close_code",
    "masked",
    "payload_of",
    "ping_frame",
    "pong_frame",
    "text_frame",
]

# Opcodes, RFC 6455 section 5.2.
CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_MASKED: Final = 0x80
_MAX_CONTROL_PAYLOAD: Final = 125
_TABLED: Final = 1024


@final
class Binary(bytes):
    """The payload of a binary message; plain `bytes` is that of a text message, as UTF-8."""

    __slots__ = ()


@final
class Shared(tuple[bytes, ...]):  # noqa: SLOT001 - a tuple can have no slots but empty ones
    """Frames that many links send.

    Attributes:
        joined: all of them, one behind the other: made once for all links.
    """

    joined: bytes

    def __new__(cls, frames: Iterable[bytes]) -> Self:
        self = super().__new__(cls, frames)
        self.joined = b"".join(self)
        return self


def text_frame(payload: bytes) -> bytes:
    """Make the one frame of a text message. `payload` is UTF-8, which is not looked at again."""
    length = len(payload)
    return _TEXT_HEADS[length] + payload if length < _TABLED else frame(TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Make the one frame of a binary message."""
    return frame(BINARY, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Make a ping of at most 125 bytes.

    Raises:
        LocalProtocolError: the payload is longer (RFC 6455 section 5.5).
    """
    return _control_frame(PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    """Make the pong that answers a ping of the same payload.

    Raises:
        LocalProtocolError: the payload is longer than 125 bytes (RFC 6455 section 5.5).
    """
    return _control_frame(PONG, payload)


def close_frame(code: int = 1000, reason: str = "") -> bytes:
    """Make a close frame.

    Args:
        code: one that may be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999. 1005 makes the frame without a code.
        reason: at most 123 bytes of UTF-8.

    Raises:
        LocalProtocolError: the code may not be sent, or the reason is too long or not UTF-8.
    """
    return _control_frame(CLOSE, close_payload(code, reason))


def close_payload(code: int, reason: str) -> bytes:
    """Make what a close frame carries; arguments and errors as `close_frame`."""
    if code == 1005 and not reason:
        return b""
    if not is_close_code(code):
        raise LocalProtocolError(
            f"close code {code} may not be sent: take 1000 to 1003, 1007 to 1014 or 3000 to 4999 (RFC 6455 section 7.4)"
        )
    try:
        text = reason.encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"the reason of a close must be UTF-8, and {reason!r} cannot be") from exc
    return code.to_bytes(2, "big") + text


def is_close_code(code: int) -> bool:
    """Whether a close code may be on the wire (RFC 6455 section 7.4, and the codes registered with IANA since)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def frame(opcode: int, payload: bytes, *, first_bits: int = _FIN) -> bytes:
    """Make an unmasked frame; `first_bits` are FIN (0x80) and RSV1 to 3 (0x40, 0x20, 0x10)."""
    return _head(first_bits | opcode, len(payload)) + payload


def _head(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126, length >> 8, length & 0xFF))
    return bytes((first, 127)) + length.to_bytes(8, "big")


# Of every whole text message up to this size: most frames are one of these and a payload.
_TEXT_HEADS: Final = tuple(_head(_FIN | TEXT, length) for length in range(_TABLED))


def masked(whole: bytes, key: bytes) -> bytes:
    """Turn one whole unmasked frame into what a client must send.

    Args:
        whole: exactly one frame.
        key: 4 bytes that nobody could foresee (RFC 6455 section 10.3); a new one for each frame.
    """
    start = _payload_start(whole)
    head = bytearray(whole[:start])
    head[1] |= _MASKED
    return bytes(head) + key + apply_mask(whole[start:], key)


def payload_of(whole: bytes) -> bytes:
    """Give back what `text_frame` or `binary_frame` was called with: `Binary` for a binary frame."""
    payload = whole[_payload_start(whole) :]
    return Binary(payload) if whole[0] & 0x0F == BINARY else payload


def _control_frame(opcode: int, payload: bytes) -> bytes:
    if len(payload) > _MAX_CONTROL_PAYLOAD:
        raise LocalProtocolError(
            f"a control frame carries at most {_MAX_CONTROL_PAYLOAD} bytes, not {len(payload)} (RFC 6455 section 5.5)"
        )
    return frame(opcode, payload)


def _payload_start(whole: bytes) -> int:
    length = whole[1]
    return 2 if length < 126 else 4 if length == 126 else 10
