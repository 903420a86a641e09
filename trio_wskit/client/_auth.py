"""How a client says who it is. A token is never part of a log line or of an exception's text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import takewhile
from typing import Final, Literal, cast, final
from urllib.parse import parse_qsl, quote, quote_plus, urlencode

import attrs

from trio_wskit.errors import ConfigError

__all__ = ["Attach", "Credentials", "GetToken", "Handshake", "TokenAuth", "plain_handshake"]

Attach = Literal["query", "protocol", "header"]
GetToken = Callable[[], "str | Awaitable[str | None] | None"]

_PREFIX: Final = re.compile(r"[^\s,]+")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_OURS: Final = frozenset(
    {
        "connection",
        "host",
        "upgrade",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
    }
)
_TELLING: Final = 8  # characters of a token: fewer are no secret worth the damage to other words
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e]+(?:[ \t]+[\x21-\x7e]+)*")


@final
@attrs.frozen
class Handshake:
    """What one attempt asks a server for.

    Attributes:
        target: path and query.
        subprotocols: the best first.
        headers: further fields.
    """

    target: str = attrs.field(repr=False)
    subprotocols: Sequence[str] = attrs.field(default=(), repr=False)
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), repr=False)


def plain_handshake(target: str, subprotocols: Sequence[str], headers: Mapping[str, str]) -> Handshake:
    """What every attempt asks for, before it has its token.

    Raises:
        ConfigError: it could never be sent; the text shows no value, for that may be a secret.
    """
    if isinstance(subprotocols, str):
        raise ConfigError('subprotocols takes a list of names, as ["chat"], and not one text')
    wanted = tuple(dict.fromkeys(one for one in subprotocols if one))
    if not all(_TOKEN.fullmatch(one) for one in wanted):
        raise ConfigError("a subprotocol is a token of RFC 9110: letters, digits, and no spaces, commas or slashes")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ConfigError(f"headers takes fields that the handshake itself does not set, and not {name!r}")
        if not _FIELD_VALUE.fullmatch(value):
            raise ConfigError(f"the header field {name!r} has characters outside of visible ASCII: encode or quote it")
    return Handshake(target, wanted, tuple(headers.items()))


@final
@attrs.frozen(kw_only=True)
class Credentials:
    """A token, already fetched."""

    token: str | None = attrs.field(repr=False)

    def scrub(self, text: str) -> str:
        """A text without the token, whoever wrote it there: as it is, as a URL has it, or cut off."""
        if self.token:
            for form in {self.token, quote_plus(self.token), quote(self.token, safe="")}:
                text = _without(text, form)
        return text


def _without(text: str, secret: str) -> str:
    """A text without a secret, or what is left of it where it was cut off, down to eight characters."""
    at = text.find(secret[:_TELLING])
    while at >= 0:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text[at:], secret, strict=False))
        length = sum(1 for _ in same)
        text = f"{text[:at]}•••{text[at + length :]}"
        at = text.find(secret[:_TELLING], at + 3)
    return text


@final
@attrs.frozen
class TokenAuth:
    """How the client says who it is.

    Args:
        get_token: gives the token, or None for none; async or not. It is asked anew for each attempt. A text is a token
            that never changes. An exception of it is an attempt that failed.
        attach: ``query`` (ws-kit's default; proxies tend to log it), ``protocol`` (as a subprotocol), or ``header``,
            which a browser could not.
        query_parameter: for ``query``: its name; one that the URL has is replaced.
        protocol_prefix: for ``protocol``: what stands before the token; no spaces or commas.
        protocol_position: for ``protocol``: behind the other subprotocols (``append``), or before (``prepend``).
        header: for ``header``: the field's name.
        scheme: for ``header``: what stands before the token; may be empty.
    """

    get_token: str | GetToken = attrs.field(repr=False)
    attach: Attach = attrs.field(default="query", kw_only=True)
    query_parameter: str = attrs.field(default="access_token", kw_only=True)
    protocol_prefix: str = attrs.field(default="bearer.", kw_only=True)
    protocol_position: Literal["append", "prepend"] = attrs.field(default="append", kw_only=True)
    header: str = attrs.field(default="Authorization", kw_only=True)
    scheme: str = attrs.field(default="Bearer", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.attach not in ("query", "protocol", "header"):
            raise ConfigError(f"attach takes 'query', 'protocol' or 'header', not {self.attach!r}")
        if self.protocol_position not in ("append", "prepend"):
            raise ConfigError(f"protocol_position takes 'append' or 'prepend', not {self.protocol_position!r}")
        if not _PREFIX.fullmatch(self.protocol_prefix):
            raise ConfigError(f"protocol_prefix takes a text without spaces and commas, not {self.protocol_prefix!r}")
        if not self.query_parameter or not _TOKEN.fullmatch(self.header):
            raise ConfigError("query_parameter and header take names")

    async def fetch(self) -> Credentials:
        """Ask for the token. Whatever `get_token` raises comes out.

        Raises:
            ConfigError: it gave something else.
        """
        if isinstance(self.get_token, str):
            return Credentials(token=self.get_token)
        found = cast("object", self.get_token())
        if inspect.isawaitable(found):
            found = await found
        if found is not None and not isinstance(found, str):
            raise ConfigError(f"get_token gives a text or None, not {type(found).__name__}")
        return Credentials(token=found)

    def apply(self, handshake: Handshake, credentials: Credentials) -> Handshake:
        """Put the token into a handshake. None and an empty token change nothing.

        Raises:
            ConfigError: the token has characters that cannot be sent in this way; the text does not show it.
        """
        token = credentials.token
        if not token:
            return handshake
        if self.attach == "query":
            return attrs.evolve(handshake, target=with_parameter(handshake.target, self.query_parameter, token))
        if self.attach == "protocol":
            own = self.protocol_prefix + token
            if not _TOKEN.fullmatch(own):
                raise ConfigError("the token cannot be sent as a subprotocol: it has characters that RFC 9110 forbids")
            others = handshake.subprotocols
            every = (own, *others) if self.protocol_position == "prepend" else (*others, own)
            return attrs.evolve(handshake, subprotocols=tuple(dict.fromkeys(every)))
        value = f"{self.scheme} {token}" if self.scheme else token
        if not _FIELD_VALUE.fullmatch(value):
            raise ConfigError("the token cannot be sent in a header: it has characters outside of visible ASCII")
        kept = [(name, text) for name, text in handshake.headers if name.lower() != self.header.lower()]
        return attrs.evolve(handshake, headers=(*kept, (self.header, value)))


def with_parameter(target: str, name: str, value: str) -> str:
    """Set a query parameter as URLSearchParams does: in the place of the first of its name, or at the end."""
    path, _, query = target.partition("?")
    pairs: list[tuple[str, str]] = []
    is_set = False
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key != name:
            pairs.append((key, text))
        elif not is_set:
            pairs.append((name, value))
            is_set = True
    if not is_set:
        pairs.append((name, value))
    return f"{path}?{urlencode(pairs)}"
