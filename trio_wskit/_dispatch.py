"""From envelope to handler to answer: the first-in first-out dispatcher of one connection.

Rules
- One task of the session is the *leader*: it takes envelopes in the order of arrival and runs each handler itself,
  right there, without a task or a cancel scope of its own. That is all that most messages need.
- Events are serial: when the handler of an event waits, the leader waits with it.
- Calls (RPC) are concurrent: when the handler of a call waits for the first time, a new task is started as leader, and
  the old one belongs to that call alone until it is answered (leader/followers; Schmidt and others, 2000). So calls
  start in order, and only those that wait cost a task.
- The leader's cancel scope is its handler's: an abort, a deadline or a disconnect cancels exactly that.
- While the leader does not wait, the outbox is corked: the answers of one batch leave in one write.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from operator import length_hint
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio

from trio_wskit._await import run_until_wait
from trio_wskit._context import Context
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.routes import Route
from trio_wskit._rpc import Call
from trio_wskit.errors import ErrorCode, WsKitError

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["CompiledRoute", "Dispatcher", "Middleware", "compile_routes"]

Middleware = Callable[[Context[Any], Callable[[], Awaitable[Any]]], Awaitable[Any]]
_NOTHING: Final[Iterator[Envelope]] = iter(())
_COROUTINE: Final[Any] = CoroutineType  # what a handler is, a decorator may hide; what it gives, none can


@final
class CompiledRoute:
    """A route with all that runs around its handler, ready to be called.

    Attributes:
        run: takes a context whose payload is not validated yet; gives the handler's result, or a coroutine of it.
        replies: True for calls.
    """

    __slots__ = ("replies", "run", "spec")

    def __init__(self, route: Route, middleware: Sequence[Middleware]) -> None:
        self.spec = route.spec
        self.replies = route.spec.reply is not None
        layers = [*middleware, *route.middleware]
        before = [layer for layer in layers if getattr(layer, "stage", "message") == "envelope"]
        after = [layer for layer in layers if getattr(layer, "stage", "message") != "envelope"]
        if layers:
            self.run = _wrap(before, _validated(route, _wrap(after, _as_async(route.handler))))
        else:
            self.run = _validated(route, route.handler)


def _validated(route: Route, handler: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Any]:
    structure = route.spec.structure

    def run(context: Context[Any]) -> Any:
        context.payload = structure(context.envelope)
        return handler(context)

    return run


def _as_async(handler: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Awaitable[Any]]:
    if inspect.iscoroutinefunction(handler):
        return handler

    async def run(context: Context[Any]) -> Any:
        result = handler(context)
        return await result if type(result) is _COROUTINE else result

    return run


def _wrap(layers: Sequence[Middleware], inner: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Any]:
    for layer in reversed(layers):
        inner = _layer(layer, inner)
    return inner


def _layer(middleware: Middleware, inner: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Any]:
    async def run(context: Context[Any]) -> Any:
        called = False

        async def call_next() -> Any:
            nonlocal called
            if called:
                raise RuntimeError(f"{middleware!r} called call_next() twice")
            called = True
            return await inner(context)

        return await middleware(context, call_next)

    return run


def compile_routes(routes: Sequence[Route], middleware: Sequence[Middleware]) -> dict[str, CompiledRoute]:
    """Make the table that dispatchers look types up in."""
    return {route.spec.type: CompiledRoute(route, middleware) for route in routes}


@final
class Dispatcher:
    """The lane of one connection: what waits, what runs, and which task leads.

    Args:
        session: whose envelopes these are.
        routes: type to route.
        nursery: owns followers.
        max_in_flight: how many calls may wait at the same time.
    """

    __slots__ = (
        "aborted",
        "calls",
        "disconnected",
        "in_flight",
        "max_in_flight",
        "nursery",
        "pending",
        "routes",
        "running",
        "session",
    )

    def __init__(
        self,
        session: Session,
        routes: Mapping[str, CompiledRoute],
        nursery: trio.Nursery,
        max_in_flight: int,
    ) -> None:
        self.session = session
        self.routes = routes
        self.nursery = nursery
        self.max_in_flight = max_in_flight
        self.pending: Iterator[Envelope] = _NOTHING  # what is left of the batch; a new leader goes on where the old was
        self.running: set[_Leader] | None = None  # those whose handler waits; made at the first wait
        self.calls: dict[str, _Leader] | None = None  # those among them that a client may abort
        self.aborted: set[str] | None = None  # aborts of calls that have not started yet
        self.in_flight = 0
        self.disconnected = False

    def run(self) -> Awaitable[None]:
        """Lead until the connection is closed and everything that came before has been served."""
        return _Leader(self).lead()

    def abort(self, correlation_id: str) -> None:
        """The client wants this call no more: cancel it, or do not start it."""
        if self.calls and correlation_id in self.calls:
            self.calls[correlation_id].cancel("CANCELLED")
        elif length_hint(self.pending) or self.session.connection.inbox:
            if self.aborted is None:
                self.aborted = set()
            if len(self.aborted) < 1024:  # more than can wait; a client that invents ids gains nothing
                self.aborted.add(correlation_id)

    def disconnect(self) -> None:
        """The client is gone: cancel every handler that waits, now, and every other at its first wait."""
        self.disconnected = True
        for leader in tuple(self.running or ()):
            leader.cancel(None)

    def batch_done(self) -> None:
        """Send what the last batch was answered."""
        self.pending = _NOTHING
        session = self.session
        session.outbox.uncork()
        if self.aborted and not session.connection.inbox:
            self.aborted = None


@final
class _Leader:
    """One task: it leads, or finishes its call."""

    __slots__ = ("cancel_code", "context", "dispatcher", "leading", "scope", "stopped", "waited")

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.leading = True
        self.scope = trio.CancelScope()
        self.context: Context[Any] | None = None  # of the handler that runs
        self.waited = False  # whether that handler has waited
        self.stopped = False  # this scope serves no more: it was cancelled, or another task leads
        self.cancel_code: ErrorCode | None = None

    async def lead(self) -> None:
        self.dispatcher.session.outbox.cork()
        while self.leading:
            try:
                with self.scope:
                    await self._serve()
            finally:
                if self.waited:
                    self._finished()
            if self.scope.cancelled_caught:
                self._was_cancelled()
            if self.leading:
                self.scope = trio.CancelScope()  # one that was cancelled, even too late, serves no more
                self.stopped = False

    async def _serve(self) -> None:
        dispatcher = self.dispatcher
        routes = dispatcher.routes
        session = dispatcher.session
        envelope: Envelope | None
        context: Context[Any] | None
        while True:
            for envelope in dispatcher.pending:
                route = routes.get(envelope.type)
                if route is None:
                    what = f"no handler for {envelope.type[:100]!r}"
                    session.refuse(WsKitError("UNIMPLEMENTED", what), envelope.correlation_id)
                elif route.replies:
                    await self._serve_call(route, envelope)
                else:
                    context = Context(session, envelope, None)
                    try:
                        result = route.run(context)
                        if type(result) is _COROUTINE:
                            self.context = context
                            await run_until_wait(result, self._event_waits)
                    except Exception as error:
                        self._failed(context, error)
                    except BaseExceptionGroup as group:
                        raise self._failed_in_part(context, group) from None
                    if self.waited:
                        self._finished()
                if self.stopped:
                    return
            self.context = context = envelope = None  # an idle connection keeps no message alive
            dispatcher.batch_done()
            try:
                dispatcher.pending = iter(await session.connection.inbox.get())
            except trio.EndOfChannel:
                self.leading = False
                dispatcher.nursery.cancel_scope.cancel()
                return
            session.outbox.cork()

    async def _serve_call(self, route: CompiledRoute, envelope: Envelope) -> None:
        dispatcher = self.dispatcher
        session = dispatcher.session
        correlation_id = envelope.correlation_id
        if not self._may_start(correlation_id):
            return
        call = Call(correlation_id)
        context: Context[Any] = Context(session, envelope, call)
        try:
            result = route.run(context)
            if type(result) is _COROUTINE:
                self.context = context
                result = await run_until_wait(result, self._call_waits)
            if not call.answered:
                frame = session.reply_frame(context, result)
                if not session.outbox.offer(frame):
                    await session.outbox.send(frame)
                call.answered = True
        except Exception as error:
            self._failed(context, error)
        except BaseExceptionGroup as group:
            raise self._failed_in_part(context, group) from None
        if self.waited:
            self._finished()

    def _may_start(self, correlation_id: str | None) -> bool:
        dispatcher = self.dispatcher
        session = dispatcher.session
        if dispatcher.aborted and correlation_id in dispatcher.aborted:
            dispatcher.aborted.discard(correlation_id)
            session.refuse(WsKitError("CANCELLED", "aborted before it was started"), correlation_id)
            return False
        if dispatcher.calls and correlation_id in dispatcher.calls:
            # An answer with this id would be taken for the answer of the first call.
            session.refuse(
                WsKitError("ALREADY_EXISTS", "a call with this correlationId runs", {"correlationId": correlation_id}),
                None,
            )
            return False
        if dispatcher.in_flight >= dispatcher.max_in_flight:
            session.refuse(
                WsKitError("RESOURCE_EXHAUSTED", f"{dispatcher.max_in_flight} calls are in flight"), correlation_id
            )
            return False
        return True

    def _event_waits(self) -> None:
        dispatcher = self.dispatcher
        dispatcher.session.outbox.uncork()
        self.waited = True
        if dispatcher.running is None:
            dispatcher.running = set()
        dispatcher.running.add(self)
        if dispatcher.disconnected:
            self.cancel(None)

    def _call_waits(self) -> None:
        self._event_waits()
        dispatcher = self.dispatcher
        assert self.context is not None
        assert self.context.call is not None
        self.scope.deadline = dispatcher.session.call_deadline(self.context.envelope)
        correlation_id = self.context.call.correlation_id
        if correlation_id is not None:
            if dispatcher.calls is None:
                dispatcher.calls = {}
            dispatcher.calls[correlation_id] = self
        dispatcher.in_flight += 1
        self.leading = False
        self.stopped = True
        dispatcher.nursery.start_soon(_Leader(dispatcher).lead)

    def _finished(self) -> None:
        """The handler that waited has ended, one way or another."""
        self.waited = False
        dispatcher = self.dispatcher
        assert dispatcher.running is not None
        dispatcher.running.discard(self)
        if self.leading:
            dispatcher.session.outbox.cork()
        else:
            dispatcher.in_flight -= 1
            assert self.context is not None
            assert self.context.call is not None
            correlation_id = self.context.call.correlation_id
            if correlation_id is not None and dispatcher.calls is not None:
                del dispatcher.calls[correlation_id]

    def cancel(self, code: ErrorCode | None) -> None:
        """Cancel the handler that waits; `code` is what its client is told, if anything."""
        if self.cancel_code is None:
            self.cancel_code = code
        self.stopped = True
        self.scope.cancel()

    def _failed(self, context: Context[Any], error: Exception) -> None:
        if self.waited and self.scope.cancel_called:
            self._was_cancelled()  # this is why it failed, and what its client is told
        self.dispatcher.session.failed(context, error)

    def _failed_in_part(self, context: Context[Any], group: BaseExceptionGroup[BaseException]) -> BaseException:
        """Some children of a handler failed over being cancelled. What is left to raise is the cancellation."""
        parts: tuple[Any, Any] = group.split(trio.Cancelled)
        cancelled, rest = parts
        if cancelled is None or not isinstance(rest, Exception):
            return group
        self._failed(context, rest)
        return cast("BaseException", cancelled)

    def _was_cancelled(self) -> None:
        context = self.context
        code, self.cancel_code = self.cancel_code, None
        if context is None or self.dispatcher.disconnected:
            return
        call = context.call
        if call is None or call.answered:
            return
        call.answered = True
        self.dispatcher.session.refuse(WsKitError(code or "DEADLINE_EXCEEDED"), call.correlation_id)
