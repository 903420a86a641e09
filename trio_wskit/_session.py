"""One connected client, as the server sees it. It owns the nursery in which all of the connection's tasks run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_wskit._connection import Connection
from trio_wskit._context import Context
from trio_wskit._core.codec import encode_error, encode_heartbeat_ack
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.frames import text_frame
from trio_wskit._core.handshake import Request
from trio_wskit._core.publishing import PublishResult
from trio_wskit._core.schema import spec_of
from trio_wskit._dispatch import Dispatcher
from trio_wskit._gate import Excess, Gate, is_needed
from trio_wskit._lease import Auth
from trio_wskit._outbox import Frame, Outbox
from trio_wskit._services import LimitExceeded, Services
from trio_wskit._work import Drain
from trio_wskit.abc import IdempotencyStore, Transport
from trio_wskit.errors import (
    CloseError,
    ConnectionClosed,
    ErrorCode,
    MessageTooBig,
    PayloadInvalid,
    PubSubError,
    WsKitError,
)
from trio_wskit.pubsub._topics import Topics

if TYPE_CHECKING:
    from trio_wskit.presence._client import ClientPresence

__all__ = ["Session"]

_LAST_WORDS: Final = 1.0  # seconds for a goodbye when we are cancelled: Ctrl-C is not kept waiting

logger = logging.getLogger("trio_wskit")


@final
class Session:
    """One connected client.

    Attributes:
        client_id: a UUIDv7; one for the connection, in the handshake's answer, in every context and log line.
        identity: who the client is, across connections; by default its client id. A login of your own may set it.
        data: what `authenticate` returned, or an empty dict.
        request: the handshake's request.
        topics: what the client is subscribed to.
        outbox: what waits for this client's socket.
        latency: seconds that the last ping took to be answered; None before the first answer.
    """

    __slots__ = (
        "_auth",
        "_dispatcher",
        "_opened",
        "_opening",
        "_protocol_errors",
        "_services",
        "_transport",
        "client_id",
        "connection",
        "data",
        "identity",
        "latency",
        "next_ping",
        "outbox",
        "request",
        "topics",
    )

    connection: Connection
    outbox: Outbox
    _dispatcher: Dispatcher

    def __init__(
        self,
        services: Services,
        transport: Transport,
        request: Request,
        client_id: str,
        data: Any,
        identity: str | None = None,
    ) -> None:
        self._services = services
        self._transport = transport
        self._opening: trio.CancelScope | None = None  # around the on_open hooks
        self._opened = False  # they all went well, and the observers know
        self._protocol_errors = 0
        self.client_id: str = client_id
        self.identity: str = identity if identity is not None else client_id
        self.data: Any = data
        self._auth: Auth | None = None
        self.request: Request = request
        self.latency: float | None = None
        self.next_ping: float = trio.current_time() + services.limits.ping_interval
        self.topics: Topics = Topics(client_id, services.hub.driver, services.desk)

    def __repr__(self) -> str:
        return f"<Session {self.client_id}>"

    @property
    def close_code(self) -> int | None:
        """None while the client is connected; then its close code, 1006 when the link broke."""
        return self.connection.close_code

    @property
    def close_reason(self) -> str:
        """The reason that came with the close code."""
        return self.connection.close_reason

    @property
    def auth(self) -> Auth:
        """Until when the client is who it says it is; see `AuthLease`."""
        if self._auth is None:
            self._auth = Auth(self.client_id, self._services.leases.changed)
        return self._auth

    @property
    def presence(self) -> ClientPresence:
        """In which topics the client is present, and who else is.

        Raises:
            RuntimeError: the app has no `Presence`.
        """
        presence = self._services.presence
        if presence is None:
            raise RuntimeError("the app knows no presence: App(router, presence=Presence())")
        return presence.of(self)

    async def run(self) -> None:
        """Serve the client until it is gone. Owns every task of the connection.

        Never raises for what the client or a handler did. Cancelled: the client gets 1001 and everything stops.
        """
        try:
            async with trio.open_nursery() as nursery:
                self.connection = Connection(
                    self._transport, self._services.limits, self._services.flusher, nursery, self
                )
                self.outbox = self.connection.outbox
                services = self._services
                self._dispatcher = Dispatcher(
                    self, services.routes, services.plain_routes, nursery, services.limits.max_in_flight, services.work
                )
                self._services.hub.join(self.client_id, self)
                self.connection.start(self._gate())
                if await self._open():
                    await self._dispatcher.run()
                else:
                    nursery.cancel_scope.cancel()
        except* Exception as failed:  # ours or a transport's; it may come together with a cancellation
            logger.error("the session of client %s failed", self.client_id, exc_info=failed)
            await self._leave(1011, "Internal error")
        finally:
            await self._leave(self._services.shutdown_code, "going away")

    def _gate(self) -> Gate | None:
        limits = self._services.limits
        return Gate(self.connection, limits, self) if is_needed(limits) else None

    async def _open(self) -> bool:
        hooks = self._services.hooks
        try:
            with trio.CancelScope() as self._opening:
                for hook in hooks.on_open:
                    await hook(self)
        except CloseError as refusal:
            await self.close(refusal.code, refusal.reason)
        except ConnectionClosed:
            return False
        except Exception as error:
            self._report(error, None)
            await self.close(1011, "Internal error")
        finally:
            self._opening = None
        if self.connection.close_code is not None:
            return False
        self._opened = True
        for observer in hooks.observers:
            observer.opened(self)
        return True

    async def _leave(self, code: int, reason: str) -> None:
        """Say goodbye if we still can, then let go of everything. The second call finds nothing to do."""
        hub = self._services.hub
        hooks = self._services.hooks
        deadline = trio.current_time() + 2 * self._services.limits.close_timeout
        with trio.CancelScope(shield=True, deadline=deadline):
            if self.connection.close_code is None:
                await self.connection.aclose(code, reason, patience=_LAST_WORDS)
        if not hub.has(self.client_id):
            return
        hub.leave(self.client_id)
        for hook in hooks.on_close:
            try:
                with trio.CancelScope(shield=True, deadline=deadline) as patience:  # past it, up to its first wait
                    await hook(self)
                if patience.cancelled_caught:
                    logger.error("an on_close hook was cancelled, client %s: it took too long", self.client_id)
            except ConnectionClosed:
                pass
            except Exception as error:
                self._report(error, None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._services.limits.close_timeout):
            try:
                await self.topics.close()
            except PubSubError as error:
                self._report(error, None)
        if self._opened:
            for observer in hooks.observers:
                observer.closed(self)

    # What the connection tells us.

    def on_control(self, envelope: Envelope) -> None:
        """Answer a heartbeat, cancel an aborted call."""
        if envelope.type == "__heartbeat":
            self._push(encode_heartbeat_ack(self.timestamp()))
        elif envelope.correlation_id is not None:
            self._dispatcher.abort(envelope.correlation_id)

    @property
    def waiting_messages(self) -> int:
        """Messages that were read and not yet started."""
        return self._dispatcher.waiting_messages

    def on_excess(self, excess: Excess, correlation_id: str | None) -> None:
        """A message was refused, for there were too many."""
        limits = self._services.limits
        self._limit_exceeded(LimitExceeded(excess.kind, excess.observed, excess.limit, self.client_id))
        if excess.kind == "backpressure" or limits.on_exceeded == "send":
            self.turn_down(excess.error, correlation_id)
        elif limits.on_exceeded == "close":
            self._close_soon(1013, "too many messages")

    def on_refused(self, error: WsKitError) -> None:
        """Tell the client that its message was not understood; close 1008 when that goes on."""
        if isinstance(error, MessageTooBig):
            self._too_big(error)
            return
        self.not_understood(error, getattr(error, "correlation_id", None))
        self._protocol_errors += 1
        if self._protocol_errors >= self._services.limits.max_protocol_errors:
            self._close_soon(1008, "too many malformed messages")

    def _too_big(self, error: MessageTooBig) -> None:
        limits = self._services.limits
        self._limit_exceeded(LimitExceeded("payload", error.observed, error.limit, self.client_id))
        if limits.on_exceeded == "send":
            self.refuse(error, None)
        elif limits.on_exceeded == "close":
            self._close_soon(1009, "message too big")

    def limit_exceeded(self, kind: str, observed: float, limit: float) -> None:
        """Tell the `on_limit_exceeded` hooks that this client wanted more than it may; what they raise is logged.

        For limits that the app does not count itself; `kind` is one of `LimitExceeded.type`.
        """
        self._limit_exceeded(LimitExceeded(kind, observed, limit, self.client_id))

    def _limit_exceeded(self, info: LimitExceeded) -> None:
        for hook in self._services.hooks.on_limit_exceeded:
            try:
                hook(info)
            except Exception:
                logger.exception("an on_limit_exceeded hook failed for client %s", self.client_id)

    def on_disconnected(self, code: int, reason: str) -> None:
        """Stop everything that was done for this client."""
        self._dispatcher.disconnect()
        if self._opening is not None:
            self._opening.cancel()

    def too_slow(self) -> None:
        """Disconnect a client that does not read what it asked for, in the background: 1013, if it reads that far."""
        self._disconnect_slow(self.outbox.queued_bytes, self._services.limits.outbox_bytes)

    def evicted(self, used: int, limit: float) -> None:
        """The same, because so much waits for all sockets together, and this one has taken nothing for longest."""
        self._services.hub.counts.evicted += 1
        self._disconnect_slow(used, limit)

    def _disconnect_slow(self, observed: float, limit: float) -> None:
        self._limit_exceeded(LimitExceeded("backpressure", observed, limit, self.client_id))
        self.connection.give_up(1013, "too slow")

    def _close_soon(self, code: int, reason: str) -> None:
        self.connection.close_soon(code, reason)

    # What handlers and hooks use.

    def timestamp(self) -> int:
        """Milliseconds since 1970, for ``meta.timestamp``."""
        return int(self._services.wall_clock() * 1000)

    async def send(self, message: object, *, meta: Mapping[str, Any] | None = None) -> None:
        """Send a message to this client: done when its outbox has accepted it. Waits for room.

        Raises:
            PayloadInvalid: the message does not fit its own schema.
            ConnectionClosed: nothing can be sent any more.

        Cancelled: nothing was accepted.
        """
        full_meta: dict[str, Any] = {"timestamp": self.timestamp(), **(meta or {})}
        await self.outbox.send(Frame(text_frame(spec_of(type(message)).encode(message, full_meta))))

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
        """Publish in this client's name; see `Context.publish`."""
        exclude = self.client_id if exclude_self else None
        result: PublishResult = await self._services.publish(
            topic,
            message,
            client=self,
            exclude=exclude,
            partition_key=partition_key,
            meta=meta,
            quorum=quorum,
            within=within,
        )
        return result

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send what is queued, then close; waits for the peer's close frame, at most ``close_timeout`` seconds.

        Where it is being closed already, it waits for that, and the first code holds.

        Cancelled: the link is aborted.
        """
        await self.connection.aclose(code, reason)

    # What the dispatcher uses.

    @property
    def idempotency(self) -> IdempotencyStore | None:
        """Remembers answers; None where nobody does."""
        return self._services.idempotency

    def drain(self, drain: Drain) -> None:
        """Start nothing more, and let `drain` wait for what runs."""
        self._dispatcher.drain(drain)

    def deadline_of(self, context: Context[Any], timeout: float | None = None) -> float:
        """When a handler that starts now is over, as `trio.current_time` counts; `timeout` is its route's own."""
        if timeout is None:
            if context.call is None:
                return math.inf
            timeout = self._services.limits.call_timeout
        asked = context.meta.get("timeoutMs")
        if asked is not None:
            timeout = min(timeout, asked / 1000)
        return trio.current_time() + timeout

    def reply_frame(self, context: Context[Any], message: object, meta: Mapping[str, Any] | None = None) -> Frame:
        """Encode the reply of a call, checked against what its request declares."""
        reply = self._services.routes[context.type].spec.reply
        assert reply is not None
        if message is None:
            raise TypeError(f"the handler of {context.type!r} returned without a reply of type {reply.type!r}")
        if type(message) is not reply.cls:
            raise TypeError(f"the reply to {context.type!r} is a {reply.cls.__name__}, not a {type(message).__name__}")
        full_meta: dict[str, Any] = {"timestamp": self.timestamp()}
        if meta:
            full_meta.update(meta)
            full_meta.pop("type", None)
            full_meta.pop("correlationId", None)
        if context.correlation_id is not None:
            full_meta["correlationId"] = context.correlation_id
        return Frame(text_frame(reply.encode(message, full_meta)))

    def refuse_over_limit(self, error: WsKitError, correlation_id: str | None, limit: int) -> None:
        """Send an error because too much runs, and tell the hook."""
        self._limit_exceeded(LimitExceeded("backpressure", limit + 1, limit, self.client_id))
        self.refuse(error, correlation_id)

    def answer_cancelled(self, context: Context[Any], code: ErrorCode | None) -> None:
        """A handler was cancelled: answer it, unless it has answered. Without a code it was its deadline."""
        call = context.call
        if call is not None:
            if call.answered:
                return
            call.answered = True
        self.refuse(WsKitError(code or "DEADLINE_EXCEEDED"), self._id_for(context))

    def known(self, error: Exception, context: Context[Any]) -> WsKitError | None:
        """The error that the client is told of; None for one that is nobody's business but ours."""
        if isinstance(error, WsKitError):
            # What does not fit before there is a payload is the client's fault; what does not fit later, the handler's.
            return None if isinstance(error, PayloadInvalid) and hasattr(context, "payload") else error
        return self._services.hooks.errors.find(error)

    def not_understood(self, error: WsKitError, correlation_id: str | None) -> None:
        """Refuse what is no message of this app, and tell who wants to know."""
        self.turn_down(error, correlation_id)
        self._tell(error, None)

    def turn_down(self, error: WsKitError, correlation_id: str | None) -> None:
        """Refuse a message that was not started, and answer nothing in the place of a call that runs with its id."""
        if self._dispatcher.runs(correlation_id):
            self.refuse_taken(correlation_id)
        else:
            self.refuse(error, correlation_id)

    def refuse_taken(self, correlation_id: str | None) -> None:
        """Refuse a message whose id is that of a call that runs: with the id, it would be taken for its answer."""
        details = {"correlationId": correlation_id}
        self.refuse(WsKitError("ALREADY_EXISTS", "a call with this correlationId runs", details), None)

    def refuse(self, error: WsKitError, correlation_id: str | None) -> None:
        """Send an error: RPC_ERROR exactly where there is a correlation id."""
        self._push(encode_error(error, correlation_id, self.timestamp()))

    def _push(self, message: bytes) -> None:
        if not self.outbox.push(Frame(text_frame(message))) and self.outbox.closed is None:
            self._services.hub.counts.disconnected += 1
            self.too_slow()

    def failed(self, context: Context[Any], error: Exception) -> None:
        """A handler, a middleware or the validation raised: answer it, and tell who wants to know."""
        call = context.call
        answered = call is not None and call.answered
        if call is not None:
            call.answered = True
        if isinstance(error, ConnectionClosed) and self.outbox.closed is not None:
            return  # the client left while it was served, or we are saying goodbye
        known = self.known(error, context)
        if known is not None:
            if not answered:
                self.refuse(known, self._id_for(context))
                if known.code in self._services.closing_codes:
                    self._close_soon(1008, known.code)
            self._tell(error, context)
            return
        if not answered:
            self.refuse(WsKitError("INTERNAL", "Internal error"), self._id_for(context))
        self._report(error, context)

    def _id_for(self, context: Context[Any]) -> str | None:
        """What an error is answered with: no event's error is taken for the answer of a call that runs."""
        correlation_id = context.correlation_id
        return None if context.call is None and self._dispatcher.runs(correlation_id) else correlation_id

    def _report(self, error: Exception, context: Context[Any] | None) -> None:
        what = f"the handler of {context.type!r}" if context is not None else "a hook"
        logger.error("%s failed for client %s", what, self.client_id, exc_info=error)
        self._tell(error, context)

    def _tell(self, error: Exception, context: Context[Any] | None) -> None:
        for hook in self._services.hooks.on_error:
            try:
                hook(error, context)
            except Exception:
                logger.exception("an on_error hook failed for client %s", self.client_id)
        for observer in self._services.hooks.observers:
            observer.failed(error, context)
