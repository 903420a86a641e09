"""The envelope: what every message on the wire has around it, and which of its names are reserved."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, final

import attrs

__all__ = [
    "ABORT",
    "ABSENT",
    "CONTROL_TYPES",
    "ERROR",
    "HEARTBEAT",
    "HEARTBEAT_ACK",
    "MAX_IDEMPOTENCY_KEY",
    "META_RULES",
    "PROGRESS",
    "RESERVED_META",
    "RESERVED_PREFIXES",
    "RPC_ERROR",
    "Absent",
    "Envelope",
    "MetaRule",
    "is_reserved",
]

HEARTBEAT: Final = "__heartbeat"
HEARTBEAT_ACK: Final = "__heartbeat_ack"
ABORT: Final = "$ws:abort"
PROGRESS: Final = "$ws:rpc-progress"
ERROR: Final = "ERROR"
RPC_ERROR: Final = "RPC_ERROR"

CONTROL_TYPES: Final = frozenset({HEARTBEAT, ABORT})
"""The only reserved types that a peer may send to a server."""

RESERVED_META: Final = ("clientId", "receivedAt")
"""Meta keys that only the server may set: stripped from what comes in, refused in a definition."""

MAX_IDEMPOTENCY_KEY: Final = 256
"""Characters."""


@final
class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "ABSENT"


ABSENT: Final = Absent.ABSENT
"""Stands for a payload whose key was not there; a payload of null is None."""


@final
@attrs.define
class Envelope:
    """One message as it came, its payload not yet looked at.

    Attributes:
        type: what the router looks for.
        meta: {} if it was absent or null; without `clientId` and `receivedAt`. Standard keys that are there have
            their right types.
        payload: plain JSON values, or `ABSENT`. Opaque to all but the schema.
        correlation_id: the meta's `correlationId`, a non-empty text, if it was there.
    """

    type: str
    meta: dict[str, Any]
    payload: Any
    correlation_id: str | None = None


RESERVED_PREFIXES: Final = ("__", "$")
"""Types that start with one of these belong to the protocol."""


def is_reserved(type_name: str) -> bool:
    """True for the types that belong to the protocol, those for control included."""
    return type_name.startswith(RESERVED_PREFIXES)


@final
@attrs.frozen
class MetaRule:
    """What a standard meta key must hold: a test, and in words what the test expects."""

    accepts: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))


def _is_positive_number(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_id(value: Any) -> bool:
    return type(value) is str and value != ""


def _is_key(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_IDEMPOTENCY_KEY


META_RULES: Final[Mapping[str, MetaRule]] = {
    "timestamp": MetaRule(_is_number, "a number"),
    "correlationId": MetaRule(_is_id, "a non-empty string"),
    "timeoutMs": MetaRule(_is_positive_number, "a positive number"),
    "idempotencyKey": MetaRule(_is_key, f"a string of 1 to {MAX_IDEMPOTENCY_KEY} characters"),
    "traceparent": MetaRule(_is_str, "a string"),
}
"""The standard meta keys; other keys may hold anything."""
