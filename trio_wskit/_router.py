"""Registration: which function serves which message, and what runs around it. A router holds no run-time state."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import attrs

from trio_wskit._compiled import Middleware
from trio_wskit._context import Context
from trio_wskit._core.error_map import ErrorMap
from trio_wskit._core.lanes import Lane
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.routes import OnConflict, Route, RouteOptions, RouteTable
from trio_wskit._core.schema import MessageSpec, RpcType, spec_of
from trio_wskit.errors import ConfigError

if TYPE_CHECKING:
    from trio_wskit._services import LimitExceeded
    from trio_wskit._session import Session

__all__ = ["Hooks", "Observer", "RouteBuilder", "Router"]

logger = logging.getLogger("trio_wskit")

M = TypeVar("M")
Q = TypeVar("Q")
R = TypeVar("R")

EventHandler = Callable[[Context[M]], Awaitable[None]] | Callable[[Context[M]], None]
SessionHook = Callable[["Session"], Awaitable[None]]
ErrorHook = Callable[[Exception, Context[Any] | None], None]
LimitHook = Callable[["LimitExceeded"], None]

H = TypeVar("H", bound=Callable[..., Any])


@final
@attrs.define(kw_only=True, eq=False)
class Observer:
    """Who watches an app without a say in it: plain functions that must not wait. What one raises is logged.

    Attributes:
        on_open: after every `on_open` hook of a new session.
        on_close: after every `on_close` hook.
        on_error: whatever `on_error` hooks are told.
        on_publish: after a publish, whatever came of it.
    """

    on_open: Callable[[Session], None] | None = None
    on_close: Callable[[Session], None] | None = None
    on_error: ErrorHook | None = None
    on_publish: Callable[[PublishEnvelope, PublishResult], None] | None = None

    def stop(self) -> None:
        """See nothing more, in whatever router this is."""
        self.on_open = self.on_close = self.on_error = self.on_publish = None

    def opened(self, session: Session) -> None:
        _call(self.on_open, session)

    def closed(self, session: Session) -> None:
        _call(self.on_close, session)

    def failed(self, error: Exception, context: Context[Any] | None) -> None:
        _call(self.on_error, error, context)

    def published(self, envelope: PublishEnvelope, result: PublishResult) -> None:
        _call(self.on_publish, envelope, result)


def _call(watch: Callable[..., None] | None, *args: object) -> None:
    if watch is None:
        return
    try:
        watch(*args)
    except Exception:
        logger.exception("an observer failed")


@final
@attrs.define
class Hooks:
    """What a router knows beside its routes."""

    on_open: list[SessionHook] = attrs.field(factory=list[SessionHook])
    on_close: list[SessionHook] = attrs.field(factory=list[SessionHook])
    on_error: list[ErrorHook] = attrs.field(factory=list[ErrorHook])
    on_limit_exceeded: list[LimitHook] = attrs.field(factory=list[LimitHook])
    observers: list[Observer] = attrs.field(factory=list[Observer])
    errors: ErrorMap = attrs.field(factory=ErrorMap)

    def extend(self, other: Hooks) -> None:
        """Take over the other's hooks, after one's own."""
        for field in attrs.fields(Hooks):
            getattr(self, field.name).extend(getattr(other, field.name))


@final
class Router:
    """A set of handlers. Routers can be merged and mounted, and one may serve several apps.

    Example:
        >>> router = Router()
        >>> @router.on(Say)
        ... async def say(ctx: Context[Say]) -> None:
        ...     await ctx.publish("room:1", Said(ctx.payload.text))
    """

    def __init__(self) -> None:
        self._routes = RouteTable()
        self._middleware: list[Middleware] = []
        self.hooks: Hooks = Hooks()

    def __repr__(self) -> str:
        return f"<Router of {len(self._routes)} routes>"

    @property
    def routes(self) -> Iterator[Route]:
        """The routes, in order of registration."""
        return iter(self._routes)

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """What runs around every route, outermost first."""
        return tuple(self._middleware)

    @property
    def errors(self) -> ErrorMap:
        """The codes of your own exceptions: ``router.errors.register(SoldOut, "FAILED_PRECONDITION")``."""
        return self.hooks.errors

    def on(
        self, message: type[M], *, lane: Lane | None = None, timeout: float | None = None, detached: bool = False
    ) -> Callable[[EventHandler[M]], EventHandler[M]]:
        """Register the handler of an event.

        The handler is a coroutine function, or a plain function that never waits: that one runs at once and costs
        least. Events of one connection are served one after another, in the order in which they came.

        Args:
            message: its class.
            lane: how such messages share their connection: `serial` (the default), `concurrent` or `keyed`.
            timeout: seconds; a handler that takes longer is cancelled, and the client gets DEADLINE_EXCEEDED.
            detached: the handler runs in the app's nursery, holds up nothing, and goes on when its client leaves.
                There is room for ``Limits.max_detached`` of them in an app.

        Raises:
            ConfigError: not a message class, a request that wants `rpc`, or a type that has a handler.
        """
        options = RouteOptions(lane=lane, timeout=timeout, detached=detached)
        spec_of(message)  # a forgotten message class is an error at once: `@router.on` alone would swallow the handler
        return RouteBuilder(self, message, (), options).on

    def rpc(
        self,
        request: RpcType[Q, R],
        *,
        lane: Lane | None = None,
        timeout: float | None = None,
        detached: bool = False,
    ) -> Callable[
        [Callable[[Context[Q]], Awaitable[R]] | Callable[[Context[Q]], R]],
        Callable[[Context[Q]], Awaitable[R]] | Callable[[Context[Q]], R],
    ]:
        """Register the handler of a request, ``class GetUser(Rpc[User])``: what it returns is the reply.

        Calls of one connection start in order and run beside one another, at most ``Limits.max_in_flight`` of them.

        Args:
            request: its class.
            lane: how such calls share their connection: `concurrent` (the default), `serial` or `keyed`. Waiting for
                its turn, a call is in flight: it can be aborted, and its time runs.
            timeout: seconds that the handler may take, in place of ``Limits.call_timeout``. A client may ask for less.
            detached: the handler runs in the app's nursery: it goes on when its client leaves. There is room for
                ``Limits.max_detached`` of them in an app.

        Raises:
            ConfigError: not a request class, or a type that has a handler.
        """
        options = RouteOptions(lane=lane, timeout=timeout, detached=detached)
        spec_of(request)

        def register(handler: Any) -> Any:
            return self.add_route(request, handler, (), options, wants_reply=True)

        return register

    def route(
        self, message: type[M], *, lane: Lane | None = None, timeout: float | None = None, detached: bool = False
    ) -> RouteBuilder[M]:
        """Register with middleware of its own: ``router.route(Say).use(log).on(handler)``; options as in `on`."""
        spec_of(message)
        return RouteBuilder(self, message, (), RouteOptions(lane=lane, timeout=timeout, detached=detached))

    def use(self, middleware: Middleware) -> Middleware:
        """Run ``async def middleware(ctx, call_next)`` around every route of this router, those before it included.

        It answers instead of the handler by raising, or by not calling ``await call_next()``. It runs after validation,
        unless it has an attribute ``stage = "envelope"``: then before, and must not read ``ctx.payload``.
        Returns its argument, so that it can be a decorator.
        """
        _check_middleware(middleware)
        self._middleware.append(middleware)
        return middleware

    def merge(self, other: Router, *, on_conflict: OnConflict = "error") -> Router:
        """Take over the other's routes with their middleware, and its hooks. Later changes of the other are not seen.

        Args:
            other: unchanged.
            on_conflict: for a type that both have: an error, ``skip`` (ours stays) or ``replace`` (theirs wins).

        Raises:
            ConfigError: a conflict; nothing was taken over.
        """
        return self.mount("", other, on_conflict=on_conflict)

    def mount(self, prefix: str, other: Router, *, on_conflict: OnConflict = "error") -> Router:
        """Like `merge`, with `prefix` in front of every message type (nothing is put in between). Replies keep theirs.

        Raises:
            ConfigError: a conflict, or a prefix that makes a reserved type; nothing was taken over.
        """
        if other is self:
            raise ConfigError("a router cannot be merged into itself")
        around = other.middleware
        self._routes.update(
            (
                attrs.evolve(
                    route,
                    spec=route.spec.with_type(prefix + route.spec.type) if prefix else route.spec,
                    middleware=(*around, *route.middleware),
                )
                for route in other.routes
            ),
            on_conflict,
        )
        self.hooks.extend(other.hooks)
        return self

    def on_open(self, hook: SessionHook) -> SessionHook:
        """Run ``async def hook(session)`` for every new connection, before its first message is served.

        Hooks run in order. One that raises `CloseError` closes the connection so; any other error closes it with 1011.
        Cancelled when the client leaves.
        """
        _check_async(hook, "an on_open hook")
        self.hooks.on_open.append(hook)
        return hook

    def on_close(self, hook: SessionHook) -> SessionHook:
        """Run ``async def hook(session)`` when a connection is over, after its last handler.

        ``session.close_code`` says how it ended. The topics are still there; sending raises `ConnectionClosed`. All
        hooks run, whatever one raises, within twice ``Limits.close_timeout``.
        """
        _check_async(hook, "an on_close hook")
        self.hooks.on_close.append(hook)
        return hook

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Call ``hook(error, ctx)`` for what handlers, middleware and hooks raise, and for what cannot be understood.

        ``ctx`` is None for hooks, and for what a client sends that is no message of this app: malformed, of a reserved
        type, or of one that has no handler. Of what is too much, or too large, `on_limit_exceeded` hooks are told.

        A plain function that must not wait; the client has its answer already.
        """
        _check_plain(hook, "an on_error hook")
        self.hooks.on_error.append(hook)
        return hook

    def on_limit_exceeded(self, hook: LimitHook) -> LimitHook:
        """Call ``hook(info)`` when a client goes over a limit. A plain function; what it raises is logged, no more."""
        _check_plain(hook, "an on_limit_exceeded hook")
        self.hooks.on_limit_exceeded.append(hook)
        return hook

    def observe(
        self,
        *,
        on_open: Callable[[Session], None] | None = None,
        on_close: Callable[[Session], None] | None = None,
        on_error: ErrorHook | None = None,
        on_publish: Callable[[PublishEnvelope, PublishResult], None] | None = None,
    ) -> Callable[[], None]:
        """Watch with plain functions that must not wait; see `Observer`.

        Returns:
            A function that ends the watching; a second call of it does nothing.
        """
        for watch in (on_open, on_close, on_error, on_publish):
            if watch is not None:
                _check_plain(watch, "an observer")
        observer = Observer(on_open=on_open, on_close=on_close, on_error=on_error, on_publish=on_publish)
        observers = self.hooks.observers
        self.hooks.observers = [*observers, observer]

        def stop() -> None:
            observer.stop()
            self.hooks.observers = [one for one in self.hooks.observers if one is not observer]

        return stop

    def add_route(
        self,
        message: Any,
        handler: Any,
        middleware: tuple[Middleware, ...],
        options: RouteOptions,
        *,
        wants_reply: bool,
    ) -> Any:
        spec: MessageSpec = spec_of(message)
        if not callable(handler):
            raise ConfigError(f"the handler of {spec.type!r} must be a function, not {handler!r}")
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise ConfigError(f"the handler of {spec.type!r} yields; return the reply, and use ctx.progress() before")
        if wants_reply and spec.reply is None:
            raise ConfigError(f"{spec.type!r} declares no reply: derive it from Rpc[…], or register it with on()")
        if not wants_reply and spec.reply is not None:
            raise ConfigError(f"{spec.type!r} wants a reply of type {spec.reply.type!r}: register it with rpc()")
        self._routes.add(Route(spec, handler, middleware, options))
        return handler


@final
class RouteBuilder(Generic[M]):
    """One route on its way into a router; see `Router.route`."""

    __slots__ = ("_message", "_middleware", "_options", "_router")

    def __init__(
        self, router: Router, message: type[M], middleware: tuple[Middleware, ...], options: RouteOptions
    ) -> None:
        self._router = router
        self._message = message
        self._middleware = middleware
        self._options = options

    def use(self, middleware: Middleware) -> RouteBuilder[M]:
        """Run this around the handler, inside the router's own middleware."""
        _check_middleware(middleware)
        return RouteBuilder(self._router, self._message, (*self._middleware, middleware), self._options)

    def on(self, handler: EventHandler[M]) -> EventHandler[M]:
        """Register as `Router.on` does."""
        self._router.add_route(self._message, handler, self._middleware, self._options, wants_reply=False)
        return handler

    def rpc(self, handler: Callable[[Context[M]], Any]) -> Callable[[Context[M]], Any]:
        """Register as `Router.rpc` does; the type of the reply is checked when the handler returns."""
        self._router.add_route(self._message, handler, self._middleware, self._options, wants_reply=True)
        return handler


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or (
        callable(function) and inspect.iscoroutinefunction(type(function).__call__)
    )


def _check_async(function: object, what: str) -> None:
    if not _is_async(function):
        raise ConfigError(f"{what} must be an async function, not {function!r}")


def _check_middleware(middleware: object) -> None:
    _check_async(middleware, "middleware")
    stage = getattr(middleware, "stage", "message")
    if stage not in ("envelope", "message"):
        raise ConfigError(f"the stage of middleware is 'envelope' or 'message', not {stage!r}")


def _check_plain(function: object, what: str) -> None:
    if not callable(function) or _is_async(function):
        raise ConfigError(f"{what} must be a plain function that never waits, not {function!r}")
