"""Which message goes to which handler: the table that a router fills and an app compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, final

import attrs

from trio_wskit._core.lanes import Lane
from trio_wskit._core.schema import MessageSpec
from trio_wskit.errors import ConfigError

__all__ = ["OnConflict", "Route", "RouteOptions", "RouteTable"]

OnConflict = Literal["error", "skip", "replace"]


@final
@attrs.frozen(kw_only=True)
class RouteOptions:
    """What a route asks for beside its handler. Plain values, checked when they are made.

    Attributes:
        lane: how its messages share their connection; None means `serial` for events and `concurrent()` for calls.
        timeout: seconds that its handler may take, in place of ``Limits.call_timeout``; None means that, for calls, and
            no limit for events.
        detached: its handlers outlive their connection.
    """

    lane: Lane | None = None
    timeout: float | None = None
    detached: bool = False

    def __attrs_post_init__(self) -> None:
        lane, timeout, detached = cast("tuple[object, object, object]", (self.lane, self.timeout, self.detached))
        if lane is not None and not isinstance(lane, Lane):
            raise ConfigError(f"lane takes serial, concurrent(n) or keyed(key), not {lane!r}")
        if timeout is not None and (
            not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0
        ):
            raise ConfigError(f"timeout takes seconds above 0, not {timeout!r}")
        if not isinstance(detached, bool):
            raise ConfigError(f"detached takes True or False, not {detached!r}")
        if detached and lane is not None:
            raise ConfigError("a detached handler runs beside its connection: it takes no lane")


@final
@attrs.frozen
class Route:
    """One registered handler.

    Attributes:
        spec: the message's compiled schema; ``spec.type`` is the type on the wire, with every mounted prefix.
        handler: takes the context; a coroutine function, or a plain function that never waits.
        middleware: what runs around this handler alone, outermost first.
        options: what else the route asks for.
    """

    spec: MessageSpec
    handler: Callable[[Any], Any]
    middleware: tuple[Callable[[Any, Any], Any], ...] = ()
    options: RouteOptions = RouteOptions()


@final
class RouteTable:
    """Message type to `Route`, one for each type."""

    __slots__ = ("_routes",)

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def add(self, route: Route, on_conflict: OnConflict = "error") -> None:
        """Register; a type that is taken is an error, or the old (``skip``) or the new (``replace``) one wins."""
        held = self._routes.get(route.spec.type)
        if held is not None and on_conflict == "error":
            raise ConfigError(
                f"a handler for {route.spec.type!r} is registered already ({_name(held.handler)}); "
                f"to put {_name(route.handler)} in its place, merge with on_conflict='replace'"
            )
        if held is None or on_conflict == "replace":
            self._routes[route.spec.type] = route

    def update(self, routes: Iterator[Route], on_conflict: OnConflict) -> None:
        """Add several, all or none."""
        if on_conflict not in ("error", "skip", "replace"):
            raise ConfigError(f"on_conflict takes 'error', 'skip' or 'replace', not {on_conflict!r}")
        merged = RouteTable()
        merged._routes = dict(self._routes)
        for route in routes:
            merged.add(route, on_conflict)
        self._routes = merged._routes

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, message_type: object) -> bool:
        return message_type in self._routes


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", repr(handler))
