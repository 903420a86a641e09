"""The single values: how each is read strictly from JSON, and how each is written.

Readers raise `Refused`. Writers never raise: what is not of the right type becomes `Wrong`, which every reader refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from types import NoneType
from typing import Any, Final, TypeAlias, TypeGuard, final
from uuid import UUID

from trio_wskit._core.json_text import MAX_INT, MIN_INT, is_text

__all__ = ["EXPECTED", "READERS", "WRITERS", "Read", "Refused", "Write", "Wrong", "is_array", "is_object", "kind_of"]

Read: TypeAlias = Callable[[Any, Any], Any]
"""A cattrs structure hook: takes the value and a type, which ours ignore."""

Write: TypeAlias = Callable[[Any], Any]
"""A cattrs unstructure hook."""


class Refused(ValueError):
    """A value does not fit. The text names what was expected and the kind of what came, never the value."""

    def __init__(self, expected: str, value: object) -> None:
        super().__init__(f"expected {expected}, got {kind_of(value)}")


@final
class Wrong:
    """Takes the place of an outgoing value that does not fit its field."""

    __slots__ = ("got",)

    def __init__(self, value: object, got: str | None = None) -> None:
        self.got = got or type(value).__name__


_KINDS: Final[Mapping[type[Any], str]] = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or exponent",
    str: "a string",
    list: "an array",
    dict: "an object",
}

EXPECTED: Final[Mapping[type[Any], str]] = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    datetime: "an ISO 8601 date and time with an offset from UTC",
    date: "an ISO 8601 date",
    UUID: "a UUID",
    Decimal: "a decimal number in a string",
}


def is_array(value: object) -> TypeGuard[list[Any]]:
    """True for what JSON calls an array."""
    return type(value) is list


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """True for what JSON calls an object."""
    return type(value) is dict


def kind_of(value: object) -> str:
    """Name the kind of a JSON value, as a refusal says it."""
    if type(value) is Wrong:
        return value.got
    return _KINDS.get(type(value), type(value).__name__)


def _exactly(kind: type[Any]) -> Read:
    expected = EXPECTED[kind]

    def read(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        raise Refused(expected, value)

    return read


def _read_float(value: Any, _: Any) -> float:
    if type(value) is float and isfinite(value):
        return value
    if type(value) is int:
        with suppress(OverflowError):  # no JSON text gives such an int
            return float(value)
    raise Refused(EXPECTED[float], value)


def _from_text(kind: type[Any], parse: Callable[[str], Any]) -> Read:
    expected = EXPECTED[kind]

    def read(value: Any, _: Any) -> Any:
        if type(value) is not str:
            raise Refused(expected, value)
        try:
            return parse(value)
        except (ValueError, InvalidOperation, OverflowError):
            raise Refused(expected, Wrong(value, "other text")) from None

    return read


def _parse_datetime(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    return moment


def _parse_uuid(text: str) -> UUID:
    # UUID itself also takes braces, "urn:uuid:" and hyphens anywhere.
    if _UUID.fullmatch(text) is None:
        raise ValueError
    return UUID(text)


def _parse_decimal(text: str) -> Decimal:
    # Decimal itself also takes spaces, underscores, digits of every script, "NaN" and "Infinity".
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError
    number = Decimal(text)
    if not number.is_finite():  # an exponent beyond all bounds, where the caller's context does not trap it
        raise ValueError
    return number


_UUID: Final = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

READERS: Final[Mapping[type[Any], Read]] = {
    str: _exactly(str),
    int: _exactly(int),
    bool: _exactly(bool),
    NoneType: _exactly(NoneType),
    float: _read_float,
    datetime: _from_text(datetime, _parse_datetime),
    date: _from_text(date, date.fromisoformat),
    UUID: _from_text(UUID, _parse_uuid),
    Decimal: _from_text(Decimal, _parse_decimal),
}


def _write_str(value: Any) -> Any:
    if not isinstance(value, str):
        return Wrong(value)
    text = str.__str__(value)  # the text of a member of a StrEnum too
    return text if is_text(text) else Wrong(value, "text with a lone surrogate")


def _write_int(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return Wrong(value)
    return int(value) if MIN_INT <= value <= MAX_INT else Wrong(value, "an integer outside 64 bits")


def _write_float(value: Any) -> Any:
    if not isinstance(value, float):
        return _write_int(value)
    return float(value) if isfinite(value) else Wrong(value, "NaN or infinity")


def _write_bool(value: Any) -> Any:
    return value if isinstance(value, bool) else Wrong(value)


def _write_none(value: Any) -> Any:
    return None if value is None else Wrong(value)


def _write_datetime(value: Any) -> Any:
    if not isinstance(value, datetime):
        return Wrong(value)
    if value.utcoffset() is None:
        return Wrong(value, "a datetime without a timezone")
    text = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text  # the form that JavaScript writes, and zod expects


def _write_date(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else Wrong(value)


def _write_uuid(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else Wrong(value)


def _write_decimal(value: Any) -> Any:
    if not isinstance(value, Decimal):
        return Wrong(value)
    return str(value) if value.is_finite() else Wrong(value, "NaN or infinity")


WRITERS: Final[Mapping[type[Any], Write]] = {
    str: _write_str,
    int: _write_int,
    bool: _write_bool,
    NoneType: _write_none,
    float: _write_float,
    datetime: _write_datetime,
    date: _write_date,
    UUID: _write_uuid,
    Decimal: _write_decimal,
}
