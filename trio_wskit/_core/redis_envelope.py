"""What goes over Redis: names of channels, and the envelope. See docs/explanation/decisions/0048-the-redis-envelope.md.

An envelope is one JSON object: what ws-kit's servers send (topic, payload, type, meta, the excluded client within the
meta), and behind it three keys that ws-kit's servers do not look at: ``v``, the version; ``origin``, which process
sent it; ``id``, which of its messages it is. So one format serves both, and what a process published itself, or has
heard already, is known by them.
"""

from __future__ import annotations

from typing import Any, Final, Literal, final

from trio_wskit._core.codec import is_deeper_than
from trio_wskit._core.envelope import RESERVED_PREFIXES
from trio_wskit._core.json_text import dumps, loads
from trio_wskit._core.publishing import LOCAL_META, PublishEnvelope

__all__ = [
    "BadEnvelope",
    "Fault",
    "decode_envelope",
    "encode_envelope",
    "escape_glob",
    "glob_of",
]

VERSION: Final = 1
_MAX_NAME: Final = 64  # of an origin and an id: they are remembered
_GLOB: Final = str.maketrans({one: f"\\{one}" for one in "*?[]\\"})

Fault = Literal["too big", "too deep", "not JSON", "another version", "not an envelope"]


@final
class BadEnvelope(ValueError):
    """What came over Redis is no envelope that can be read.

    Attributes:
        fault: why, in one of a few words.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault: Fault = fault


def encode_envelope(envelope: PublishEnvelope) -> bytes:
    """Write an envelope. Its meta is JSON, its payload JSON text.

    Raises:
        TypeError: the meta is not JSON.
    """
    parts = [b'{"topic":', dumps(envelope.topic)]
    payload = envelope.payload
    if payload is not None:
        parts += (b',"payload":', payload)
    parts += (b',"type":', dumps(envelope.type))
    meta = envelope.meta
    if envelope.exclude is not None:
        meta = {**meta, LOCAL_META: envelope.exclude}
    if meta:
        parts += (b',"meta":', dumps(dict(meta)))
    parts.append(b',"v":%d' % VERSION)
    if envelope.origin is not None:
        parts += (b',"origin":', dumps(envelope.origin))
    if envelope.id is not None:
        parts += (b',"id":', dumps(envelope.id))
    parts.append(b"}")
    return b"".join(parts)


def decode_envelope(data: bytes, *, foreign: bool, max_bytes: int, max_depth: int) -> PublishEnvelope:
    """Read an envelope.

    Args:
        data: what came.
        foreign: take also what names no version, as ws-kit's servers send it.
        max_bytes: the largest that is accepted.
        max_depth: how deep arrays and objects may nest, the envelope itself being the first level; up to 200.

    Raises:
        BadEnvelope: it cannot be read, and nothing else is raised, whatever came.
    """
    if len(data) > max_bytes:
        raise BadEnvelope("too big")
    if data.count(b"[") + data.count(b"{") > max_depth and is_deeper_than(data, max_depth):
        raise BadEnvelope("too deep")
    try:
        found: Any = loads(data)
    except ValueError:
        raise BadEnvelope("not JSON") from None
    if type(found) is not dict:
        raise BadEnvelope("not an envelope")
    root: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
    version: Any = root.get("v")
    if (version is None and not foreign) or (version is not None and (type(version) is not int or version != VERSION)):
        raise BadEnvelope("another version")
    origin: Any = root.get("origin")
    id_: Any = root.get("id")
    topic: Any = root.get("topic")
    type_name: Any = root.get("type")
    meta: Any = root.get("meta")
    if meta is None:
        meta = {}
    if (
        type(topic) is not str
        or not topic
        or "*" in topic  # a name with a star is a pattern, and nobody publishes to one
        or type(type_name) is not str
        or not type_name
        or type_name.startswith(RESERVED_PREFIXES)
        or type(meta) is not dict
        or not _is_name(origin)
        or not _is_name(id_)
    ):
        raise BadEnvelope("not an envelope")
    keys: dict[str, Any] = meta  # pyright: ignore[reportUnknownVariableType]
    exclude: Any = keys.pop(LOCAL_META, None)
    if exclude is not None and type(exclude) is not str:
        raise BadEnvelope("not an envelope")
    # Written anew rather than cut out: then it is JSON, and no more than that, for whoever gets it.
    payload = dumps(root["payload"]) if "payload" in root else None
    return PublishEnvelope(topic, type_name, payload, keys, exclude, None, origin, id_)


def _is_name(value: Any) -> bool:
    return value is None or (type(value) is str and 0 < len(value) <= _MAX_NAME)


def escape_glob(text: str) -> str:
    """The pattern of Redis that matches this text and no other."""
    return text.translate(_GLOB)


def glob_of(prefix: str, pattern: str) -> str:
    """The pattern of Redis for the channels whose topics match a pattern of ours; it matches a few more.

    Redis knows no segments: its star goes over colons. Whoever gets what comes looks the topic up again.
    """
    segments = ["*" if segment in ("*", "**") else escape_glob(segment) for segment in pattern.split(":")]
    return escape_glob(prefix) + ":".join(segments)
