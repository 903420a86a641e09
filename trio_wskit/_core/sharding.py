"""Which shard a topic belongs to: ws-kit's own hash, so that both sides agree; and the slot of a Redis cluster."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

from trio_wskit.errors import ConfigError

__all__ = ["shard_of", "slot_of", "topic_hash"]

_MASK: Final = 0xFFFF_FFFF


def topic_hash(topic: str) -> int:
    """The 32-bit hash of a topic: ``h = 31 h + unit`` over its UTF-16 code units, as JavaScript counts them."""
    units = memoryview(topic.encode("utf-16-le", "surrogatepass")).cast("H")
    value = 0
    for unit in units:
        value = (value * 31 + unit) & _MASK
    return value


def shard_of(topic: str, shards: int, prefix: str = "ws-router") -> str:
    """The name of the topic's shard, ``{prefix}-{number}``.

    Args:
        topic: any text.
        shards: how many there are, at least 1. Another number moves nearly every topic.
        prefix: what the names begin with.

    Raises:
        ConfigError: `shards` is no whole number above 0.
    """
    if isinstance(shards, bool) or shards < 1:
        raise ConfigError(f"shard_of() takes at least 1 shard, not {shards!r}")
    return f"{prefix}-{topic_hash(topic) % shards}"


def slot_of(name: str) -> int:
    """The slot of a channel or a key in a cluster: CRC16 of the text in its first pair of braces, or of all of it.

    https://valkey.io/topics/cluster-spec/#key-distribution-model
    """
    start = name.find("{")
    end = name.find("}", start + 1) if start >= 0 else -1
    return crc_hqx((name[start + 1 : end] if end > start + 1 else name).encode(), 0) % 16384
