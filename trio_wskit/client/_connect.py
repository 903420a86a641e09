"""From a URL to an open link: TCP or a proxy's tunnel, TLS, the handshake."""

from __future__ import annotations

import base64
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, cast, final
from urllib.parse import quote, unquote, urlsplit

import attrs
import trio

from trio_wskit._core.backoff import retry_after_seconds
from trio_wskit._core.handshake import Headers
from trio_wskit._core.upgrade import UpgradeRequest
from trio_wskit.abc import Transport
from trio_wskit.client._auth import Handshake
from trio_wskit.errors import ConfigError, ConnectFailed, LocalProtocolError, Reject, RemoteProtocolError
from trio_wskit.transports.native import connect_native

__all__ = ["Connector", "Dialer", "Opened", "Target"]

_MAX_PROXY_HEAD: Final = 16384
_LEFT_AS_IT_IS: Final = "".join(map(chr, range(0x21, 0x7F)))


@final
@attrs.frozen
class Opened:
    """An open link.

    Attributes:
        transport: the WebSocket.
        subprotocol: the one that the server chose.
        headers: of the server's answer.
    """

    transport: Transport
    subprotocol: str | None = None
    headers: Headers = attrs.field(factory=Headers, repr=False)


Connector = Callable[[Handshake], Awaitable[Opened]]
"""Opens a link. Raises ConnectFailed; anything else that it raises is an attempt that failed, too."""


@final
@attrs.frozen
class Target:
    """A URL, taken apart.

    Attributes:
        host: without brackets.
        port: 1 to 65535.
        secure: TLS.
        request_target: path and query.
        label: the URL without its query and user: what logs and exceptions show.
    """

    host: str
    port: int
    secure: bool
    request_target: str = attrs.field(repr=False)
    label: str
    user_info: str = attrs.field(repr=False)

    @staticmethod
    def parse(url: str, schemes: Sequence[str] = ("ws", "wss"), argument: str = "open_client") -> Target:
        """Read a URL.

        Args:
            url: ``ws://host:port/path?query``.
            schemes: the plain one, and the one over TLS.
            argument: what takes it, for errors.

        Raises:
            ConfigError: it is none; the text does not show its query.
        """
        plain, secure = schemes
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError(f"{argument} takes a URL of the form {plain}://host:port/path") from None
        if parts.scheme not in schemes or not parts.hostname or parts.fragment or port == 0:
            form = "host:port" if argument == "proxy" else "host/path"
            raise ConfigError(f"{argument} takes a URL of the form {plain}://{form} or {secure}://{form}")
        is_secure = parts.scheme == secure
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        try:
            host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
        except UnicodeError:
            raise ConfigError("the URL's host is no name of the Internet") from None
        shown = f"[{host}]" if ":" in host else host
        if port is not None:
            shown += f":{port}"
        user_info = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
        return Target(
            host,
            port or (443 if is_secure else 80),
            is_secure,
            quote(target, safe=_LEFT_AS_IT_IS),  # as a browser does with what it is given
            f"{parts.scheme}://{shown}{parts.path}",
            user_info,
        )

    @property
    def host_field(self) -> str:
        """For the Host field: with the port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def authority(self) -> str:
        """For CONNECT: always with the port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@final
class Dialer:
    """Opens real connections to one server; its instances are a `Connector`.

    Args:
        target: the server.
        ssl_context: for wss; by default the system's roots, and the host's name is checked.
        proxy: ``http://user:password@host:port``, or https; it is asked for a tunnel with CONNECT.
        proxy_ssl_context: for a proxy of https; the same default.
        deflate: offer permessage-deflate.
        max_message_bytes: larger messages of the server are refused with 1009.
    """

    def __init__(
        self,
        target: Target,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        deflate: bool = False,
        max_message_bytes: int = 4_000_000,
    ) -> None:
        self._target = target
        self._ssl_context = ssl_context
        self._proxy = None if proxy is None else Target.parse(proxy, ("http", "https"), "proxy")
        self._proxy_ssl_context = proxy_ssl_context
        self._deflate = deflate
        self._max_message_bytes = max_message_bytes

    async def __call__(self, handshake: Handshake) -> Opened:
        """Connect once. Cancelled: nothing is left."""
        request = UpgradeRequest(
            host=self._target.host_field,
            target=handshake.target,
            nonce=os.urandom(16),
            subprotocols=handshake.subprotocols,
            deflate=self._deflate,
            extra_headers=handshake.headers,
        )
        try:
            stream = await self._open_stream()
            transport, upgrade = await connect_native(stream, request, max_message_bytes=self._max_message_bytes)
        except Reject as refusal:
            raise _refused(self._target, refusal.status, Headers(refusal.headers.items())) from None
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise ConnectFailed(f"no connection to {self._target.label}: {error}") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise ConnectFailed(f"no connection to {self._target.label}: {_cause_of(error)}") from error
        return Opened(transport, upgrade.subprotocol, Headers(upgrade.headers))

    async def _open_stream(self) -> trio.abc.Stream:
        target, proxy = self._target, self._proxy
        stream: trio.abc.Stream
        if proxy is None:
            stream = await trio.open_tcp_stream(target.host, target.port)
        else:
            with _blaming(proxy):
                stream = await trio.open_tcp_stream(proxy.host, proxy.port)
        try:
            if proxy is not None:
                with _blaming(proxy):
                    if proxy.secure:
                        stream = await _with_tls(stream, proxy.host, self._proxy_ssl_context)
                    await _tunnel(stream, proxy, target.authority)
            if target.secure:
                stream = await _with_tls(stream, target.host, self._ssl_context)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream


@contextmanager
def _blaming(proxy: Target) -> Generator[None]:
    """Say that it was the proxy: else it would look as if the server had refused."""
    try:
        yield
    except (OSError, trio.BrokenResourceError) as error:
        raise ConnectFailed(f"no connection to the proxy {proxy.label}: {_cause_of(error)}") from error


async def _with_tls(stream: trio.abc.Stream, host: str, context: ssl.SSLContext | None) -> trio.abc.Stream:
    context = context or ssl.create_default_context()
    # https_compatible: many servers drop TCP without TLS' own goodbye, which WebSocket's makes superfluous.
    secure = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    await secure.do_handshake()
    return secure


async def _tunnel(stream: trio.abc.Stream, proxy: Target, authority: str) -> None:
    """Ask a proxy for a tunnel (RFC 9110 section 9.3.6)."""
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.user_info:
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(proxy.user_info.encode()).decode())
    await stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        # One byte at a time: what follows the head is the server's, and there is no way to give it back.
        more = await stream.receive_some(1)
        head += more
        if not more or len(head) > _MAX_PROXY_HEAD:
            raise RemoteProtocolError(f"the proxy {proxy.label} gave no answer to CONNECT")
    version, _, rest = head.decode("latin-1").partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit()):
        raise RemoteProtocolError(f"the proxy {proxy.label} does not speak HTTP")
    if not 200 <= int(status) <= 299:
        raise ConnectFailed(f"the proxy {proxy.label} refused with {status}", status=int(status))


def _refused(target: Target, status: int, headers: Headers) -> ConnectFailed:
    return ConnectFailed(
        f"{target.label} refused the handshake with {status}",
        status=status,
        retry_after=retry_after_seconds(headers.get("retry-after"), time.time()),
    )


def _cause_of(error: Exception) -> str:
    """What went wrong: Trio says no more than that something broke, and keeps the reason behind it."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # one for each address that was tried
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    return str(cause) or type(cause).__name__
