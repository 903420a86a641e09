"""Requests and their answers: each has one, whatever the server does.

Rules
- A request is in `pending` from the moment when it is made until it is settled, once: by its answer, by an error, by
  the end of the connection on which it was sent, or by its caller giving up.
- What then still comes for it is counted as late, and ignored.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, cast, final

import trio

from trio_wskit._core.envelope import ABSENT, ERROR, PROGRESS, RPC_ERROR, Envelope
from trio_wskit._core.schema import MessageSpec
from trio_wskit.client._streams import Stream
from trio_wskit.errors import PayloadInvalid, RpcError, ServerError, ValidationError, WsKitError

__all__ = ["Pending", "Requests", "server_error"]

_RECENT: Final = 1024  # settled ids that are remembered, to tell a late answer from an event


@final
class Pending:
    """One request.

    Attributes:
        id: its correlation id.
        answered: the server has answered it, in whatever way.
        sent_on: the link on which it was sent; None while it is queued.
        progress: where its progress goes, if anybody wants it.
        on_settled: called once when it is settled.
        reply: the answer, once settled.
        error: what came instead of an answer, once settled.
    """

    __slots__ = ("_settled", "answered", "error", "id", "on_settled", "progress", "reply", "reply_spec", "sent_on")

    def __init__(
        self,
        id: str,  # noqa: A002 - the protocol's word
        reply_spec: MessageSpec | None,
        progress: Stream[Any] | None = None,
        on_settled: Callable[[Pending], None] | None = None,
    ) -> None:
        self.id: str = id
        self.reply_spec: MessageSpec | None = reply_spec
        self.progress: Stream[Any] | None = progress
        self.on_settled: Callable[[Pending], None] | None = on_settled
        self.answered: bool = False
        self.sent_on: object | None = None
        self.reply: Any = None
        self.error: Exception | None = None
        self._settled = trio.Event()

    @property
    def is_settled(self) -> bool:
        """True once there is a reply or an error."""
        return self._settled.is_set()

    async def wait(self) -> None:
        """Wait until it is settled."""
        await self._settled.wait()

    def settle(self, reply: Any, error: Exception | None) -> None:
        """Called by `Requests` alone."""
        self.reply, self.error = reply, error
        self._settled.set()
        if self.progress is not None:
            self.progress.end()
        if self.on_settled is not None:
            self.on_settled(self)


@final
class Requests:
    """The requests of one client that have no answer yet.

    Args:
        limit: how many there may be.
        on_change: called when there is a new one.

    Attributes:
        late: answers that came after their request was settled, or twice.
        scrub: takes the token of the present connection out of a text that a server chose.
    """

    def __init__(self, limit: int, on_change: Callable[[], None]) -> None:
        self.late: int = 0
        self.scrub: Callable[[str], str] = str
        self._limit = limit
        self._on_change = on_change
        self._pending: dict[str, Pending] = {}
        self._recent: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def open(
        self,
        reply: MessageSpec | None,
        correlation_id: str | None = None,
        *,
        progress: Stream[Any] | None = None,
        on_settled: Callable[[Pending], None] | None = None,
        is_limited: bool = True,
    ) -> Pending:
        """Make a request; unless `is_limited`, whatever their number. Without `reply`, any envelope is one.

        Raises:
            WsKitError: RESOURCE_EXHAUSTED: there are too many; ALREADY_EXISTS: there is one with this id.
        """
        if is_limited and len(self._pending) >= self._limit:
            raise WsKitError("RESOURCE_EXHAUSTED", f"{self._limit} requests are pending", retryable=True)
        if correlation_id is None:
            correlation_id = str(uuid.uuid4())
        elif correlation_id in self._pending:
            raise WsKitError("ALREADY_EXISTS", f"a request with the correlation id {correlation_id!r} is pending")
        pending = Pending(correlation_id, reply, progress, on_settled)
        self._pending[correlation_id] = pending
        self._on_change()
        return pending

    def settle(self, pending: Pending, reply: Any = None, error: Exception | None = None) -> None:
        """Give a request its reply or its error, unless it has one already."""
        if self._pending.get(pending.id) is not pending:
            return
        del self._pending[pending.id]
        if len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[pending.id] = None
        pending.settle(reply, error)

    def settle_all(self, make_error: Callable[[], Exception], sent_on: object | None = None) -> None:
        """Give every request an error; or only those that were sent on a link that is gone."""
        for pending in tuple(self._pending.values()):
            if sent_on is None or pending.sent_on is sent_on:
                self.settle(pending, error=make_error())

    def take(self, envelope: Envelope) -> bool:
        """Look whether something that came belongs to a request, and deal with it.

        Returns:
            False: it has no correlation id, or one that is not ours.
        """
        correlation_id = envelope.correlation_id
        if correlation_id is None:
            return False
        pending = self._pending.get(correlation_id)
        if pending is None:
            late = correlation_id in self._recent
            self.late += late
            return late
        if envelope.type == PROGRESS:
            if pending.progress is not None:
                pending.progress.put(envelope)
            return True
        pending.answered = True
        expected = pending.reply_spec
        if envelope.type == RPC_ERROR or (envelope.type == ERROR and (expected is None or expected.type != ERROR)):
            self.settle(pending, error=server_error(envelope, self.scrub))
        elif expected is None:
            self.settle(pending, envelope)
        elif envelope.type != expected.type:
            issue = {"path": "type", "message": f"expected {expected.type}, got {self.scrub(envelope.type[:100])}"}
            self.settle(pending, error=ValidationError(expected.type, [issue]))
        else:
            self._take_reply(pending, expected, envelope)
        return True

    def _take_reply(self, pending: Pending, expected: MessageSpec, envelope: Envelope) -> None:
        try:
            reply = expected.structure(envelope)
        except PayloadInvalid as invalid:
            self.settle(pending, error=ValidationError(expected.type, invalid.issues))
        except Exception as error:  # of a validator of the application: the caller's to see, and not the end of reading
            self.settle(pending, error=error)
        else:
            self.settle(pending, reply)


def server_error(envelope: Envelope, scrub: Callable[[str], str]) -> ServerError:
    """What an ERROR or RPC_ERROR says, however badly it says it; its texts are scrubbed."""
    payload: Any = envelope.payload
    fields: dict[str, Any] = cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}
    cls: type[ServerError] = RpcError
    code, message = "INTERNAL", "RPC error"
    if envelope.type == ERROR:
        cls, code, message = ServerError, "UNKNOWN", "Server error"
    code = scrub(_text(fields.get("code")) or code)
    said = fields.get("retryable")
    retryable = said if isinstance(said, bool) else None
    details: Any = fields.get("details")
    wait: Any = fields.get("retryAfterMs", ABSENT)
    retry_after = None
    if wait is None and retryable is None:
        retryable = False  # ws-kit's limiter: this request can never succeed
    elif isinstance(wait, (int, float)) and not isinstance(wait, bool) and wait >= 0:
        retry_after = wait / 1000
    return cls(
        code,
        scrub(_text(fields.get("message")) or message),
        cast("Mapping[str, Any]", details) if isinstance(details, dict) else None,
        retryable=retryable,
        retry_after=retry_after,
        correlation_id=envelope.correlation_id,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
