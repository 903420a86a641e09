"""Routes made ready to be called: middleware, validation and handler as one function each, in tables by type."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from types import CoroutineType
from typing import Any, Final, final

from trio_wskit._context import Context
from trio_wskit._core.routes import Route, RouteOptions

__all__ = ["COROUTINE", "CompiledRoute", "Middleware", "compile_routes"]

Middleware = Callable[[Context[Any], Callable[[], Awaitable[Any]]], Awaitable[Any]]
COROUTINE: Final[Any] = CoroutineType
"""What a handler is, a decorator may hide; what it gives, none can."""


@final
class CompiledRoute:
    """A route with all that runs around its handler, ready to be called.

    Attributes:
        run: takes a context whose payload is not validated yet; gives the handler's result, or a coroutine of it.
        accept: where nothing but the validation stands before the handler: makes the payload, or raises anything where
            ``spec.structure`` shall look. None where there is middleware, which `run` knows of.
        handler: as it was registered.
        replies: True for calls.
        is_plain: nothing was asked for beside the handler.
        holds_up: what comes behind waits for the handler's end.
    """

    __slots__ = ("accept", "handler", "holds_up", "is_plain", "options", "replies", "run", "spec")

    def __init__(self, route: Route, middleware: Sequence[Middleware]) -> None:
        self.spec = route.spec
        self.replies = route.spec.reply is not None
        self.options = route.options
        self.is_plain = route.options == RouteOptions()
        lane = route.options.lane
        self.holds_up = lane.holds_up if lane is not None else not self.replies
        layers = [*middleware, *route.middleware]
        before = [layer for layer in layers if getattr(layer, "stage", "message") == "envelope"]
        after = [layer for layer in layers if getattr(layer, "stage", "message") != "envelope"]
        self.accept: Callable[[Any], Any] | None = None if layers else route.spec.accept
        self.handler = route.handler
        if layers:
            self.run = _wrap(before, _validated(route, _wrap(after, _as_async(route.handler))))
        else:
            self.run = _validated(route, route.handler)


def _validated(route: Route, handler: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Any]:
    accept = route.spec.accept
    structure = route.spec.structure

    def run(context: Context[Any]) -> Any:
        try:  # as `structure` does, with a call less
            context.payload = accept(context.envelope.payload)
        except Exception:
            context.payload = structure(context.envelope)
        return handler(context)

    return run


def _as_async(handler: Callable[[Context[Any]], Any]) -> Callable[[Context[Any]], Awaitable[Any]]:
    if inspect.iscoroutinefunction(handler):
        return handler

    async def run(context: Context[Any]) -> Any:
        result = handler(context)
        return await result if type(result) is COROUTINE else result

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


def compile_routes(
    routes: Sequence[Route], middleware: Sequence[Middleware], *, counts_calls: bool = False
) -> tuple[dict[str, CompiledRoute], dict[str, CompiledRoute]]:
    """Make the tables that dispatchers look types up in: all routes, and the plain ones among them.

    Args:
        routes: one for each type.
        middleware: the router's.
        counts_calls: the calls of all connections are counted together, so none of them is plain.
    """
    table = {route.spec.type: CompiledRoute(route, middleware) for route in routes}
    plain = {name: route for name, route in table.items() if route.is_plain and not (route.replies and counts_calls)}
    return table, table if len(plain) == len(table) else plain
