"""Bytes to `Envelope`, and the frames of fixed shape (errors, progress, heartbeat) to bytes.

`decode` raises `MalformedMessage` and `MessageTooBig` and nothing else, whatever the bytes are.
"""

from __future__ import annotations

from itertools import accumulate
from math import ceil, isfinite
from typing import Any, Final

from trio_wskit._core.envelope import (
    ABSENT,
    CONTROL_TYPES,
    ERROR,
    HEARTBEAT_ACK,
    META_RULES,
    PROGRESS,
    RESERVED_META,
    RESERVED_PREFIXES,
    RPC_ERROR,
    Envelope,
    is_reserved,
)
from trio_wskit._core.json_text import dumps, is_json, loads
from trio_wskit._core.sanitise import safe_details, safe_text
from trio_wskit._core.schema import find_spec
from trio_wskit.errors import MalformedMessage, MessageTooBig, PayloadInvalid, WsKitError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_DEPTH",
    "MAX_ISSUES",
    "decode",
    "encode_error",
    "encode_heartbeat_ack",
    "encode_progress",
    "is_deeper_than",
]

DEFAULT_MAX_BYTES: Final = 1_000_000
DEFAULT_MAX_DEPTH: Final = 64

_RESERVED_LETTERS: Final = frozenset(prefix[0] for prefix in RESERVED_PREFIXES)

MAX_ISSUES: Final = 50
"""Issues in one error frame: a refusal must not be much larger than what it refuses."""


def decode(
    data: bytes,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_depth: int = DEFAULT_MAX_DEPTH,
    from_server: bool = False,
) -> Envelope:
    """Read one message.

    Args:
        data: the payload of a text or a binary message; UTF-8.
        max_bytes: the largest size that is accepted, in bytes.
        max_depth: how deep arrays and objects may nest, from 1 to 1,000; the envelope itself is the first level.
        from_server: we are the client. Reserved types are taken, a progress' value is found under `data` or `payload`,
            and the meta is not judged: a correlation id that is none is as good as absent.

    Raises:
        MessageTooBig: found before anything is parsed.
        MalformedMessage: not JSON (NaN, Infinity, numbers beyond a float's range and lone surrogates are not), nested
            too deep, not an object, no type, a reserved type, or a standard meta key of a wrong type. Its
            `correlation_id` is set if it could be read.
    """
    size = len(data)
    if size > max_bytes:
        raise MessageTooBig(size, max_bytes)
    # A level takes two bytes, so a small message is never too deep, and counting is next to nothing for the others;
    # what has that many brackets at all is looked at closely. (The library has a limit of its own, above 1,000.)
    if size > 2 * max_depth and data.count(b"[") + data.count(b"{") > max_depth and is_deeper_than(data, max_depth):
        raise MalformedMessage(f"Not acceptable JSON: nested deeper than {max_depth} levels")
    try:
        found: Any = loads(data if type(data) is bytes else bytes(data))  # the library takes no subclass of bytes
    except ValueError:
        raise MalformedMessage("Not valid JSON") from None
    if type(found) is not dict:
        raise MalformedMessage("Not an envelope: expected an object")
    root: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
    meta: Any = root.get("meta")
    correlation_id: Any = None
    if meta:
        correlation_id = _id_in_answer(meta) if from_server else _check_meta(meta)
    elif type(meta) is not dict:
        if meta is not None:
            raise MalformedMessage("meta: expected an object")
        meta = {}
    type_name: Any = root.get("type")
    if type(type_name) is not str:
        raise MalformedMessage("Not an envelope: type must be a string", correlation_id=correlation_id)
    payload: Any = root.get("payload", ABSENT)
    # The first letter is looked at first: it costs half of the rest, and settles it.
    if type_name[:1] in _RESERVED_LETTERS and is_reserved(type_name) and type_name not in CONTROL_TYPES:
        if not from_server:
            raise MalformedMessage("Reserved message type", correlation_id=correlation_id)
        if type_name == PROGRESS:
            payload = root.get("data", payload)
    return Envelope(type_name, meta, payload, correlation_id)  # pyright: ignore[reportUnknownArgumentType]


def _id_in_answer(meta: Any) -> str | None:
    if type(meta) is not dict:
        raise MalformedMessage("meta: expected an object")
    keys: dict[str, Any] = meta  # pyright: ignore[reportUnknownVariableType]
    found: Any = keys.get("correlationId")
    return found if type(found) is str and found else None


def _check_meta(meta: Any) -> Any:
    """Refuse wrong types, strip what only the server may set, and give the correlation id."""
    if type(meta) is not dict:
        raise MalformedMessage("meta: expected an object")
    keys: dict[str, Any] = meta  # pyright: ignore[reportUnknownVariableType]
    correlation_id: Any = keys.get("correlationId")
    # The two keys that nearly every message has are looked at in place: with only those, nothing else is to be done.
    others = len(keys)
    if type(correlation_id) is str and correlation_id:
        others -= 1
    if type(keys.get("timestamp")) is int:
        others -= 1
    if others:
        for key, value in keys.items():
            if key in META_RULES and not META_RULES[key].accepts(value):
                readable = correlation_id if META_RULES["correlationId"].accepts(correlation_id) else None
                raise MalformedMessage(f"meta.{key}: expected {META_RULES[key].expected}", correlation_id=readable)
        for key in RESERVED_META:
            keys.pop(key, None)
    return correlation_id


def is_deeper_than(data: bytes, max_depth: int) -> bool:
    """True if JSON text nests more than `max_depth` levels of arrays and objects.

    Text that is not JSON is counted alike. Every step runs in C, in time proportional to the text, whatever is in it.
    """
    # Escapes exist in strings alone. First the pairs of backslashes, from the left: then a backslash before a quote
    # escapes it.
    outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    return max(accumulate(steps), default=0) > max_depth


_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one up; as a signed byte, one down
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def encode_error(error: WsKitError, correlation_id: str | None, timestamp_ms: int) -> bytes:
    """Write the ERROR frame, or RPC_ERROR when there is a correlation id. Never raises: it is the last resort.

    Details are made safe first (see `safe_details`), except a `PayloadInvalid`'s issues, which hold no values of the
    sender: the first 50 are sent, and the number of the others. `retryAfterMs` is rounded up; it is left out when
    `retryable` is False.
    """
    payload: dict[str, Any] = {"code": safe_text(error.code), "message": safe_text(error.message)}
    details = _issues(error) if isinstance(error, PayloadInvalid) else safe_details(error.details)
    if details:
        payload["details"] = details
    wait = error.retry_after
    if wait is not None and wait >= 0 and isfinite(wait * 1000) and error.retryable is not False:
        payload["retryAfterMs"] = min(ceil(round(wait * 1000, 3)), 2**53)
    if error.retryable is not None:
        payload["retryable"] = error.retryable
    if correlation_id is None:
        return dumps({"type": ERROR, "meta": {"timestamp": timestamp_ms}, "payload": payload})
    return dumps({"type": RPC_ERROR, "meta": _answer_meta(correlation_id, timestamp_ms), "payload": payload})


def _issues(error: PayloadInvalid) -> dict[str, Any]:
    issues = [{key: safe_text(value) for key, value in issue.items()} for issue in error.issues[:MAX_ISSUES]]
    more = len(error.issues) - len(issues)
    if more:
        issues.append({"path": "", "message": f"and {more} more"})
    return {"issues": issues}


def _answer_meta(correlation_id: str, timestamp_ms: int) -> dict[str, Any]:
    return {"timestamp": timestamp_ms, "correlationId": correlation_id}


def encode_progress(value: object, correlation_id: str, timestamp_ms: int) -> bytes:
    """Write one progress frame of a call, the value under `payload` (ws-kit's server) and `data` (ws-kit's client).

    Args:
        value: a message, or plain JSON values.

    Raises:
        PayloadInvalid: the message's fields have wrong types, or the value is not JSON.
    """
    spec = find_spec(value)
    if spec is not None:
        value = spec.unstructure(value)
    elif not is_json(value):
        raise PayloadInvalid(PROGRESS, [{"path": "", "message": f"expected JSON, got {type(value).__name__}"}])
    body = dumps(value)
    meta = dumps(_answer_meta(correlation_id, timestamp_ms))
    return b'{"type":"%b","meta":%b,"payload":%b,"data":%b}' % (PROGRESS.encode(), meta, body, body)


def encode_heartbeat_ack(timestamp_ms: int) -> bytes:
    """Write the answer to `__heartbeat`."""
    return b'{"type":"%b","meta":{"ts":%d}}' % (HEARTBEAT_ACK.encode(), timestamp_ms)
