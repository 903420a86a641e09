"""XOR with a repeated 4-byte key (RFC 6455 section 5.3): in C where the websockets package is there, else by ints."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["apply_mask", "apply_mask_by_integers"]


def apply_mask_by_integers(data: bytes, key: bytes) -> bytes:
    """XOR `data` with the 4 bytes of `key`, over and over: one operation on two very large numbers."""
    size = len(data)
    repeated = key * (size // 4) + key[: size % 4]
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


apply_mask: Callable[[bytes, bytes], bytes]
try:
    # Not a documented name of that package, so its absence is no error (it is built in C only where a compiler was).
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = apply_mask_by_integers
