"""What is sent while there is no connection, and waits for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Literal, cast, final

import attrs
import trio

from trio_wskit.client._streams import Bell
from trio_wskit.errors import ConfigError, ConnectionClosed, WsKitError

__all__ = ["OfflineQueue", "Outgoing", "QueueOptions", "QueuePolicy"]

QueuePolicy = Literal["drop_newest", "drop_oldest", "off"]


def _policy(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("drop_newest", "drop_oldest", "off"):
        raise ConfigError(f"policy takes 'drop_newest', 'drop_oldest' or 'off', not {value!r}")


def _above_zero(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"QueueOptions({field.name}=…) takes a number above 0, not {value!r}")


@final
@attrs.frozen(kw_only=True)
class QueueOptions:
    """What happens to what is sent while the client is not connected.

    Attributes:
        policy: when the queue is full, ``drop_newest`` refuses the new message, and ``drop_oldest`` drops the one that
            has waited longest; ``off`` queues nothing.
        max_messages: messages.
        max_bytes: bytes of all of them.
        max_age: seconds that a message may wait; then it is dropped, and who asked is told.
    """

    policy: QueuePolicy = attrs.field(default="drop_newest", validator=_policy)
    max_messages: int = attrs.field(default=1000, validator=_above_zero)
    max_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=_above_zero)
    max_age: float = attrs.field(default=inf, validator=_above_zero)


@final
class Outgoing:
    """One message on its way out.

    Args:
        encode: makes the frame, for a server that takes these meta keys (in lower case). It is called when the message
            is sent, because a request says then how much of its time is left.
        on_dropped: told that the message will not be sent after all.
        on_sent: told the link on which it was sent.
    """

    __slots__ = ("encode", "on_dropped", "on_sent", "queued_at", "size")

    def __init__(
        self,
        encode: Callable[[frozenset[str]], bytes],
        on_dropped: Callable[[WsKitError], None] | None = None,
        on_sent: Callable[[object], None] | None = None,
    ) -> None:
        self.encode: Callable[[frozenset[str]], bytes] = encode
        self.on_dropped: Callable[[WsKitError], None] | None = on_dropped
        self.on_sent: Callable[[object], None] | None = on_sent
        self.queued_at: float = 0.0
        self.size: int = 0


@final
class OfflineQueue:
    """First in, first out.

    Args:
        options: the bounds.
        on_dropped: told each time that a message is dropped or refused.

    Attributes:
        dropped: messages that were dropped or refused: too many, too old, or left over at the end.
    """

    def __init__(self, options: QueueOptions, on_dropped: Callable[[WsKitError], None]) -> None:
        self._options = options
        self._on_dropped = on_dropped
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._added = Bell()
        self.dropped: int = 0

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    @property
    def queued_bytes(self) -> int:
        """Their bytes."""
        return self._bytes

    def add(self, outgoing: Outgoing) -> None:
        """Queue a message.

        Raises:
            ConnectionClosed: the policy is ``off``.
            WsKitError: RESOURCE_EXHAUSTED: there is no room, and the policy is ``drop_newest``; or it alone is too big.
            PayloadInvalid: it cannot be encoded.
        """
        options = self._options
        if options.policy == "off":
            raise ConnectionClosed(1006, "not connected")
        outgoing.size = len(outgoing.encode(frozenset()))
        self.drop_old()
        while self._waiting and self._is_full(outgoing.size) and options.policy == "drop_oldest":
            self._drop(self._waiting.popleft(), "dropped from the full offline queue")
        if self._is_full(outgoing.size):
            self.dropped += 1
            refused = WsKitError(
                "RESOURCE_EXHAUSTED",
                f"the offline queue is full: {len(self._waiting)} messages, {self._bytes} bytes",
                retryable=True,
            )
            self._on_dropped(refused)
            raise refused
        outgoing.queued_at = trio.current_time()
        self._waiting.append(outgoing)
        self._bytes += outgoing.size
        self._added.ring()

    def _is_full(self, more: int) -> bool:
        options = self._options
        return len(self._waiting) >= options.max_messages or self._bytes + more > options.max_bytes

    def _drop(self, outgoing: Outgoing, why: str) -> None:
        self._bytes -= outgoing.size
        self.dropped += 1
        error = WsKitError("UNAVAILABLE", why, retryable=True)
        self._on_dropped(error)
        if outgoing.on_dropped is not None:
            outgoing.on_dropped(error)

    def drop_old(self) -> None:
        """Drop what has waited too long."""
        now = trio.current_time()
        while self._waiting and self._waiting[0].queued_at + self._options.max_age <= now:
            self._drop(self._waiting.popleft(), f"not sent within {self._options.max_age:g} s")

    async def run(self) -> None:
        """Drop what is too old at its time, until cancelled: who asked shall not wait for the next connection."""
        while self._options.max_age < inf:
            if self._waiting:
                await trio.sleep_until(self._waiting[0].queued_at + self._options.max_age)
                self.drop_old()
            else:
                await self._added.wait()

    def remove(self, outgoing: Outgoing) -> bool:
        """Take a message back; False where it is not here."""
        if not self._waiting:
            return False
        try:
            cast("deque[object]", self._waiting).remove(outgoing)
        except ValueError:
            return False
        self._bytes -= outgoing.size
        return True

    def take_all(self) -> list[Outgoing]:
        """Take everything that is not too old."""
        self.drop_old()
        waiting = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return waiting

    def clear(self) -> None:
        """The end of the client: drop everything."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._bytes = 0
