"""How a client says who it is. A token is never part of a log line or of an exception's text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, final
from urllib.parse import parse_qsl, urlencode

import attrs

from trio_wskit.errors import ConfigError

__all__ = ["Attach", "Credentials", "GetToken", "Handshake", "TokenAuth"]

Attach = Literal["query", "protocol", "header"]
GetToken = Callable[[], "str | Awaitable[str | None] | None"]

_PREFIX: Final = re.compile(r"[^\s,]+")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
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


@final
@attrs.frozen(kw_only=True)
class Credentials:
    """A token, already fetched."""

    token: str | None = attrs.field(repr=False)

    def scrub(self, text: str) -> str:
        """A text without the token, whoever wrote it there."""
        return text.replace(self.token, "•••") if self.token else text


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
        """Ask for the token. Whatever `get_token` raises comes out."""
        if isinstance(self.get_token, str):
            return Credentials(token=self.get_token)
        found = self.get_token()
        return Credentials(token=await found if inspect.isawaitable(found) else found)

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
