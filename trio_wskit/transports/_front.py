"""The front door of a listener: reads one HTTP request, answers plain HTTP, and lets WebSockets in.

What lies behind (`native` or `trio_websocket`) gets the stream only when the app has admitted the request.
"""

from __future__ import annotations

import inspect
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, final

import attrs
import h11
import trio

from trio_wskit._core.handshake import Headers, HttpResponse, Request
from trio_wskit.errors import ConfigError, Reject
from trio_wskit.transports._hangup import socket_below

if TYPE_CHECKING:
    from trio_wskit._door import Admission

__all__ = [
    "LINK_ERRORS",
    "Head",
    "Page",
    "accept_headers",
    "answer_plain",
    "check_pages",
    "read_head",
    "reject_response",
    "remote_of",
    "send_response",
]

Page = bytes | str | HttpResponse | Callable[[Request], HttpResponse | Awaitable[HttpResponse]]

_MAX_HEAD_BYTES: Final = 16384
_LINGER_SECONDS: Final = 1.0


@final
@attrs.frozen
class Head:
    """What was read from a new connection.

    Attributes:
        request: the parsed request.
        raw: every byte read so far, the head first.
        leftover: what came behind the head.
        wants_websocket: whether it asks for a WebSocket in a way that counts.
    """

    request: Request
    raw: bytes
    leftover: bytes
    wants_websocket: bool


async def read_head(stream: trio.abc.Stream, *, remote: str | None, secure: bool) -> Head:
    """Read one request head, at most 16 KiB.

    Raises:
        Reject: it is not HTTP, or too large: send this answer and close.
        trio.BrokenResourceError: the peer left before it was complete.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
    raw = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Reject(error.error_status_hint, "Not a request that is understood here") from error
        if isinstance(event, h11.Request):
            break
        data = bytes(await stream.receive_some(_MAX_HEAD_BYTES))
        if not data:
            raise trio.BrokenResourceError("the peer left before its request was complete")
        raw += data
        connection.receive_data(data)
    request = Request(
        method=event.method.decode("ascii"),
        target=event.target.decode("latin-1"),
        headers=Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers),
        remote=remote,
        secure=secure,
    )
    # RFC 9110 section 7.8: an Upgrade in HTTP/1.0 is ignored. RFC 6455 section 4.1: the method is GET.
    wants_websocket = request.is_upgrade and request.method == "GET" and event.http_version >= b"1.1"
    return Head(request, bytes(raw), bytes(connection.trailing_data[0]), wants_websocket)


def check_pages(pages: Mapping[str, Page]) -> None:
    """Refuse plain HTTP routes that cannot work.

    Raises:
        ConfigError: a path that does not begin with a slash, or a page of the wrong kind.
    """
    for path, page in pages.items():
        if not path.startswith("/"):
            raise ConfigError(f"a plain HTTP route begins with '/', not {path!r}")
        if not isinstance(page, (bytes, str, HttpResponse)) and not callable(page):
            raise ConfigError(f"the page {path!r} must be bytes, text, an HttpResponse or a function, not {page!r}")


async def answer_plain(request: Request, pages: Mapping[str, Page]) -> HttpResponse:
    """The answer to a request that asks for no WebSocket."""
    page = pages.get(request.path)
    if page is None:
        return HttpResponse(
            426, "This is a WebSocket endpoint.\n", headers={"Upgrade": "websocket", "Connection": "Upgrade, close"}
        )
    if request.method not in ("GET", "HEAD"):
        return HttpResponse(405, "Only GET is understood here.\n", headers={"Allow": "GET, HEAD"})
    if isinstance(page, HttpResponse):
        return page
    if isinstance(page, (bytes, str)):
        return HttpResponse(200, page, "text/html; charset=utf-8")
    answer = page(request)
    return await answer if inspect.isawaitable(answer) else answer


async def send_response(stream: trio.abc.Stream, response: HttpResponse, *, head_only: bool = False) -> None:
    """Send an answer and hang up: gently, so that the peer reads it even if it is still sending."""
    await stream.send_all(response.to_bytes(head_only=head_only))
    if isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.send_eof()
        with trio.move_on_after(_LINGER_SECONDS):
            while await stream.receive_some(_MAX_HEAD_BYTES):
                pass


def reject_response(refusal: Reject) -> HttpResponse:
    """What a `Reject` says, as an answer."""
    body = refusal.body if refusal.body.endswith("\n") or not refusal.body else refusal.body + "\n"
    return HttpResponse(refusal.status, body, headers=dict(refusal.headers))


def accept_headers(admission: Admission) -> list[tuple[str, str]]:
    """What our 101 answer says beside the handshake itself.

    A ws-kit server drops a message with a meta key that its schema does not declare; our client sends these keys only
    to who says that it takes them.
    """
    return [("x-client-id", admission.client_id), ("x-wskit-meta", "timeoutMs, idempotencyKey, traceparent")]


def remote_of(stream: trio.abc.Stream) -> str | None:
    """The peer's address without its port; None where it has none."""
    below = socket_below(stream)
    if below is None or below.socket.family == socket.AF_UNIX:
        return None
    try:
        return str(below.socket.getpeername()[0])
    except OSError:
        return None  # it has left already


LINK_ERRORS: Final = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
