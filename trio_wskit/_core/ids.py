"""Connection ids: UUID version 7 (RFC 9562 section 5.7), which sort by the time they were made."""

from __future__ import annotations

import uuid

__all__ = ["uuid7"]


def uuid7(milliseconds: int, random: bytes) -> str:
    """Make an id.

    Args:
        milliseconds: since 1970, below 2**48.
        random: 10 bytes, of which 74 bits are used.
    """
    head = milliseconds.to_bytes(6, "big")
    version = bytes((0x70 | random[0] & 0x0F, random[1]))
    variant = bytes((0x80 | random[2] & 0x3F,)) + random[3:10]
    return str(uuid.UUID(bytes=head + version + variant))
