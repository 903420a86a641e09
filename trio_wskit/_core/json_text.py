"""The one seam to the JSON library: text to plain values and back. See docs/explanation/decisions/0001-json-library.md.

What the rest of the package relies on, and the tests hold the library to:

- `loads` refuses with ValueError whatever RFC 8259 refuses, and also NaN, Infinity, a number too large for a float, a
  byte order mark, invalid UTF-8 and the escape of a lone surrogate. Of duplicate keys the last wins. An integer
  outside 64 bits becomes a float, as it does in JavaScript, so that a field of type int refuses it rather than losing
  digits.
- `loads` never raises RecursionError: text nested deeper than 1,024 is refused with ValueError.
- `dumps` writes no spaces and escapes nothing that need not be escaped. It refuses with TypeError a lone surrogate, an
  integer outside 64 bits, a dict key that is no str, and nesting deeper than 254 (so cycles as well).
- `dumps` writes NaN and Infinity as null, and datetimes, UUIDs and dataclasses in its own way: it is only for what
  has been checked (`is_json`, or the schema).
"""

from __future__ import annotations

from math import isfinite
from typing import Final, cast

import orjson

__all__ = ["MAX_INT", "MIN_INT", "dumps", "is_json", "loads"]

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1

# dumps itself stops at 254; what is passed through as any JSON leaves room for what is around it.
_MAX_DEPTH: Final = 200

loads = orjson.loads
dumps = orjson.dumps


def is_json(value: object, depth: int = 0) -> bool:
    """True if `dumps` writes exactly this value: finite numbers in 64 bits, text without lone surrogates, str keys."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return is_text(value)
    if isinstance(value, int):
        return MIN_INT <= value <= MAX_INT
    if type(value) is float:
        return isfinite(value)
    if depth == _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        items = cast("dict[object, object]", value)
        return all(type(key) is str and is_text(key) and is_json(item, depth + 1) for key, item in items.items())
    if isinstance(value, list) or type(value) is tuple:
        return all(is_json(item, depth + 1) for item in cast("list[object]", value))
    return False


def is_text(value: str) -> bool:
    """True unless the text holds a lone surrogate, which UTF-8 cannot carry."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
