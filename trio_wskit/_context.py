"""What a handler sees of the message it serves and of the client who sent it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, final

import trio
from trio.lowlevel import checkpoint_if_cancelled

from trio_wskit._core.codec import encode_progress
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.frames import text_frame
from trio_wskit._core.publishing import PublishResult
from trio_wskit._core.schema import MessageSpec, spec_of
from trio_wskit._outbox import Frame
from trio_wskit._rpc import Call
from trio_wskit.errors import ErrorCode, WsKitError

if TYPE_CHECKING:
    from trio_wskit._lease import Auth
    from trio_wskit._session import Session
    from trio_wskit.presence._client import ClientPresence
    from trio_wskit.pubsub._topics import Topics

__all__ = ["Context"]

M = TypeVar("M")


@final
class Context(Generic[M]):
    """One message and its client.

    Attributes:
        payload: the validated message. Middleware that runs before validation must not read it.
        envelope: the message as it came.
        call: the request that waits for an answer; None in handlers of events.
        session: the client who sent it.
    """

    __slots__ = ("_deadline", "call", "envelope", "payload", "session")

    payload: M
    _deadline: float

    def __init__(self, session: Session, envelope: Envelope, call: Call | None) -> None:
        self.session: Session = session
        self.envelope: Envelope = envelope
        self.call: Call | None = call

    @property
    def type(self) -> str:
        """The message's type on the wire."""
        return self.envelope.type

    @property
    def meta(self) -> Mapping[str, Any]:
        """The message's meta as it came, without what a client may not set (``clientId``, ``receivedAt``)."""
        return self.envelope.meta

    @property
    def correlation_id(self) -> str | None:
        """The client's name for its request, if it gave one."""
        return self.envelope.correlation_id

    @property
    def client_id(self) -> str:
        """The connection's UUIDv7; also the ``x-client-id`` of the handshake's answer."""
        return self.session.client_id

    @property
    def data(self) -> Any:
        """What `authenticate` returned: one object for all messages of a connection."""
        return self.session.data

    @property
    def topics(self) -> Topics:
        """The client's topics."""
        return self.session.topics

    @property
    def presence(self) -> ClientPresence:
        """In which topics the client is present, and who else is; see `Presence`."""
        return self.session.presence

    @property
    def is_rpc(self) -> bool:
        """True in a handler that owes a reply."""
        return self.call is not None

    @property
    def auth(self) -> Auth:
        """Until when the client is who it says it is; see `AuthLease`."""
        return self.session.auth

    @property
    def latency(self) -> float | None:
        """Seconds that the client's last pong took; None before the first one."""
        return self.session.latency

    @property
    def deadline(self) -> float:
        """When the handler is cancelled, as `trio.current_time` counts; ``math.inf`` for never.

        For a call the smallest of what the client asked for (``meta.timeoutMs``), the route's ``timeout`` and, without
        that, ``Limits.call_timeout``, counted from its start. For an event the route's ``timeout``. From the handler's
        first wait on it is an ordinary Trio deadline: whatever is awaited sees it in `trio.current_effective_deadline`.
        """
        try:
            return self._deadline
        except AttributeError:
            self._deadline = self.session.deadline_of(self)
            return self._deadline

    def start_clock(self, timeout: float | None) -> None:
        """Begin to count now, with the route's own limit if it has one."""
        self._deadline = self.session.deadline_of(self, timeout)

    def time_remaining(self) -> float:
        """Seconds until `deadline`, at least 0.0; ``math.inf`` without one."""
        return max(0.0, self.deadline - trio.current_time())

    def shield(self, seconds: float) -> trio.CancelScope:
        """For the piece that must finish: ``with ctx.shield(5): await save()``.

        Inside, no abort, deadline, disconnect or drain interrupts, for so many seconds at most; then the block is
        cancelled. Cancelled from outside meanwhile: after the block, at the next checkpoint.

        Args:
            seconds: above 0; finite, so that nobody can hold up the end of a server for ever.

        Raises:
            ValueError: `seconds` is something else.
        """
        if not 0 < seconds < math.inf:
            raise ValueError(f"shield() takes a finite number of seconds above 0, not {seconds!r}")
        return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)

    async def send(
        self, message: object, *, meta: Mapping[str, Any] | None = None, inherit_correlation_id: bool = False
    ) -> None:
        """Send a message to this client: done when its outbox has accepted it. Waits for room.

        Args:
            message: an instance of a message class.
            meta: further meta; ``type`` and ``correlationId`` in it are ignored.
            inherit_correlation_id: copy the incoming correlation id, if there is one.

        Raises:
            PayloadInvalid: the message does not fit its own schema.
            ConnectionClosed: nothing can be sent any more.

        Cancelled: nothing was accepted.
        """
        frame = self._frame(message, meta, inherit_correlation_id)
        await checkpoint_if_cancelled()
        outbox = self.session.outbox
        if not outbox.accept(frame):
            await outbox.accept_later(frame)

    def send_nowait(
        self, message: object, *, meta: Mapping[str, Any] | None = None, inherit_correlation_id: bool = False
    ) -> None:
        """Like `send`, but never waits.

        Raises:
            trio.WouldBlock: the outbox is full.
            PayloadInvalid, ConnectionClosed: as `send`.
        """
        self.session.outbox.send_nowait(self._frame(message, meta, inherit_correlation_id))

    def _frame(self, message: object, meta: Mapping[str, Any] | None, inherit_correlation_id: bool) -> Frame:
        full_meta: dict[str, Any] = {"timestamp": self.session.timestamp()}
        if meta:
            full_meta.update(meta)
            full_meta.pop("type", None)
            full_meta.pop("correlationId", None)
        if inherit_correlation_id and self.envelope.correlation_id is not None:
            full_meta["correlationId"] = self.envelope.correlation_id
        spec: MessageSpec | None = getattr(message, "__wskit_spec__", None)
        if spec is None or spec.cls is not type(message):
            spec = spec_of(type(message))  # which knows why not
        return Frame(text_frame(spec.encode(message, full_meta)))

    async def reply(self, message: object, *, meta: Mapping[str, Any] | None = None) -> None:
        """Answer the call before the handler ends; what the handler returns is then ignored.

        Raises:
            RuntimeError: this is no call, or it has its answer.
            PayloadInvalid, ConnectionClosed: as `send`; the call is not answered.

        Cancelled: the call is not answered.
        """
        call = self._owed("reply")
        await checkpoint_if_cancelled()
        frame = self.session.reply_frame(self, message, meta)
        call.answered = True
        call.answer = frame.wire
        try:
            await self.session.outbox.send(frame)
        except BaseException:
            call.answered = False
            raise

    def progress(self, value: object, *, throttle: float = 0.0) -> bool:
        """Tell the client how far the call is. Never waits.

        Args:
            value: JSON-compatible, or an instance of a message class.
            throttle: seconds; dropped if the last one sent was less than this ago.

        Returns:
            False where it was dropped: throttled, or the client does not read as fast as we write.

        Raises:
            RuntimeError: this is no call, or it has its answer.
        """
        call = self._owed("progress")
        outbox = self.session.outbox
        now = trio.current_time()
        if throttle > 0.0 and now < call.next_progress:
            return False
        if outbox.congested or call.correlation_id is None:
            return False
        frame = Frame(text_frame(encode_progress(value, call.correlation_id, self.session.timestamp())))
        if not outbox.offer(frame):
            return False
        if throttle > 0.0:
            call.next_progress = now + throttle
        return True

    def _owed(self, what: str) -> Call:
        if self.call is None:
            raise RuntimeError(f"{what}() belongs to handlers registered with rpc(); {self.type!r} is an event")
        if self.call.answered:
            raise RuntimeError(f"{what}() after the answer: the call {self.type!r} has its answer already")
        return self.call

    def error(
        self,
        code: ErrorCode | str,
        message: str | None = None,
        details: Mapping[str, Any] | None = None,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> NoReturn:
        """End the handler with an error for the client: the same as raising `WsKitError` with these arguments.

        Raises:
            WsKitError: always.
        """
        raise WsKitError(code, message, details, retryable=retryable, retry_after=retry_after)

    async def publish(
        self,
        topic: str,
        message: object,
        *,
        exclude_self: bool = False,
        partition_key: str | None = None,
        meta: Mapping[str, Any] | None = None,
        quorum: float | None = None,
        within: float | None = None,
    ) -> PublishResult:
        """Publish to everybody who subscribes to the topic. Waits for no subscriber, unless a policy or a quorum asks.

        Args:
            topic: where to.
            message: an instance of a message class.
            exclude_self: leave this client out.
            partition_key: messages with the same key keep their order, where the driver divides its topics.
            meta: further meta.
            quorum: a share of the subscribers to wait for; see `App.publish`.
            within: seconds to wait for them.

        Returns:
            What came of it; what can go wrong at run time is in there, and is not raised.
        """
        return await self.session.publish(
            topic,
            message,
            exclude_self=exclude_self,
            partition_key=partition_key,
            meta=meta,
            quorum=quorum,
            within=within,
        )

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; see `Session.close`."""
        await self.session.close(code, reason)
