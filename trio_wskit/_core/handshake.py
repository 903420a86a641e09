"""The opening handshake's pure part: a parsed HTTP request, plain HTTP answers, and who may come in by Origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import final
from urllib.parse import parse_qsl, unquote

import attrs

__all__ = ["Headers", "HttpResponse", "Request", "origin_allowed"]


@final
class Headers(Mapping[str, str]):
    """HTTP header fields: names in any case, a repeated field joined with ", " (RFC 9110 section 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        fields: dict[str, str] = {}
        for name, value in pairs:
            key = name.lower()
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self._fields)}>"  # values may hold secrets, so they stay out of logs

    def tokens(self, name: str) -> list[str]:
        """The comma-separated tokens of a field, in lower case."""
        return [token.strip().lower() for token in self.get(name, "").split(",") if token.strip()]


@final
@attrs.frozen(kw_only=True)
class Request:
    """The HTTP request that opens a connection.

    Attributes:
        method: as sent, "GET" for a WebSocket.
        target: the request target as sent, path and query.
        headers: `Headers`.
        remote: the peer's address without its port; None where there is none (a unix socket, a test).
        local: a text for our own end of the link, for logs; may be empty.
        secure: True over TLS.
    """

    method: str = "GET"
    target: str = "/"
    headers: Headers = attrs.field(factory=Headers)
    remote: str | None = None
    local: str = ""
    secure: bool = False

    @property
    def path(self) -> str:
        """The path, percent-decoded, without the query."""
        return unquote(_split(self.target)[0])

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; the last one wins where a name is repeated."""
        return dict(parse_qsl(_split(self.target)[1], keep_blank_values=True))

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers, in its order, in its own case."""
        return [one.strip() for one in self.headers.get("sec-websocket-protocol", "").split(",") if one.strip()]

    @property
    def is_upgrade(self) -> bool:
        """True when the request asks for a WebSocket."""
        return "websocket" in self.headers.tokens("upgrade") and "upgrade" in self.headers.tokens("connection")


def _split(target: str) -> tuple[str, str]:
    """The path and the query of a request target, whatever it is: `urlsplit` takes "//a" for a host, and "//[" ill."""
    path, _, query = target.partition("#")[0].partition("?")
    if not path.startswith("/"):
        _, absolute, rest = path.partition("://")  # the absolute-form that proxies get, RFC 9112 section 3.2.2
        if absolute:
            path = "/" + rest.partition("/")[2]
    return path or "/", query


@final
@attrs.frozen
class HttpResponse:
    """A plain HTTP answer.

    Args:
        status: an HTTP status code.
        body: text is sent as UTF-8.
        content_type: the media type.
        headers: further header fields, or others than those that are there; a line break in one is refused.
    """

    status: int = 200
    body: str | bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])

    def to_bytes(self, *, head_only: bool = False) -> bytes:
        """The whole answer as HTTP/1.1, which says that the connection closes after it."""
        body = self.body.encode() if isinstance(self.body, str) else self.body
        own = {"Content-Type": self.content_type, "Content-Length": str(len(body)), "Connection": "close"}
        fields = {name.lower(): f"{name}: {value}" for name, value in (*own.items(), *self.headers.items())}
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}"]
        for name, line in fields.items():
            if "\r" in line or "\n" in line:
                raise ValueError(f"the header {name!r} has a line break")
            lines.append(line)
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return head if head_only else head + body


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def origin_allowed(request: Request, allowed: frozenset[str] | None) -> bool:
    """May this request's Origin in?

    Args:
        request: the handshake.
        allowed: origins such as ``https://example.org``, in lower case. None: only pages of the host that the request
            names itself; an empty set: no page at all; ``"*"`` in it: every page.

    Returns:
        True where there is no Origin, as only browsers send one: this guards a user against other people's pages
        (cross-site WebSocket hijacking), not the server against programs.
    """
    origin = request.headers.get("origin")
    if origin is None or (allowed is not None and "*" in allowed):
        return True
    origin = origin.strip().lower()
    if allowed is None:
        host = origin.partition("://")[2]  # nothing for "null", which a sandboxed page sends
        return host != "" and host == request.headers.get("host", "").strip().lower()
    return origin in allowed
