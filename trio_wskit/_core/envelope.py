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
    "RPC_ERROR",
    "Absent",
    "Envelope",
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
        meta: {} if it was absent or null; without `clientId` and `receivedAt`. Standard keys that are there have their right types.
        payload: plain JSON values, or `ABSENT`. Opaque to all but the schema.
        correlation_id: the meta's `correlationId`, a non-empty text, if it was there.
    """

    type: str
    meta: dict[str, Any]
    payload: Any
    correlation_id: str | None = None


def is_reserved(type_name: str) -> bool:
    """True for the types that belong to the protocol: those that start with "__" or "$"."""
    return type_name.startswith(("__", "$"))


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))


def _is_positive_number(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_id(value: object) -> bool:
    return type(value) is str and value != ""


def _is_key(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_IDEMPOTENCY_KEY


def _is_str(value: object) -> bool:
    return type(value) is str


META_RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "correlationId": (_is_id, "a non-empty string"),
    "timestamp": (_is_number, "a number"),
    "timeoutMs": (_is_positive_number, "a positive number"),
    "idempotencyKey": (_is_key, f"a string of 1 to {MAX_IDEMPOTENCY_KEY} characters"),
    "traceparent": (_is_str, "a string"),
}
"""The standard meta keys, each with its test and what the test expects."""
