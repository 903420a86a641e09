"""Until when a client is who it says it is: one task for all connections of an app closes those whose time is over."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

import attrs
import trio

from trio_wskit.errors import ConfigError

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["Auth", "AuthLease", "LeaseKeeper"]

EXPIRED: Final = 4401
_LONGEST_SLEEP: Final = 60.0  # the wall clock may be set; so long at most it goes unnoticed

logger = logging.getLogger("trio_wskit")


@final
class Auth:
    """The lease of one connection.

    Attributes:
        expires_at: seconds since 1970; ``math.inf`` for never. Set it when the client has proved itself again, by a
            message of your own for example; then the connection lives until the new time.
    """

    __slots__ = ("_changed", "_client_id", "_expires_at")

    def __init__(self, client_id: str, changed: Callable[[str], None], expires_at: float = math.inf) -> None:
        self._client_id = client_id
        self._changed = changed
        self._expires_at = expires_at

    @property
    def expires_at(self) -> float:
        """Seconds since 1970."""
        return self._expires_at

    @expires_at.setter
    def expires_at(self, value: float) -> None:
        self._expires_at = value
        self._changed(self._client_id)


def _seconds(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ConfigError(f"AuthLease({field.name}=…) takes seconds of at least 0, not {value!r}")


@final
@attrs.frozen(kw_only=True)
class AuthLease:
    """How long an authentication is good for, and how it is renewed.

    A connection whose lease is over is closed with 4401, and its handlers are cancelled.

    Attributes:
        expires_at: from an `Admission` (its ``data`` is what `authenticate` returned) to seconds since 1970, or None
            for never: ``lambda who: who.data.claims["exp"]``.
        renew: ``async def renew(session)`` is called once, `before` the end of each lease, and returns the new time, or
            None where there is none. What it raises is logged. It is cancelled when the lease ends.
        before: seconds.
    """

    expires_at: Callable[[Any], float | None]
    renew: Callable[[Session], Awaitable[float | None]] | None = None
    before: float = attrs.field(default=30.0, validator=_seconds)

    def end_of(self, admission: object) -> float:
        """When the lease of a new connection is over; ``math.inf`` for never."""
        expires_at = self.expires_at(admission)
        return math.inf if expires_at is None else expires_at


@final
class LeaseKeeper:
    """Watches the leases of an app's sessions.

    Args:
        sessions: those connected now, by client id.
        lease: the rules.
        wall_clock: gives seconds since 1970.
    """

    def __init__(
        self, sessions: Mapping[str, Session], lease: AuthLease | None, wall_clock: Callable[[], float]
    ) -> None:
        self._sessions = sessions
        self._renew = lease.renew if lease is not None else None
        self._before = lease.before if lease is not None and lease.renew is not None else 0.0
        self._wall_clock = wall_clock
        self._heap: list[tuple[float, str]] = []  # when to look at whom; an entry that is out of date does no harm
        self._renewed: dict[str, float] = {}  # whose renewal was tried, and for which lease
        self._wake = trio.Event()

    def changed(self, client_id: str) -> None:
        """A session's `expires_at` is set."""
        session = self._sessions.get(client_id)
        if session is not None:
            self._look_at(client_id, session.auth.expires_at - self._before)

    def leave(self, session: Session) -> None:
        """The session is over."""
        self._renewed.pop(session.client_id, None)
        if len(self._heap) > 2 * len(self._sessions) + 64:  # the entries of those who left
            self._heap = [entry for entry in self._heap if entry[1] in self._sessions]
            heapq.heapify(self._heap)

    def _look_at(self, client_id: str, when: float) -> None:
        if when == math.inf:
            return
        heapq.heappush(self._heap, (when, client_id))
        if self._heap[0][0] == when:
            self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = self._wall_clock()
                while self._heap and self._heap[0][0] <= now:
                    _, client_id = heapq.heappop(self._heap)
                    session = self._sessions.get(client_id)
                    if session is not None and session.close_code is None:
                        self._check(session, now, nursery)
                self._wake = trio.Event()
                wait = self._heap[0][0] - now if self._heap else math.inf
                with trio.move_on_after(min(wait, _LONGEST_SLEEP) if wait < math.inf else math.inf):
                    await self._wake.wait()

    def _check(self, session: Session, now: float, nursery: trio.Nursery) -> None:
        expires_at = session.auth.expires_at
        if expires_at <= now:
            session.connection.close_soon(EXPIRED, "authentication expired")
            return
        if self._renew is not None and now >= expires_at - self._before:
            if self._renewed.get(session.client_id) != expires_at:
                self._renewed[session.client_id] = expires_at
                nursery.start_soon(self._try_to_renew, session, expires_at - now)
            self._look_at(session.client_id, expires_at)
        else:
            self._look_at(session.client_id, expires_at - self._before)

    async def _try_to_renew(self, session: Session, seconds: float) -> None:
        assert self._renew is not None
        expires_at: float | None = None
        with trio.move_on_after(seconds):
            try:
                expires_at = await self._renew(session)
            except Exception:
                logger.exception("the authentication of client %s was not renewed", session.client_id)
        if expires_at is not None:
            session.auth.expires_at = expires_at
