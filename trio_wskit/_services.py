"""What an app lends to each of its sessions, and what it says of a limit that a client went over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import attrs

from trio_wskit._compiled import CompiledRoute
from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit._lease import LeaseKeeper
from trio_wskit._work import Work
from trio_wskit.abc import IdempotencyStore
from trio_wskit.pubsub._desk import Desk
from trio_wskit.pubsub._hub import Hub

if TYPE_CHECKING:
    from trio_wskit._router import Hooks
    from trio_wskit.presence._presence import Presence

__all__ = ["LimitExceeded", "Services"]


@final
@attrs.frozen
class LimitExceeded:
    """What `on_limit_exceeded` is told.

    Attributes:
        type: ``payload``, ``rate``, ``connections`` or ``backpressure``.
        observed: what came: bytes, messages or connections.
        limit: what was allowed, in the same unit.
        client_id: whose it was; None before a connection is accepted.
    """

    type: str
    observed: float
    limit: float
    client_id: str | None


@final
@attrs.frozen
class Services:
    """What an app lends to its sessions.

    Attributes:
        limits: the bounds.
        routes: type to route.
        plain_routes: those that ask for nothing special.
        hooks: the router's hooks and observers.
        hub: local fan-out.
        desk: what the topics of all clients share.
        flusher: joins writes.
        publish: the app's publish.
        work: what all sessions share.
        idempotency: remembers answers; None where nobody does.
        leases: watches when an authentication ends.
        presence: who is there; None where the app has none.
        closing_codes: errors that close the connection of who gets them.
        shutdown_code: what clients get when their session is cancelled.
        wall_clock: gives seconds since 1970, for timestamps on the wire.
    """

    limits: Limits
    routes: Mapping[str, CompiledRoute]
    plain_routes: Mapping[str, CompiledRoute]
    hooks: Hooks
    hub: Hub
    desk: Desk
    flusher: Flusher
    publish: Callable[..., Any]
    work: Work
    idempotency: IdempotencyStore | None
    leases: LeaseKeeper
    presence: Presence | None = None
    closing_codes: frozenset[str] = frozenset()
    shutdown_code: int = 1001
    wall_clock: Callable[[], float] = time.time
