"""The Sec-WebSocket-Extensions field, and what is agreed about permessage-deflate (RFC 6455 section 9, RFC 7692).

Both sides always go without context takeover. A shared window would compress small messages better, but it costs each
idle connection up to 300 KiB, and one compressed frame could not go to every subscriber of a topic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from trio_wskit._core.deflate import MAX_WINDOW_BITS

__all__ = ["DEFLATE_OFFER", "Extension", "accept_deflate", "agreed_window_bits", "parse_extensions"]

# A name and its parameters, a value being None where there was only a name.
Extension = tuple[str, list[tuple[str, str | None]]]

_NAME: Final = "permessage-deflate"
_ANSWER: Final = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
DEFLATE_OFFER: Final = f"{_ANSWER}; client_max_window_bits"

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"({_TOKEN})"))?[ \t]*')
_EXTENSION: Final = re.compile(rf"[ \t]*({_TOKEN})[ \t]*")

# zlib can make no raw stream with a window of 2 to the 8th, so an offer that asks for it is passed over.
_WINDOW_BITS: Final = {str(bits): bits for bits in range(9, MAX_WINDOW_BITS + 1)}


def parse_extensions(value: str) -> list[Extension]:
    """Read the field's value.

    Raises:
        ValueError: it does not follow the grammar of RFC 6455 section 9.1.
    """
    extensions: list[Extension] = []
    at = 0
    while at < len(value):
        if value[at] in ", \t":  # empty elements are allowed (RFC 9110 section 5.6.1)
            at += 1
            continue
        match = _EXTENSION.match(value, at)
        if match is None:
            raise ValueError(f"not a list of extensions at position {at}")
        name, at = match[1], match.end()
        parameters: list[tuple[str, str | None]] = []
        while match := _PARAMETER.match(value, at):
            parameters.append((match[1], match[2] or match[3]))
            at = match.end()
        if at < len(value) and value[at] != ",":
            raise ValueError(f"not a list of extensions at position {at}")
        extensions.append((name, parameters))
    return extensions


def accept_deflate(offers: Sequence[Extension]) -> tuple[str, int] | None:
    """Take the first offer that a server can follow.

    Returns:
        The extension for the answer, and the window that we may compress with; None when no offer will do.
    """
    for name, parameters in offers:
        if name == _NAME and (bits := _offered_window_bits(parameters)) is not None:
            limit = "" if bits == MAX_WINDOW_BITS else f"; server_max_window_bits={bits}"
            return _ANSWER + limit, bits
    return None


def agreed_window_bits(answers: Sequence[Extension]) -> int | None:
    """Check, as a client that sent `DEFLATE_OFFER`, what the server agreed to.

    Returns:
        The window to compress with; None when the server wants no extension.

    Raises:
        ValueError: the server answered something that was not offered.
    """
    if not answers:
        return None
    (name, parameters), *others = answers
    settings = dict(parameters)
    if others or name != _NAME or len(settings) < len(parameters):
        raise ValueError("the server chose an extension that was not offered")
    if "server_no_context_takeover" not in settings:
        raise ValueError("the server did not agree to go without context takeover")
    bits = MAX_WINDOW_BITS
    for key, value in parameters:
        if key == "client_max_window_bits" and value in _WINDOW_BITS:
            bits = _WINDOW_BITS[value]
        elif not (
            (key in ("server_no_context_takeover", "client_no_context_takeover") and value is None)
            or (key == "server_max_window_bits" and value in {"8", *_WINDOW_BITS})
        ):
            raise ValueError(f"the server chose {key}={value} for permessage-deflate, which was not offered")
    return bits


def _offered_window_bits(parameters: Sequence[tuple[str, str | None]]) -> int | None:
    """The window that an offer allows the server; None when the offer is malformed or cannot be followed."""
    bits = MAX_WINDOW_BITS
    settings = dict(parameters)
    if len(settings) < len(parameters):
        return None
    for key, value in parameters:
        if key == "server_max_window_bits":
            if value not in _WINDOW_BITS:
                return None
            bits = _WINDOW_BITS[value]
        elif key == "client_max_window_bits":
            # What the client may use: any window fits in ours, so the answer need not name it.
            if value is not None and value not in {"8", *_WINDOW_BITS}:
                return None
        elif key not in ("server_no_context_takeover", "client_no_context_takeover") or value is not None:
            return None
    return bits
