"""Delta sync: a state with revisions. Who knows an older revision gets what has changed since, or else the whole state.

The server keeps a `DeltaLog`, a client a `DeltaReplica`, which may also show what it has asked for and not yet got. The
state belongs to one process. See docs/howto/patterns.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, final

import attrs
import trio

from trio_wskit import ConfigError, Context, PublishResult, message

__all__ = ["DeltaLog", "DeltaReplica", "Deltas", "Publisher", "RevisionGap", "Snapshot", "SyncOp"]

S = TypeVar("S")


@final
@attrs.frozen
class SyncOp:
    """One operation.

    Attributes:
        rev: the revision after it.
        type: what was done; yours.
        data: with what: any JSON.
        client_req_id: what the client called it that asked for it, if it did.
    """

    rev: int
    type: str
    data: Any = None
    client_req_id: str | None = None


@message("SYNC.SNAPSHOT")
class Snapshot:
    """The whole state at a revision."""

    topic: str
    rev: int
    state: Any


@message("SYNC.DELTAS")
class Deltas:
    """The operations that lead from one revision to another."""

    topic: str
    from_rev: int
    to_rev: int
    ops: list[SyncOp]


@message("REVISION_GAP")
class RevisionGap:
    """The client's revision is too old, or from another time; a snapshot follows.

    Attributes:
        topic: of the log.
        expected_rev: the client's.
        server_rev: the server's.
        buffer_first_rev: the oldest that could have been continued.
        resume_from: the snapshot's.
    """

    topic: str
    expected_rev: int
    server_rev: int
    buffer_first_rev: int
    resume_from: int


Apply: TypeAlias = Callable[[S, SyncOp], S]
Answer: TypeAlias = Snapshot | Deltas | RevisionGap


class Publisher(Protocol):
    """A `Context`, a `Session` or an `App`."""

    async def publish(self, topic: str, message: object) -> PublishResult:
        """See `App.publish`."""
        ...


@final
class DeltaLog(Generic[S]):
    """The server's side.

    Args:
        topic: to which operations are published.
        state: at revision `rev`. JSON.
        apply: ``def (state, op)`` returns the next state, and leaves the old one as it is. What it raises refuses the
            operation.
        capacity: operations that are kept; above 0.
        rev: of the state. One that does not outlive the process begins with the milliseconds since 1970, so that no
            revision of an earlier process is taken for one of this.

    Attributes:
        topic: as given.
        state: at revision `rev`.
        rev: the revision now; each operation adds 1.
    """

    def __init__(self, topic: str, state: S, apply: Apply[S], *, capacity: int = 1024, rev: int = 0) -> None:
        if capacity < 1:
            raise ConfigError(f"DeltaLog(capacity=…) takes a whole number above 0, not {capacity!r}")
        self.topic: str = topic
        self.state: S = state
        self.rev: int = rev
        self._apply = apply
        self._ops: deque[SyncOp] = deque(maxlen=capacity)
        self._turn = trio.Lock()  # operations are published in the order of their revisions

    def since(self, rev: int | None) -> list[Answer]:
        """What leads from a revision to now: deltas; a snapshot for None; or a gap and a snapshot."""
        first = self.rev - len(self._ops)
        if rev is None:
            return [Snapshot(self.topic, self.rev, self.state)]
        if first <= rev <= self.rev:
            ops = [op for op in self._ops if op.rev > rev]
            return [Deltas(self.topic, rev, self.rev, ops)]
        return [RevisionGap(self.topic, rev, self.rev, first, self.rev), Snapshot(self.topic, self.rev, self.state)]

    async def join(self, ctx: Context[Any], rev: int | None = None) -> None:
        """Subscribe a client, and bring it from its revision to now; also when it asks because it has missed some.

        Raises, Cancelled: as `Topics.subscribe` and `Context.send`; a second call mends it.
        """
        await ctx.topics.subscribe(self.topic)
        for answer in self.since(rev):
            await ctx.send(answer)

    async def change(self, by: Publisher, kind: str, data: Any = None, client_req_id: str | None = None) -> SyncOp:
        """Carry out an operation, and tell all who have joined.

        Args:
            by: who publishes: the context of the client who asks, or the app.
            kind: the type of the operation.
            data: any JSON.
            client_req_id: as the client called it, which then knows its own.

        Raises:
            Exception: what `apply` raises; nothing has happened.

        Cancelled: while it waits for its turn, nothing has happened; later it is carried out, and published.
        """
        async with self._turn:
            op = SyncOp(self.rev + 1, kind, data, client_req_id)
            self.state = self._apply(self.state, op)
            self.rev = op.rev
            self._ops.append(op)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await by.publish(self.topic, Deltas(self.topic, op.rev - 1, op.rev, [op]))
        return op


@final
class DeltaReplica(Generic[S]):
    """A client's side. Feed it with `take`; where that gives False, join again with `rev`.

    Args:
        apply: as the server's.
        empty: the state before there is one.
        max_pending: operations that may wait for their confirmation.

    Attributes:
        rev: of what the server has said; None before it has said anything.
        gaps: how often it was told that it had been away too long.
    """

    def __init__(self, apply: Apply[S], empty: S, *, max_pending: int = 1000) -> None:
        self.rev: int | None = None
        self.gaps: int = 0
        self._apply = apply
        self._known = empty
        self._max_pending = max_pending
        self._pending: dict[str, SyncOp] = {}

    @property
    def state(self) -> S:
        """What the server has said, and on top of it what was asked for."""
        state = self._known
        for op in self._pending.values():
            state = self._apply(state, op)
        return state

    @property
    def pending(self) -> int:
        """How many operations are asked for and not yet confirmed."""
        return len(self._pending)

    def expect(self, kind: str, data: Any, client_req_id: str) -> None:
        """Show an operation already while the server is asked for it. `forget` it where the server refuses.

        Raises:
            OverflowError: too many are pending.
        """
        if len(self._pending) >= self._max_pending:
            raise OverflowError(f"{self._max_pending} operations wait for the server already")
        self._pending[client_req_id] = SyncOp(0, kind, data, client_req_id)

    def forget(self, client_req_id: str) -> None:
        """The server has refused it."""
        self._pending.pop(client_req_id, None)

    def take(self, answer: Answer) -> bool:
        """Learn what the server says; what is known already changes nothing.

        Returns:
            False where operations are missing in between, and nothing was learnt.
        """
        if isinstance(answer, RevisionGap):
            self.gaps += 1
            return True
        if isinstance(answer, Snapshot):
            self.rev, self._known = answer.rev, answer.state
            self._pending.clear()  # nobody knows which of them are in it
            return True
        if self.rev is None or answer.from_rev > self.rev:
            return False
        for op in answer.ops:
            if op.rev > self.rev:
                self.rev, self._known = op.rev, self._apply(self._known, op)
                if op.client_req_id is not None:
                    self._pending.pop(op.client_req_id, None)
        return True
