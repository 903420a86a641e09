"""Pings: one task for all connections of an app finds the peers that are no more."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import final

import trio

from trio_wskit._core.options import Limits
from trio_wskit._session import Session
from trio_wskit.errors import ConnectionClosed

__all__ = ["Heartbeat"]

logger = logging.getLogger("trio_wskit")


@final
class Heartbeat:
    """Pings every session each ``ping_interval`` seconds; one that does not answer within ``ping_timeout`` is aborted.

    A session that holds back reading is left alone: its pong would wait behind what we do not read. So is one that did
    for a part of the time, for the pong may still be behind what has come since. That its peer has
    vanished is then found by the system, which asks the peer's (`transports/_hangup.py`).
    """

    def __init__(self, sessions: Mapping[str, Session], limits: Limits) -> None:
        self._sessions = sessions
        self._limits = limits

    async def run(self) -> None:
        """Run until cancelled."""
        interval = self._limits.ping_interval
        if interval == math.inf:
            return
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(interval / 8)
                self._round(nursery)

    def _round(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        for session in tuple(self._sessions.values()):
            if now >= session.next_ping and session.connection.close_code is None:
                # Not before this one is answered or given up: pings never pile up for a peer with a patient server.
                session.next_ping = now + max(self._limits.ping_interval, self._limits.ping_timeout)
                if not session.connection.holds_back:
                    nursery.start_soon(self._ping, session)

    async def _ping(self, session: Session) -> None:
        inbox = session.connection.inbox
        inbox.was_full = False
        sent = trio.current_time()
        with trio.move_on_after(self._limits.ping_timeout) as patience:
            try:
                await session.connection.transport.ping()
            except ConnectionClosed:
                if self._limits.ping_timeout == math.inf or session.connection.close_code is not None:
                    return
                await trio.sleep_forever()  # it is ending, which may need a peer that reads: as patient as with a pong
            except Exception:  # a transport's bug: one connection's failure touches no other
                logger.exception("the ping of client %s failed", session.client_id)
                session.connection.abort(1006, "a ping failed")
                return
            session.latency = trio.current_time() - sent
            session.next_ping = sent + self._limits.ping_interval
        has_excuse = inbox.is_full or inbox.was_full
        if patience.cancelled_caught and session.connection.close_code is None and not has_excuse:
            session.connection.abort(1006, "no pong in time")
