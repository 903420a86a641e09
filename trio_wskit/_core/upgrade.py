"""The WebSocket part of the opening handshake (RFC 6455 section 4), for both sides; the I/O is elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final, final

import attrs

from trio_wskit._core.extensions import DEFLATE_OFFER, accept_deflate, agreed_window_bits, parse_extensions
from trio_wskit._core.handshake import Headers
from trio_wskit.errors import LocalProtocolError, Reject, RemoteProtocolError

__all__ = ["Upgrade", "UpgradeRequest", "accept_upgrade", "parse_response_head"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_STATUS_LINE: Final = re.compile(r"HTTP/1\.1 (\d{3})(?: .*)?", re.DOTALL)
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@final
@attrs.frozen(kw_only=True)
class Upgrade:
    """What the two sides agreed on.

    Attributes:
        subprotocol: the one chosen, or None.
        deflate_window_bits: the window for compressing what we send, 9 to 15; None without permessage-deflate.
        headers: the header fields of the 101 answer.
    """

    subprotocol: str | None = None
    deflate_window_bits: int | None = None
    headers: Sequence[tuple[str, str]] = ()

    def to_bytes(self, extra_headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The whole 101 answer, as a server sends it.

        Raises:
            LocalProtocolError: a header field has a line break, or a character outside Latin-1.
        """
        return _head("HTTP/1.1 101 Switching Protocols", [*self.headers, *extra_headers])


def accept_upgrade(
    headers: Headers | Iterable[tuple[str, str]], *, subprotocols: Sequence[str] = (), deflate: bool = False
) -> Upgrade:
    """Answer a client's handshake.

    Args:
        headers: of its request, which was a GET over HTTP/1.1.
        subprotocols: those we speak, the best first; without one in common, none is chosen.
        deflate: agree to permessage-deflate if the client offers it.

    Raises:
        Reject: 426 for a wish that is not WebSocket 13 (the answer's headers say what is), 400 for a broken one.
    """
    fields = headers if isinstance(headers, Headers) else Headers(headers)
    if "websocket" not in fields.tokens("upgrade") or "upgrade" not in fields.tokens("connection"):
        raise Reject(426, "This is a WebSocket endpoint.", {"Upgrade": "websocket", "Connection": "Upgrade"})
    version = fields.get("sec-websocket-version", "").strip()
    if version != "13":
        raise Reject(426, "Only version 13 of WebSocket is spoken here.", {"Sec-WebSocket-Version": "13"})
    key = fields.get("sec-websocket-key", "").strip()
    if not _is_key(key):
        raise Reject(400, "Sec-WebSocket-Key must be 16 bytes in base64.")
    answer = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", _accept(key))]
    offered = [one.strip() for one in fields.get("sec-websocket-protocol", "").split(",") if one.strip()]
    subprotocol = next((one for one in subprotocols if one in offered), None)
    if subprotocol is not None:
        answer.append(("Sec-WebSocket-Protocol", subprotocol))
    window_bits = None
    try:
        offers = parse_extensions(fields.get("sec-websocket-extensions", ""))
    except ValueError as exc:
        raise Reject(400, f"Sec-WebSocket-Extensions is {exc}.") from exc
    if deflate and (agreed := accept_deflate(offers)):
        extension, window_bits = agreed
        answer.append(("Sec-WebSocket-Extensions", extension))
    return Upgrade(subprotocol=subprotocol, deflate_window_bits=window_bits, headers=answer)


@final
@attrs.frozen(kw_only=True)
class UpgradeRequest:
    """A client's handshake.

    Args:
        host: for the Host field, with the port where it is not the scheme's own.
        target: path and query.
        nonce: 16 random bytes.
        subprotocols: those we speak, the best first.
        deflate: offer permessage-deflate.
        extra_headers: further fields (Origin, Authorization, Cookie …).
    """

    host: str
    target: str = "/"
    nonce: bytes
    subprotocols: Sequence[str] = ()
    deflate: bool = False
    extra_headers: Sequence[tuple[str, str]] = ()

    def to_bytes(self) -> bytes:
        """The whole request.

        Raises:
            LocalProtocolError: the target is no request target, a subprotocol is no token, or a field cannot be sent.
        """
        if not self.target.startswith("/") or not self.target.isascii() or re.search(r"[\s#]", self.target):
            raise LocalProtocolError(f"the target of a request starts with / and is quoted, unlike {self.target!r}")
        fields = [
            ("Host", self.host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", self._key()),
            ("Sec-WebSocket-Version", "13"),
        ]
        for one in self.subprotocols:
            if not _TOKEN.fullmatch(one):
                raise LocalProtocolError(f"a subprotocol is a token of RFC 9110, unlike {one!r}")
        if self.subprotocols:
            fields.append(("Sec-WebSocket-Protocol", ", ".join(self.subprotocols)))
        if self.deflate:
            fields.append(("Sec-WebSocket-Extensions", DEFLATE_OFFER))
        return _head(f"GET {self.target} HTTP/1.1", [*fields, *self.extra_headers])

    def check_response(self, status: int, headers: Headers) -> Upgrade:
        """Check a server's answer (RFC 6455 section 4.1).

        Raises:
            Reject: the server refused with this HTTP status (no body: it may not have come yet).
            RemoteProtocolError: the server accepted, but not what was asked for.
        """
        if status != 101:
            if 300 <= status <= 599:
                raise Reject(status, headers=dict(headers))
            raise RemoteProtocolError(f"the server answered the handshake with status {status}")
        if "websocket" not in headers.tokens("upgrade") or "upgrade" not in headers.tokens("connection"):
            raise RemoteProtocolError("the server's 101 does not upgrade to WebSocket")
        if headers.get("sec-websocket-accept", "").strip() != _accept(self._key()):
            raise RemoteProtocolError("the server's Sec-WebSocket-Accept does not answer our key")
        subprotocol = headers.get("sec-websocket-protocol")
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise RemoteProtocolError(f"the server chose the subprotocol {subprotocol!r}, which was not offered")
        try:
            answers = parse_extensions(headers.get("sec-websocket-extensions", ""))
            window_bits = agreed_window_bits(answers)
            if answers and not self.deflate:
                raise ValueError("the server chose an extension that was not offered")
        except ValueError as exc:
            raise RemoteProtocolError(str(exc)) from exc
        return Upgrade(subprotocol=subprotocol, deflate_window_bits=window_bits, headers=tuple(headers.items()))

    def _key(self) -> str:
        return base64.b64encode(self.nonce).decode()


def parse_response_head(head: bytes) -> tuple[int, Headers]:
    """Read the head of a server's answer, without the empty line that ends it.

    Raises:
        RemoteProtocolError: it is not the head of an HTTP/1.1 response.
    """
    status_line, *lines = head.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None:
        raise RemoteProtocolError(f"not an HTTP/1.1 response: {status_line[:80]!r}")
    fields: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise RemoteProtocolError(f"not a header field: {line[:80]!r}")
        fields.append((name, value.strip(" \t")))
    return int(match[1]), Headers(fields)


def _head(first_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in fields)]
    for line in lines:
        if "\r" in line or "\n" in line:
            raise LocalProtocolError(f"a line break in {line.partition(':')[0]!r}")
    try:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"a header field holds {exc.object[exc.start]!r}: encode or quote it") from exc


def _accept(key: str) -> str:
    # RFC 6455 section 4.2.2: SHA-1 here proves that the server read the key; it protects nothing.
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
