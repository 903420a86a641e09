"""One fan-out that lets other tasks run in between, while subscribers may come, go and subscribe again.

The hub goes through its subscribers by itself. A topic with a history needs more: who is about to subscribe again must
have got, before that, what is on its way to it. So what is left of a fan-out is kept here, and a client may be served
at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Final, final

from trio_wskit.pubsub._fanout import FanOut

__all__ = ["Passes"]

logger = logging.getLogger("trio_wskit")

_DELIVERIES_PER_PASS: Final = 2048  # as the hub's
_CLOSE_LOOKS_PER_PASS: Final = 64  # as the hub's


@final
class Passes:
    """A fan-out, a pass at a time; the first is done when it is made.

    Args:
        fan: what becomes of it.
        client_ids: who gets it.
        offer: gives it to these, and tells who must be looked at more closely.
        look: does for one of those what its policy says.
        there: who subscribes now.
        closely: all are to be looked at closely.

    Attributes:
        fan: what becomes of it.
    """

    __slots__ = ("_behind", "_look", "_offer", "_rest", "_there", "fan")

    def __init__(
        self,
        fan: FanOut,
        client_ids: Collection[str],
        *,
        offer: Callable[[FanOut, Iterable[str]], Sequence[str]],
        look: Callable[[FanOut, str], None],
        there: Callable[[], Collection[str]],
        closely: bool,
    ) -> None:
        self.fan: FanOut = fan
        self._offer = offer
        self._look = look
        self._there = there
        self._rest: dict[str, None] = {}  # who was not offered it yet
        self._behind: dict[str, None] = {}  # who must be looked at more closely
        if closely:
            self._behind = dict.fromkeys(client_ids)
        elif len(client_ids) <= _DELIVERIES_PER_PASS:
            self._behind = dict.fromkeys(offer(fan, client_ids))
        else:
            every = iter(tuple(client_ids))
            self._behind = dict.fromkeys(offer(fan, islice(every, _DELIVERIES_PER_PASS)))
            self._rest = dict.fromkeys(every)
        if not self._rest:
            self._look_closer(None)
        if self._rest or self._behind:
            fan.goes_on()

    @property
    def is_over(self) -> bool:
        """True when everybody was served."""
        return not (self._rest or self._behind)

    def go_through(self) -> None:
        """Do all that is left, at once."""
        while self._rest or self._behind:
            self.go_on()

    def go_on(self) -> None:
        """Do one pass more, or end where nothing is left. Never waits, never raises."""
        try:
            there = self._there()
            if self._rest:
                part = tuple(islice(self._rest, _DELIVERIES_PER_PASS))
                for client_id in part:
                    del self._rest[client_id]
                behind = self._offer(self.fan, [client_id for client_id in part if client_id in there])
                self._behind.update(dict.fromkeys(behind))
            else:
                self._look_closer(there)
        except Exception:
            logger.exception("the fan-out of a message of topic %s failed", self.fan.frame.topic)
            self._rest.clear()
            self._behind.clear()
        if self.is_over:
            self.fan.is_through()

    def _look_closer(self, there: Collection[str] | None) -> None:
        for client_id in tuple(islice(self._behind, _CLOSE_LOOKS_PER_PASS)):
            del self._behind[client_id]
            if there is None or client_id in there:
                self._look(self.fan, client_id)

    def serve(self, client_id: str) -> None:
        """Do now what is left to be done for this client."""
        if client_id in self._rest:
            del self._rest[client_id]
            if client_id in self._there() and self._offer(self.fan, (client_id,)):
                self._look(self.fan, client_id)
        elif client_id in self._behind:
            del self._behind[client_id]
            if client_id in self._there():
                self._look(self.fan, client_id)
