"""What of an error's details may go to a peer: no secrets, nothing that is not JSON, nothing big that is nested."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final, cast, final
from uuid import UUID

from trio_wskit._core.json_text import dumps, is_json

__all__ = ["MAX_NESTED", "SECRET_KEYS", "safe_details", "safe_text"]

SECRET_KEYS: Final = frozenset(
    {
        "password",
        "token",
        "authorization",
        "bearer",
        "jwt",
        "apikey",
        "api_key",
        "accesstoken",
        "access_token",
        "refreshtoken",
        "refresh_token",
        "cookie",
        "secret",
        "credentials",
        "auth",
    }
)
"""ws-kit's list; compared without regard to case."""

MAX_NESTED: Final = 500
"""A nested object or array is dropped whole if its JSON has more characters than this."""


def safe_details(details: Mapping[Any, Any]) -> dict[str, Any]:
    """Copy `details` as JSON that may be shown to a peer.

    - Keys that look like secrets are removed at every depth, keys that are no text as well.
    - Enum members become their values; dates, UUIDs and Decimals become text; tuples and sets become arrays.
      Anything else that is not JSON is dropped; in an array null takes its place.
    - A nested object or array of more than 500 characters of JSON is dropped whole. Text is not limited.
    """
    return _mapping(details, _Budget(), top=True)


def safe_text(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot carry, by question marks."""
    return str.encode(text, "utf-8", "replace").decode()


class _TooBig(Exception):
    """The nested value has more parts than `MAX_NESTED` characters could hold."""


@final
class _Dropped(enum.Enum):
    DROPPED = "DROPPED"


_DROPPED: Final = _Dropped.DROPPED


@final
class _Budget:
    """Counts the parts of one nested value, each at least one character: bounds the work, and ends cycles."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_NESTED

    def spend(self, characters: int) -> None:
        self.left -= characters
        if self.left < 0:
            raise _TooBig


def _mapping(items: Mapping[Any, Any], budget: _Budget, *, top: bool = False) -> dict[str, Any]:
    safe: dict[str, Any] = {}
    for key, value in items.items():
        if not isinstance(key, str):
            continue
        name = safe_text(key)
        if name.lower() in SECRET_KEYS:
            continue
        if top:
            kept = _top_value(value)
        else:
            budget.spend(len(name))
            kept = _value(value, budget)
        if kept is not _DROPPED:
            safe[name] = kept
    return safe


def _top_value(value: object) -> Any:
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return safe_text(value)
    try:
        kept: Any = _value(value, _Budget())
    except (_TooBig, RecursionError):
        return _DROPPED
    is_nested = type(kept) in (dict, list)
    return _DROPPED if is_nested and len(dumps(kept).decode()) > MAX_NESTED else kept


def _value(value: object, budget: _Budget) -> Any:
    budget.spend(1)
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Mapping):
        return _mapping(cast("Mapping[object, object]", value), budget)
    if isinstance(value, list | tuple | set | frozenset):
        kept = [_value(item, budget) for item in cast("list[object]", value)]
        return [None if item is _DROPPED else item for item in kept]
    if isinstance(value, str):
        budget.spend(len(value))
        return safe_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    return value if is_json(value) else _DROPPED
