"""Listeners: from an address to admitted sessions, and back to silence."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, final

import attrs
import trio

from trio_wskit._app import App, open_app
from trio_wskit._core.handshake import HttpResponse, Request
from trio_wskit._core.upgrade import accept_upgrade
from trio_wskit._door import Admission
from trio_wskit.abc import Transport
from trio_wskit.errors import ConfigError, ConnectionClosed, Reject
from trio_wskit.transports._front import (
    LINK_ERRORS,
    Head,
    Page,
    accept_headers,
    answer_plain,
    check_pages,
    read_head,
    reject_response,
    remote_of,
    send_response,
)
from trio_wskit.transports._listeners import open_listeners
from trio_wskit.transports.native import native_transport
from trio_wskit.transports.trio_websocket import serve_trio_websocket

__all__ = ["Server", "TransportName", "run", "serve"]

logger = logging.getLogger("trio_wskit")

TransportName = Literal["native", "trio_websocket"]
_GOODBYE: Final = 1.5  # seconds for all goodbyes when serve is cancelled: Ctrl-C is not kept waiting
_ACCEPT_AGAIN: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@final
@attrs.frozen
class Server:
    """What `serve` listens on.

    Attributes:
        urls: one for each listener, ``ws://127.0.0.1:8000`` or ``unix:/run/app.sock``.
        port: the first TCP listener's port; 0 without one.
    """

    urls: Sequence[str]
    port: int


async def serve(
    app: App,
    host: str | None = None,
    port: int = 0,
    *,
    unix_path: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    http: Mapping[str, Page] | None = None,
    transport: TransportName = "native",
    reuse_port: bool = False,
    compression: bool = False,
    shutdown_code: int = 1001,
    handle_signals: bool = False,
    drain_seconds: float = 20.0,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, and serve every WebSocket that the app admits, until cancelled.

    Args:
        app: it is opened here, unless it is open already.
        host: an address or a name; None with a port means every interface.
        port: 0 to 65535; 0 lets the system choose: see the `Server` that is given to ``nursery.start``.
        unix_path: listen on a unix socket instead.
        ssl_context: for TLS.
        http: plain HTTP on the same port: path to bytes or text (sent as HTML), an `HttpResponse`, or a function of the
            `Request`, async or not, that returns one. ``/healthz`` and ``/readyz`` are there unless you give your own.
        transport: ``native``, or ``trio_websocket``.
        reuse_port: let several processes listen on the same port (SO_REUSEPORT).
        compression: agree to permessage-deflate where a client offers it. Of the native transport alone. A frame for
        many
            is compressed once; no connection keeps a window, which would cost it more than all the rest.
        shutdown_code: what clients get when this ends: 1001 going away, or 1012 service restart.
        handle_signals: end at a signal instead of being interrupted: for a program that is only this. SIGTERM drains
            the app first, see `App.drain`; SIGINT (Ctrl-C), or a second signal, ends at once. Works in the main thread
            alone.
        drain_seconds: how long SIGTERM leaves to what runs; less than your supervisor's patience.
        task_status: gives the `Server` once it listens.

    Raises:
        ConfigError: an argument is wrong.
        OSError: the address cannot be listened on.

    Cancelled: no new connection is accepted; every client gets `shutdown_code`, at most 1.5 seconds are spent on that;
    then all is cancelled.
    """
    if transport not in ("native", "trio_websocket"):
        raise ConfigError(f"transport takes 'native' or 'trio_websocket', not {transport!r}")
    if compression and transport != "native":
        raise ConfigError("compression is of the native transport alone")
    pages: dict[str, Page] = {
        "/healthz": HttpResponse(200, "ok\n"),
        "/readyz": partial(_readiness, app),
        **(http or {}),
    }
    check_pages(pages)
    with await open_listeners(host, port, unix_path, reuse_port=reuse_port) as listeners:
        async with _opened(app, shutdown_code), _connections() as connections:
            door = _Door(app, pages, ssl_context, connections, transport, compression=compression)
            await door.open()
            try:
                async with trio.open_nursery() as acceptors:
                    for listener in listeners.sockets:
                        acceptors.start_soon(door.accept_all, listener)
                    task_status.started(Server(listeners.urls(secure=ssl_context is not None), listeners.port))
                    if handle_signals:
                        await _until_told(app, drain_seconds, shutdown_code)
                        acceptors.cancel_scope.cancel()
            finally:
                listeners.close()  # from now on, who connects finds nobody, or the process that takes over
                await door.say_goodbye(shutdown_code)


async def _until_told(app: App, drain_seconds: float, code: int) -> None:
    """Wait for a signal; for SIGTERM, drain the app, while its door still tells who comes that it is closed."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        if await anext(signals) == signal.SIGINT:
            return
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                report = await app.drain(drain_seconds, code=code)
                logger.info("drained: %s", report)
                nursery.cancel_scope.cancel()

            nursery.start_soon(drain)
            await anext(signals)
            nursery.cancel_scope.cancel()


def _announce(server: Server) -> None:
    sys.stderr.write(f"serving {', '.join(server.urls)} (Ctrl-C ends it)\n")


def run(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_started: Callable[[Server], object] = _announce,
    **options: Any,
) -> None:
    """Run a program that is only this server: `serve` in ``trio.run``, until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        app: what to serve.
        host: an address or a name.
        port: 0 to 65535; 0 lets the system choose.
        on_started: called once it listens; by default it prints the addresses to the standard error.
        options: as for `serve`.

    Raises:
        ConfigError: an argument is wrong.
        OSError: the address cannot be listened on.
    """
    status = _Started(on_started)
    trio.run(partial(serve, app, host, port, handle_signals=True, task_status=status, **options))


@final
class _Started(trio.TaskStatus[Server]):
    """Calls a function where a nursery would let `start` return."""

    def __init__(self, on_started: Callable[[Server], object]) -> None:
        self._on_started = on_started

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        self._on_started(value)


@contextlib.asynccontextmanager
async def _opened(app: App, shutdown_code: int) -> AsyncGenerator[None]:
    if app.is_open:
        yield
    else:
        async with open_app(app, shutdown_code=shutdown_code):
            yield


@contextlib.asynccontextmanager
async def _connections() -> AsyncGenerator[trio.Nursery]:
    """A nursery for connections, which outlives a cancel until the end of the block."""
    opened: list[trio.Nursery] = []

    async def own(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                opened.append(nursery)
                task_status.started()
                await trio.sleep_forever()

    async with trio.open_nursery() as outer:
        await outer.start(own)
        try:
            yield opened[0]
        finally:
            opened[0].cancel_scope.cancel()


@final
class _Door:
    """What the listeners of one `serve` share."""

    def __init__(
        self,
        app: App,
        pages: Mapping[str, Page],
        ssl_context: ssl.SSLContext | None,
        connections: trio.Nursery,
        transport: TransportName,
        *,
        compression: bool,
    ) -> None:
        self._app = app
        self._compression = compression
        self._pages = pages
        self._ssl_context = ssl_context
        self._connections = connections
        self._native = transport == "native"
        self._poller: Any = None
        self._clients: set[str] = set()
        self._closing = False

    async def open(self) -> None:
        """Start what all connections share."""
        if self._native and sys.platform == "linux":
            from trio_wskit.transports.native import Poller  # epoll is Linux's own

            self._poller = Poller()
            await self._connections.start(self._poller.run)

    async def accept_all(self, listener: trio.SocketListener) -> None:
        """Accept until cancelled."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _ACCEPT_AGAIN:
                    raise
                logger.error("accept: %s; trying again in 100 ms", error)
                await trio.sleep(0.1)
                continue
            self._connections.start_soon(self._serve_stream, stream)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        """One connection, from its first byte to its last. Whatever it does, the others go on."""
        try:
            if self._native:
                await self._serve_native(stream)
            else:
                await self._serve_trio_websocket(stream)
        except LINK_ERRORS:
            pass  # the peer left, or never spoke our language
        except Exception:
            logger.exception("a connection failed before its session began")
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_native(self, stream: trio.abc.Stream) -> None:
        entered = await self._enter(stream)
        if entered is None:
            return
        # From here on this task is all that an idle connection keeps: no request's bytes, no deadline, no exit stack.
        transport, admission = entered
        try:
            await self._app.serve_session(transport, admission)
        finally:
            self._leave(admission)
            with (
                trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0),
                contextlib.suppress(ConnectionClosed),
            ):
                await transport.aclose()

    async def _enter(self, stream: trio.abc.Stream) -> tuple[Transport, Admission] | None:
        """Shake hands; None where the request got another answer, or took too long. `_leave` follows every success."""
        with trio.move_on_after(self._app.limits.handshake_timeout):
            greeted = await self._greet(stream)
            if greeted is None:
                return None
            stream, head = greeted
            try:
                subprotocols = self._app.subprotocols_for(head.request)
                upgrade = accept_upgrade(head.request.headers, subprotocols=subprotocols, deflate=self._compression)
                admission = await self._admit(head.request)
            except Reject as refusal:
                await send_response(stream, reject_response(refusal))
                return None
            try:
                await stream.send_all(upgrade.to_bytes(accept_headers(admission)))
                transport = native_transport(
                    stream,
                    poller=self._poller,
                    leftover=head.leftover,
                    max_message_bytes=self._app.limits.max_frame_bytes,
                    deflate_window_bits=upgrade.deflate_window_bits,
                )
            except BaseException:
                self._leave(admission)
                raise
            return transport, admission
        return None

    async def _serve_trio_websocket(self, stream: trio.abc.Stream) -> None:
        with trio.move_on_after(self._app.limits.handshake_timeout) as handshake:
            greeted = await self._greet(stream)
            if greeted is None:
                return
            stream, head = greeted
            try:
                accept_upgrade(head.request.headers)
                admission = await self._admit(head.request)
            except Reject as refusal:
                await send_response(stream, reject_response(refusal))
                return
            try:
                await serve_trio_websocket(self._app, stream, head, admission, handshake)
            finally:
                self._leave(admission)

    async def _admit(self, request: Request) -> Admission:
        if self._closing:
            raise Reject(503, "Shutting down", {"Retry-After": "1"})
        admission = await self._app.door.take_place(request)
        self._clients.add(admission.client_id)
        return admission

    def _leave(self, admission: Admission) -> None:
        self._clients.discard(admission.client_id)
        self._app.door.free_place(admission.request, admission.identity)

    async def _greet(self, stream: trio.abc.Stream) -> tuple[trio.abc.Stream, Head] | None:
        """Begin TLS where it is due, and read the request; None where it got a plain answer."""
        remote = remote_of(stream)
        if self._ssl_context is not None:
            stream = trio.SSLStream(stream, self._ssl_context, server_side=True, https_compatible=True)
        try:
            head = await read_head(stream, remote=remote, secure=self._ssl_context is not None)
        except Reject as refusal:
            await send_response(stream, reject_response(refusal))
            return None
        if head.wants_websocket:
            return stream, head
        try:
            response = await answer_plain(head.request, self._pages)
        except Exception:
            logger.exception("the page %s failed", head.request.path)
            response = HttpResponse(500, "Internal server error\n")
        await send_response(stream, response, head_only=head.request.method == "HEAD")
        return None

    async def say_goodbye(self, code: int) -> None:
        """Admit nobody any more, and close the sessions that came in here: all at once, in at most 1.5 seconds."""
        self._closing = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
            async with trio.open_nursery() as nursery:
                for session in self._app.sessions:
                    if session.client_id in self._clients:
                        nursery.start_soon(session.close, code, "going away")


def _readiness(app: App, _: object) -> HttpResponse:
    return HttpResponse(200, "ready\n") if app.ready else HttpResponse(503, "not ready\n", headers={"Retry-After": "1"})
