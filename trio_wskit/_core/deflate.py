"""permessage-deflate (RFC 7692) without context takeover: each message stands alone, nothing is kept between two."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

from trio_wskit._core.frames import BINARY, TEXT, frame, payload_of
from trio_wskit.errors import RemoteProtocolError

__all__ = ["MAX_WINDOW_BITS", "MIN_DEFLATED_BYTES", "deflated", "inflate"]

MAX_WINDOW_BITS: Final = 15

# Below this a message gains little, and often grows.
MIN_DEFLATED_BYTES: Final = 128

# An empty stored block: what a sync flush ends with, and what the sender takes away (RFC 7692 section 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"
_FIN_AND_RSV1: Final = 0xC0

# Eight frames of at most this size are remembered, with what they became.
_MAX_REMEMBERED_BYTES: Final = 65536


def inflate(payload: bytes, max_bytes: int) -> bytes:
    """Inflate one message; memory is bounded by `max_bytes`, however small the message was.

    Raises:
        RemoteProtocolError: 1009 above `max_bytes`, 1007 when it is not a deflate stream.
    """
    inflater = zlib.decompressobj(-MAX_WINDOW_BITS)
    try:
        data = inflater.decompress(payload + _TAIL, max_bytes + 1)
    except zlib.error as exc:
        raise RemoteProtocolError("a compressed message that cannot be inflated", 1007) from exc
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"a compressed message above the limit of {max_bytes} bytes", 1009)
    # A sender may end its stream with a final block, and then must pad (section 7.2.3.4); more after it is refused,
    # since a message made of many tiny streams would cost us far more than its sender.
    if inflater.eof and inflater.unused_data not in (_TAIL, b"\x00" + _TAIL):
        raise RemoteProtocolError("a compressed message with data after its end", 1007)
    return data


def deflated(whole: bytes, window_bits: int = MAX_WINDOW_BITS) -> bytes:
    """Turn one whole unmasked frame into its compressed form; the same frame where that gains nothing.

    A frame that goes to many peers in turn is compressed for the first of them, and remembered for the others.

    Args:
        whole: exactly one frame; control frames and short messages come back as they are.
        window_bits: 9 to 15, as agreed on in the handshake.
    """
    if whole[0] & 0x0F not in (TEXT, BINARY) or len(whole) < MIN_DEFLATED_BYTES:
        return whole
    return (
        _deflated_before(whole, window_bits) if len(whole) <= _MAX_REMEMBERED_BYTES else _deflated(whole, window_bits)
    )


def _deflated(whole: bytes, window_bits: int) -> bytes:
    # Level 6 as everywhere; but with zlib's own memory level of 8, clearing its tables takes 40 µs a message, with 5 it
    # takes 4.
    deflater = zlib.compressobj(wbits=-window_bits, memLevel=5)
    data = deflater.compress(payload_of(whole)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    smaller = frame(whole[0] & 0x0F, data[: -len(_TAIL)], first_bits=_FIN_AND_RSV1)
    return smaller if len(smaller) < len(whole) else whole


_deflated_before: Final = lru_cache(maxsize=8)(_deflated)
