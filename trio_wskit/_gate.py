"""Counts what a connection sends, before it is decoded, and refuses what is too much.

It stands between the transport and the connection, and only where a limit asks for it. Aborts count, but are always
obeyed: they make less work, not more.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol, final

import trio

from trio_wskit._connection import Connection
from trio_wskit._core.bucket import Decision, Grid, Policy, refusal, seconds_until, take
from trio_wskit._core.codec import decode
from trio_wskit._core.envelope import ABORT, Envelope
from trio_wskit._core.options import Limits
from trio_wskit.errors import WsKitError

__all__ = ["Excess", "Gate", "is_needed"]

_TICKS: Final = 1_000_000_000


class Excess(NamedTuple):
    """Why a message was refused: which kind of limit, the answer, and the two figures for the hook."""

    kind: Literal["rate", "backpressure"]
    error: WsKitError
    observed: int
    limit: int


class GateOwner(Protocol):
    """Who is told of what was refused. None of these may wait."""

    @property
    def waiting_messages(self) -> int:
        """Messages that were read and not yet dispatched."""
        ...

    def on_control(self, envelope: Envelope) -> None:
        """An abort was among what is too much."""
        ...

    def on_excess(self, excess: Excess, correlation_id: str | None) -> None:
        """A message was refused."""
        ...


def is_needed(limits: Limits) -> bool:
    """Whether any limit asks for counting."""
    return limits.message_rate is not None or limits.byte_rate is not None or limits.max_pending is not None


@final
class _Meter:
    """One bucket, in the time of Trio's clock."""

    __slots__ = ("_full_at", "_grid", "_policy")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._grid = Grid.of(policy, _TICKS)
        self._full_at = -(1 << 200)  # full

    def ask(self, cost: int, now: float) -> tuple[int, Excess | None]:
        """What the bucket would be after spending, and why it cannot."""
        cost = min(cost, self._policy.capacity)
        full_at, taken = take(self._grid, self._full_at, round(now * _TICKS), cost)
        if taken.allowed or taken.due is None:
            return full_at, None
        decision = Decision(False, taken.remaining, seconds_until(taken.due, now, _TICKS))
        capacity = self._policy.capacity
        error = refusal(decision, cost, self._policy)
        return full_at, Excess("rate", error, capacity - taken.remaining + cost, capacity)

    def spend(self, full_at: int) -> None:
        """Do what was asked for."""
        self._full_at = full_at


@final
class Gate:
    """The receiver in front of a connection's own."""

    __slots__ = ("_bytes", "_connection", "_limits", "_messages", "_owner")

    def __init__(self, connection: Connection, limits: Limits, owner: GateOwner) -> None:
        self._connection = connection
        self._limits = limits
        self._owner = owner
        self._messages = _Meter(limits.message_rate) if limits.message_rate is not None else None
        self._bytes = _Meter(limits.byte_rate) if limits.byte_rate is not None else None

    def feed(self, messages: list[bytes]) -> bool:
        """Let in what is within the limits, answer the rest; see `Connection.feed`."""
        connection = self._connection
        if connection.is_closing:
            return True
        now = trio.current_time()
        room = self._limits.max_pending
        if room is not None:
            room -= self._owner.waiting_messages
        admitted: list[bytes] = []
        refused: list[tuple[bytes, Excess]] = []
        for message in messages:
            excess = self._excess(message, now, None if room is None else room - len(admitted))
            if excess is None:
                admitted.append(message)
            else:
                refused.append((message, excess))
        more = connection.feed(admitted)
        for message, excess in refused:  # now an abort finds the call that came just before it
            self._refuse(message, excess)
        return more

    def disconnected(self, code: int, reason: str) -> None:
        """The link is closed."""
        self._connection.disconnected(code, reason)

    def _excess(self, message: bytes, now: float, room: int | None) -> Excess | None:
        if room is not None and room <= 0:
            limit = self._limits.max_pending or 0
            error = WsKitError("RESOURCE_EXHAUSTED", "Too many pending messages", {"limit": limit})
            return Excess("backpressure", error, limit + 1, limit)
        asked: list[tuple[_Meter, int]] = []
        for meter, cost in ((self._messages, 1), (self._bytes, len(message))):
            if meter is not None:
                full_at, excess = meter.ask(cost, now)
                if excess is not None:
                    return excess
                asked.append((meter, full_at))
        for meter, full_at in asked:
            meter.spend(full_at)
        return None

    def _refuse(self, message: bytes, excess: Excess) -> None:
        if self._connection.is_closing:
            return
        limits = self._limits
        correlation_id: str | None
        try:
            envelope = decode(message, max_bytes=limits.max_payload_bytes, max_depth=limits.max_depth)
        except WsKitError as error:
            correlation_id = getattr(error, "correlation_id", None)
        else:
            if envelope.type == ABORT:
                self._owner.on_control(envelope)
                return
            correlation_id = envelope.correlation_id
        self._owner.on_excess(excess, correlation_id)
