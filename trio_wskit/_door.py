"""Who gets in: places, the Origin, authentication, identity. A handshake that may not go on is a `Reject`."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from trio_wskit._core.handshake import Request, origin_allowed
from trio_wskit._core.ids import uuid7
from trio_wskit._core.options import Limits
from trio_wskit._services import LimitExceeded
from trio_wskit.errors import Reject

if TYPE_CHECKING:
    from trio_wskit._router import Hooks

__all__ = ["Admission", "Authenticate", "Door", "Place"]

logger = logging.getLogger("trio_wskit")

Authenticate = Callable[[Request], Awaitable[Any]]

_RETRY_AFTER: Final = {"Retry-After": "1"}


def _retry_after() -> Mapping[str, str]:
    return {"Retry-After": str(random.randint(1, 5))}  # not the same for all


@final
@attrs.frozen
class Admission:
    """A handshake that may go on.

    Attributes:
        request: the handshake's request.
        client_id: the new connection's id, a UUIDv7.
        data: what `authenticate` returned.
        identity: who the client is, across connections; the client id where the app names no one.
    """

    request: Request
    client_id: str
    data: Any
    identity: str = ""


@final
class Place:
    """See `App.admit`. A class of its own, for a generator would cost every idle connection half a kilobyte."""

    __slots__ = ("_door", "_identity", "_request")

    def __init__(self, door: Door, request: Request) -> None:
        self._door = door
        self._request = request
        self._identity = ""

    async def __aenter__(self) -> Admission:
        admission = await self._door.take_place(self._request)
        self._identity = admission.identity
        return admission

    async def __aexit__(self, *_: object) -> None:
        self._door.free_place(self._request, self._identity)


@final
class Door:
    """Lets connections in, and counts them.

    Args:
        limits: how many there may be.
        hooks: of the router; those for limits are told of who is sent away.
        is_open: False while nobody is let in.
        authenticate, origins, identity, wall_clock: see `trio_wskit.App`.
    """

    def __init__(
        self,
        limits: Limits,
        hooks: Callable[[], Hooks],
        is_open: Callable[[], bool],
        *,
        authenticate: Authenticate | None,
        origins: Collection[str] | None,
        identity: Callable[[Admission], str | None] | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._hooks = hooks
        self._is_open = is_open
        self._authenticate = authenticate
        self._origins = None if origins is None else frozenset(origin.lower().rstrip("/") for origin in origins)
        self._identity = identity
        self._wall_clock = wall_clock
        self._places = 0  # handshakes and sessions that hold a place
        self._places_by_address: dict[str, int] = {}
        self._places_by_identity: dict[str, int] = {}

    @property
    def places(self) -> int:
        """How many handshakes and sessions there are."""
        return self._places

    async def take_place(self, request: Request) -> Admission:
        """What entering `admit` does; every success is followed by one `free_place`."""
        if not self._is_open():
            raise Reject(503, "Shutting down", _retry_after())
        if not origin_allowed(request, self._origins):
            raise Reject(403, "Origin not allowed")
        address = request.remote
        self._check_places(address)
        self._places += 1
        if address is not None:
            self._places_by_address[address] = self._places_by_address.get(address, 0) + 1
        try:
            client_id = uuid7(int(self._wall_clock() * 1000), os.urandom(10))
            data = await self._data_of(request, client_id)
            if not self._is_open():  # look again: that may have taken its time
                raise Reject(503, "Shutting down", _retry_after())
            if self._identity is None:
                return Admission(request, client_id, data, client_id)
            return self._identified(Admission(request, client_id, data, client_id))
        except BaseException:
            self.free_place(request, "")
            raise

    def _identified(self, admission: Admission) -> Admission:
        assert self._identity is not None
        try:
            identity = self._identity(admission)
        except Exception:
            logger.exception("identity failed for client %s", admission.client_id)
            raise Reject(500, "Internal server error") from None
        if identity is None:
            return admission
        held = self._places_by_identity.get(identity, 0)
        limit = self._limits.max_connections_per_identity
        if limit is not None and held >= limit:
            self._over_capacity(held + 1, limit)
        self._places_by_identity[identity] = held + 1
        return attrs.evolve(admission, identity=identity)

    def free_place(self, request: Request, identity: str) -> None:
        """What leaving `admit` does."""
        if identity in self._places_by_identity:
            self._places_by_identity[identity] -= 1
            if not self._places_by_identity[identity]:
                del self._places_by_identity[identity]
        address = request.remote
        self._places -= 1
        if address is not None:
            self._places_by_address[address] -= 1
            if not self._places_by_address[address]:
                del self._places_by_address[address]

    def _check_places(self, address: str | None) -> None:
        limits = self._limits
        if limits.max_connections is not None and self._places >= limits.max_connections:
            self._over_capacity(self._places + 1, limits.max_connections)
        held = self._places_by_address.get(address, 0) if address is not None else 0
        if limits.max_connections_per_address is not None and held >= limits.max_connections_per_address:
            self._over_capacity(held + 1, limits.max_connections_per_address)

    def _over_capacity(self, observed: int, limit: int) -> None:
        info = LimitExceeded("connections", observed, limit, None)
        for hook in self._hooks().on_limit_exceeded:
            try:
                hook(info)
            except Exception:
                logger.exception("an on_limit_exceeded hook failed")
        raise Reject(429, "Too many connections", _RETRY_AFTER)

    async def _data_of(self, request: Request, client_id: str) -> Any:
        if self._authenticate is None:
            return {}
        try:
            data = await self._authenticate(request)
        except Reject:
            raise
        except Exception:
            logger.exception("authenticate failed for client %s", client_id)
            raise Reject(500, "Internal server error") from None
        if data is None:
            raise Reject(401, "Unauthorized")
        return data
