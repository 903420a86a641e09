"""What an offline queue should hold, drop, refuse and hand over: worked out beside the real one, from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import orjson
import trio

from trio_wskit import QueueOptions
from trio_wskit._core.frames import payload_of
from trio_wskit.client._queue import Outgoing
from trio_wskit.errors import ConnectionClosed, WsKitError

__all__ = ["QueueModel", "key_of"]


def key_of(message: dict[str, Any]) -> str:
    """The name of a message: a request's correlation id, or the number of a HELLO."""
    name: str = message["meta"].get("correlationId") or message["payload"]["name"]
    return name


@final
class QueueModel:
    """Goes along with the queue of one client.

    Args:
        options: the queue's.
        is_wanted: tells by its key whether the caller of a request still waits; true for all else.
        link: the number of the present connection.

    Attributes:
        waiting: key, bytes and time of what waits.
        dropped: the keys of what was dropped.
        refused: messages that found no room.
        cleared: messages that were left over at the end.
        first: by connection, the keys that must come first on it, in this order.
    """

    def __init__(self, options: QueueOptions, is_wanted: Callable[[str], bool], link: Callable[[], int]) -> None:
        self.waiting: list[tuple[str, int, float]] = []
        self.dropped: list[str] = []
        self.refused = 0
        self.cleared = 0
        self.first: dict[int, list[str]] = {}
        self._options = options
        self._is_wanted = is_wanted
        self._link = link

    def watch(self, queue: Any) -> None:
        """From now on go along with a queue; whether it refuses what it should is seen at once."""
        add, take_all, clear, drop_old = queue.add, queue.take_all, queue.clear, queue.drop_old

        def watched_add(outgoing: Outgoing) -> None:
            payload = payload_of(outgoing.encode(frozenset()))
            expected = self._add(key_of(orjson.loads(payload)), len(outgoing.encode(frozenset())))
            refusal: Exception | None = None
            try:
                add(outgoing)
            except (WsKitError, ConnectionClosed) as error:
                refusal = error
            assert (None if refusal is None else type(refusal)) is expected, f"refused with {refusal!r}"
            if refusal is not None:
                raise refusal

        def watched_take_all() -> list[Outgoing]:
            self.drop_old(trio.current_time())
            self.first[self._link()] = [key for key, _, _ in self.waiting]
            self.waiting.clear()
            taken: list[Outgoing] = take_all()
            return taken

        def watched_clear() -> None:
            self.leave_given_up()
            self.cleared += len(self.waiting)
            self.waiting.clear()
            clear()

        def watched_drop_old() -> None:
            self.drop_old(trio.current_time())  # before callers are told, and give up
            drop_old()

        queue.add, queue.take_all, queue.clear = watched_add, watched_take_all, watched_clear
        queue.drop_old = watched_drop_old

    def leave_given_up(self) -> None:
        """Who has given up does not wait any more."""
        self.waiting = [one for one in self.waiting if self._is_wanted(one[0])]

    def _add(self, key: str, size: int) -> type[Exception] | None:
        options = self._options
        if options.policy == "off":
            return ConnectionClosed
        self.drop_old(trio.current_time())
        if options.policy == "drop_oldest":
            while self.waiting and not self._has_room(size):
                self.dropped.append(self.waiting.pop(0)[0])
        if not self._has_room(size):
            self.refused += 1
            return WsKitError
        self.waiting.append((key, size, trio.current_time()))
        return None

    def _has_room(self, size: int) -> bool:
        used = sum(one[1] for one in self.waiting)
        return len(self.waiting) < self._options.max_messages and used + size <= self._options.max_bytes

    def drop_old(self, now: float) -> None:
        """What has waited for its time is gone."""
        self.leave_given_up()
        old = [one for one in self.waiting if one[2] + self._options.max_age <= now]
        self.dropped += [key for key, _, _ in old]
        self.waiting = [one for one in self.waiting if one not in old]
