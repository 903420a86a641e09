"""What the user of a client holds."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar, cast, final, overload

import attrs
import trio

from trio_wskit._core.backoff import RetryBudget
from trio_wskit._core.envelope import ABORT, ABSENT, RESERVED_META, Envelope, is_reserved
from trio_wskit._core.frames import text_frame
from trio_wskit._core.json_text import dumps, is_json
from trio_wskit._core.options import Limits
from trio_wskit._core.schema import MessageSpec, Rpc, spec_of
from trio_wskit.client._calls import ClientCall, wait_for_reply
from trio_wskit.client._lifecycle import Lifecycle, State, StateChange
from trio_wskit.client._link import Link
from trio_wskit.client._queue import OfflineQueue, Outgoing, QueueOptions
from trio_wskit.client._receive import ErrorHook, Receiver, UnhandledHook
from trio_wskit.client._requests import Pending, Requests
from trio_wskit.client._retry import Retry
from trio_wskit.client._streams import Bell, Overflow, Stream, again
from trio_wskit.client._subscriptions import Gap, Subscribe, Subscriptions, Unsubscribe
from trio_wskit.errors import ConfigError, ConnectionClosed, PayloadInvalid, ServerError, TrioWskitError

__all__ = ["Client", "ClientStats"]

M = TypeVar("M")
P = TypeVar("P")
R = TypeVar("R")

Meta = Mapping[str, Any]


@final
@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has counted.

    Attributes:
        attempts: to connect.
        connects: connections that were opened.
        pending: requests that wait for their answer.
        queued: messages in the offline queue.
        queue_dropped: messages that the offline queue dropped or refused.
        late: answers that came twice, or after their request had been settled.
        unhandled: messages that nobody wanted.
        refused: messages that could not be read, or did not fit their class.
        retries: requests that were sent again.
    """

    attempts: int
    connects: int
    pending: int
    queued: int
    queue_dropped: int
    late: int
    unhandled: int
    refused: int
    retries: int


@final
@attrs.frozen
class RawMessage:
    """A message that has no class."""

    type: str
    payload: Any

    def __attrs_post_init__(self) -> None:
        if not self.type or is_reserved(self.type):
            raise ConfigError(f'a message type is not empty, and does not start with "__" or "$": {self.type!r}')

    def encode(self, meta: dict[str, Any]) -> bytes:
        """See `MessageSpec.encode`."""
        envelope: dict[str, Any] = {"type": self.type, "meta": meta}
        if self.payload is not ABSENT:
            envelope["payload"] = self.payload
        if not is_json(envelope):
            raise PayloadInvalid(self.type, [{"path": "", "message": "expected JSON"}])
        return dumps(envelope)


def _compiled(message: object) -> tuple[Callable[[dict[str, Any]], bytes], MessageSpec | None]:
    """How a request is written, and what answers it; None for anything."""
    if isinstance(message, RawMessage):
        return message.encode, None
    spec = spec_of(type(message))
    if spec.reply is None:
        raise ConfigError(f"{spec.cls.__qualname__} is no request: give it a reply: class …(Rpc[Reply])")
    return partial(spec.encode, message), spec.reply


@final
class Client:
    """A connection that comes back: made by `open_client`, and only inside its block."""

    def __init__(
        self,
        *,
        limits: Limits,
        queue: QueueOptions,
        max_pending: int,
        handler_capacity: int,
        retry: Retry | None,
        send_deadlines: bool | None,
        wall_clock: Callable[[], float],
        randomness: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._retry = retry
        self._send_deadlines = send_deadlines
        self._wall_clock = wall_clock
        self._randomness = randomness
        self.bell: Bell = Bell()
        self._requests = Requests(max_pending, self.bell.ring)
        self.receiver: Receiver = Receiver(self._requests, self.bell, handler_capacity)
        self._queue = OfflineQueue(queue, self.receiver.failed)
        self._subscriptions = Subscriptions(self)
        self._budget = RetryBudget()
        self._retries = 0
        self._last_link: Link | None = None
        self._life: Lifecycle

    def live(self, life: Lifecycle) -> None:
        """Called once, by `open_client`."""
        self._life = life

    # What there is to see.

    def __repr__(self) -> str:
        return f"<Client {self.state}>"

    @property
    def state(self) -> State:
        """``connecting``, ``open``, ``reconnecting``, ``closing`` or ``closed``."""
        return self._life.state

    @property
    def latency(self) -> float | None:
        """Seconds that the last ping of this connection took; None before its first pong."""
        return None if self._last_link is None else self._last_link.latency

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose for the last connection."""
        return None if self._last_link is None else self._last_link.subprotocol

    @property
    def client_id(self) -> str | None:
        """What the server calls the last connection (``x-client-id``)."""
        return None if self._last_link is None else self._last_link.client_id

    @property
    def stats(self) -> ClientStats:
        """A snapshot of the counters."""
        return ClientStats(
            attempts=self._life.attempts,
            connects=self._life.connects,
            pending=len(self._requests),
            queued=len(self._queue),
            queue_dropped=self._queue.dropped,
            late=self._requests.late,
            unhandled=self.receiver.unhandled,
            refused=self.receiver.refused,
            retries=self._retries,
        )

    @contextmanager
    def states(self) -> Generator[Stream[StateChange]]:
        """Watch the state: ``with client.states() as changes: async for change in changes``.

        It begins with the present state, and ends after ``closed``. Of more than 64 that nobody took, the oldest are
        dropped.
        """
        stream = self._life.watch()
        try:
            yield stream
        finally:
            self._life.unwatch(stream)

    async def wait_open(self) -> None:
        """Wait until there is a connection.

        Raises:
            ConnectionClosed: there will be none: the client is closed, or has given up.
        """
        await self._life.wait_open()

    async def wait_closed(self) -> ConnectionClosed:
        """Wait until the client is closed, or has given up, and say why."""
        await self._life.wait_closed()
        assert self._life.closed is not None
        return again(self._life.closed)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send what the outbox holds, then close, for good; what waits in the offline queue is dropped.

        Waits for the server's close frame, at most ``Limits.close_timeout`` seconds. A second call only waits.

        Args:
            code: a close code that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.

        Raises:
            LocalProtocolError: the code or the reason cannot be sent; nothing has happened.

        Cancelled: the link is aborted, and the client ends all the same.
        """
        await self._life.close(code, reason)

    # Sending.

    async def send(self, message: object, *, meta: Meta | None = None, correlation_id: str | None = None) -> None:
        """Send a message: done when the outbox has accepted it, or, without a connection, the offline queue.

        Waits for room in the outbox. What was accepted and not yet written when a connection breaks is lost.

        Args:
            message: an instance of a message class.
            meta: further meta; `clientId`, `receivedAt` and `correlationId` are left out.
            correlation_id: for a server that echoes it.

        Raises:
            PayloadInvalid: the message does not fit its own class.
            ConnectionClosed: the client is closed, or has given up; or is not connected, and the queue is ``off``.
            WsKitError: RESOURCE_EXHAUSTED: the offline queue is full, and its policy is ``drop_newest``.

        Cancelled: nothing was accepted.
        """
        full_meta = self._meta(meta)
        if correlation_id is not None:
            full_meta["correlationId"] = correlation_id
        frame = text_frame(spec_of(type(message)).encode(message, full_meta))
        await self._submit(Outgoing(lambda _: frame))

    def _meta(self, meta: Meta | None) -> dict[str, Any]:
        full: dict[str, Any] = {"timestamp": int(self._wall_clock() * 1000), **(meta or {})}
        for key in (*RESERVED_META, "correlationId"):
            full.pop(key, None)
        return full

    async def _submit(self, outgoing: Outgoing) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._life.check()
            link = self._life.link
            if link is None:
                self._queue.add(outgoing)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return
            try:
                await link.send(outgoing.encode(link.meta_keys))
            except ConnectionClosed:
                link.broke()
                continue
            if outgoing.on_sent is not None:
                outgoing.on_sent(link)
            return

    # Requests.

    async def request(
        self,
        message: Rpc[R],
        *,
        meta: Meta | None = None,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
        retry: Retry | None = None,
    ) -> R:
        """Send a request, and wait for its reply, at most ``Limits.call_timeout`` seconds for each attempt.

        What is left of that time, or of the caller's cancel scope if that is less, goes along as ``timeoutMs`` to a
        server that says that it takes it. Without a connection, the request waits in the offline queue.

        Args:
            message: an instance of a message class that is an `Rpc`.
            meta: further meta.
            correlation_id: its name on the wire; by default a new UUID. Not for a request with `retry`.
            idempotency_key: at most 256 characters; a server that knows it does the work once.
            retry: when to send it again; by default as `open_client` was told.

        Raises:
            RpcError: the server said no; or DEADLINE_EXCEEDED, when there was no answer in time.
            ServerError: the server answered with a plain ERROR.
            ValidationError: what it answered is not what the request declares.
            PayloadInvalid: the message does not fit its own class.
            ConnectionClosed: the connection was lost before the answer came, or the client is closed.
            WsKitError: RESOURCE_EXHAUSTED: too many requests are pending, or the offline queue is full.

        Cancelled: the server is told to stop (``$ws:abort``), or never hears of the request.
        """
        retry = retry or self._retry
        attempt = 0
        while True:
            try:
                reply = await self._request_once(message, meta, correlation_id, idempotency_key)
            except (ServerError, ConnectionClosed) as error:
                attempt += 1
                delay = None
                if retry is not None and self._life.closed is None:
                    has_key = idempotency_key is not None
                    delay = retry.delay_after(error, attempt, self._randomness(), has_key=has_key)
                if delay is None or not self._budget.failed():
                    raise
                if trio.current_time() + delay >= trio.current_effective_deadline():
                    raise
            else:
                self._budget.succeeded()
                return cast("R", reply)
            self._retries += 1
            await trio.sleep(delay)

    async def _request_once(
        self, message: object, meta: Meta | None, correlation_id: str | None, idempotency_key: str | None
    ) -> Any:
        # In a handler of a server of ours, the deadline of the call is set at its first wait: there must be one.
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + self._limits.call_timeout
        pending, outgoing = self._prepare(message, meta, correlation_id, idempotency_key, deadline)
        try:
            with trio.CancelScope(deadline=deadline):
                await self._submit(outgoing)
            return await wait_for_reply(self._requests, pending, deadline)
        finally:
            self._let_go(pending, outgoing)

    async def send_json(self, type_name: str, payload: Any = ABSENT, *, meta: Meta | None = None) -> None:
        """As `send`, for a message that has no class here, as a tool needs it.

        Args:
            type_name: its type on the wire.
            payload: JSON values; by default there is none.
            meta: further meta.

        Raises:
            ConfigError: the type is empty or reserved.
            PayloadInvalid: the payload or the meta is not JSON.
        """
        frame = text_frame(RawMessage(type_name, payload).encode(self._meta(meta)))
        await self._submit(Outgoing(lambda _: frame))

    async def request_json(self, type_name: str, payload: Any = ABSENT, *, meta: Meta | None = None) -> Envelope:
        """As `request`, for a request that has no class here: whatever answers it is the reply, as it came."""
        reply: Envelope = await self._request_once(RawMessage(type_name, payload), meta, None, None)
        return reply

    @overload
    def call(
        self,
        message: Rpc[R],
        *,
        progress: None = None,
        capacity: int = 256,
        meta: Meta | None = None,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AbstractAsyncContextManager[ClientCall[R, Any]]: ...
    @overload
    def call(
        self,
        message: Rpc[R],
        *,
        progress: type[P],
        capacity: int = 256,
        meta: Meta | None = None,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AbstractAsyncContextManager[ClientCall[R, P]]: ...
    def call(
        self,
        message: Rpc[R],
        *,
        progress: type[Any] | None = None,
        capacity: int = 256,
        meta: Meta | None = None,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AbstractAsyncContextManager[ClientCall[R, Any]]:
        """Send a request whose progress is wanted.

        Example:
            >>> async with client.call(Export(rows=10_000)) as call:
            ...     async for step in call.progress:
            ...         print(step)
            ...     reply = await call.reply

        Leaving the block before the answer has come tells the server to stop. Arguments and errors as for `request`.

        Args:
            message: an instance of a message class that is an `Rpc`.
            progress: a message class: what the progress is read as; without it, plain JSON values.
            capacity: progress values that may wait to be taken; then the oldest are dropped.
            meta: further meta.
            correlation_id: its name on the wire.
            idempotency_key: see `request`.
        """
        spec = None if progress is None else spec_of(progress)
        stream: Stream[Any] = Stream(capacity, "drop_oldest")
        return self._call(message, spec, stream, meta, correlation_id, idempotency_key)

    @asynccontextmanager
    async def _call(
        self,
        message: object,
        spec: MessageSpec | None,
        stream: Stream[Any],
        meta: Meta | None,
        correlation_id: str | None,
        idempotency_key: str | None,
    ) -> AsyncGenerator[ClientCall[Any, Any]]:
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + self._limits.call_timeout
        pending, outgoing = self._prepare(message, meta, correlation_id, idempotency_key, deadline, stream)
        try:
            with trio.CancelScope(deadline=deadline):
                await self._submit(outgoing)
            yield ClientCall(self._requests, pending, stream, spec, deadline)
        finally:
            self._let_go(pending, outgoing)

    def _prepare(
        self,
        message: object,
        meta: Meta | None,
        correlation_id: str | None,
        idempotency_key: str | None,
        deadline: float,
        stream: Stream[Any] | None = None,
    ) -> tuple[Pending, Outgoing]:
        """Make a request, and register it."""
        self._life.check()
        encode_with, reply = _compiled(message)
        over_at = min(deadline, trio.current_effective_deadline())
        pending = self._requests.open(reply, correlation_id, progress=stream)

        def encode(meta_keys: frozenset[str]) -> bytes:
            full_meta = self._meta(meta)
            full_meta["correlationId"] = pending.id
            if idempotency_key is not None:
                full_meta["idempotencyKey"] = idempotency_key
            takes = "timeoutms" in meta_keys if self._send_deadlines is None else self._send_deadlines
            if takes:
                full_meta["timeoutMs"] = max(1, round((over_at - trio.current_time()) * 1000))
            return text_frame(encode_with(full_meta))

        def dropped(error: Exception) -> None:
            self._requests.settle(pending, error=error)

        def sent(link: object) -> None:
            pending.sent_on = link
            if self._life.link is not link:  # it was lost while the outbox let us in
                self._requests.settle(pending, error=ConnectionClosed(1006, "the connection was lost"))

        return pending, Outgoing(encode, dropped, sent)

    def _let_go(self, pending: Pending, outgoing: Outgoing) -> None:
        """The caller has what it wanted, or does not want it any more."""
        self._queue.remove(outgoing)
        link = self._life.link
        if link is not None and self.state == "open" and pending.sent_on is link and not pending.answered:
            meta = {"timestamp": int(self._wall_clock() * 1000), "correlationId": pending.id}
            link.push(text_frame(dumps({"type": ABORT, "meta": meta})))
        self._requests.settle(pending, error=ConnectionClosed(1000, "nobody waits for the answer"))

    # Receiving.

    @overload
    def on(self, cls: type[M]) -> Callable[[Callable[[M], Awaitable[object]]], Callable[[M], Awaitable[object]]]: ...
    @overload
    def on(self, cls: type[M], handler: Callable[[M], Awaitable[object]]) -> Callable[[], None]: ...
    def on(self, cls: type[M], handler: Callable[[M], Awaitable[object]] | None = None) -> Any:
        """Call a handler with each message of a class: ``@client.on(News)``, or ``remove = client.on(News, handler)``.

        Handlers run one after the other, in the order in which messages came, and for one message in the order in
        which they were registered. One that raises stops no other: see `on_error`.

        Returns:
            As a decorator, the handler; else a function that removes it.
        """
        spec = spec_of(cls)
        if handler is not None:
            return self.receiver.add_handler(spec, handler)

        def decorate(handler: Callable[[M], Awaitable[object]]) -> Callable[[M], Awaitable[object]]:
            self.receiver.add_handler(spec, handler)
            return handler

        return decorate

    @asynccontextmanager
    async def messages(
        self,
        cls: type[M],
        *,
        where: Callable[[M], bool] | None = None,
        capacity: int = 100,
        overflow: Overflow = "wait",
    ) -> AsyncGenerator[Stream[M]]:
        """Take messages of a class: ``async with client.messages(News) as stream: async for news in stream``.

        The stream outlives connections. It ends when the client is closed, and raises ConnectionClosed when it gave up.

        Args:
            cls: a message class.
            where: tells which messages are wanted.
            capacity: messages that may wait to be taken.
            overflow: what happens to more: ``wait`` reads nothing at all until there is room, so that the server is
                pushed back; ``drop_oldest`` and ``drop_newest`` count in ``stream.dropped``.
        """
        stream: Stream[M] = Stream(capacity, overflow, on_room=self.bell.ring)
        with self._tap(cls, stream, where):
            await trio.lowlevel.checkpoint()
            yield stream

    @contextmanager
    def _tap(self, cls: type[Any], stream: Stream[Any], where: Callable[[Any], bool] | None) -> Generator[None]:
        if self._life.closed is not None:
            stream.end(self._life.closed if self._life.gave_up else None)
        remove = self.receiver.add_stream(spec_of(cls), stream, where)
        try:
            yield
        finally:
            remove()
            stream.close()

    @asynccontextmanager
    async def subscribed(
        self,
        topic: str,
        cls: type[M],
        *,
        where: Callable[[M], bool] | None = None,
        subscribe: Callable[[str], object] = Subscribe,
        unsubscribe: Callable[[str], object] | None = Unsubscribe,
        capacity: int = 100,
        overflow: Overflow = "drop_oldest",
    ) -> AsyncGenerator[Stream[M | Gap]]:
        """Be subscribed to a topic: ``async with client.subscribed("room:1", RoomNews) as stream``.

        The block begins when the server has answered. The subscription outlives connections: a new one begins with it,
        and with a `Gap` in the stream, for what was published meanwhile is lost.

        A message on the wire does not say from which topic it comes: where several topics have messages of one class,
        tell them apart with `where`.

        Args:
            topic: its name.
            cls: the class of its messages.
            where: tells which messages are wanted.
            subscribe: makes the message that asks for the topic, from its name. If that is a request, its answer is
                waited for. The first scope of a topic decides, for all that share it.
            unsubscribe: makes the message that ends it; None for none.
            capacity: messages that may wait to be taken.
            overflow: see `messages`. Where messages were dropped, there is a `Gap`.

        Raises:
            RpcError: the server refused. If it does so after a reconnection, the stream raises it.
            ConnectionClosed: the client is closed, or has given up.
        """

        def gap(lost: int) -> M | Gap:
            return Gap(topic, "overflow", lost)

        stream: Stream[M | Gap] = Stream(capacity, overflow, on_room=self.bell.ring, gap=gap)
        self._life.check()
        with self._tap(cls, stream, where):
            wanted = self._subscriptions.want(topic, subscribe, unsubscribe)
            try:
                await wanted.wait()
                wanted.on_gap.append(stream.put)
                wanted.on_failed.append(stream.end)
                try:
                    yield stream
                finally:
                    wanted.on_gap.remove(stream.put)
                    wanted.on_failed.remove(stream.end)
            finally:
                self._subscriptions.leave(wanted)

    def on_unhandled(self, hook: UnhandledHook) -> Callable[[], None]:
        """Call a function with the envelope of each message that nobody wants. Returns what removes it."""
        self.receiver.on_unhandled.append(hook)
        return lambda: self.receiver.on_unhandled.remove(hook)

    def on_error(self, hook: ErrorHook) -> Callable[[], None]:
        """Call a function with each error that nobody waits for, and the envelope if there is one.

        That is: a message that cannot be read or does not fit its class, an ERROR that answers no request, what a
        handler raised, a message that the offline queue dropped, and what `get_token` raised. Without any such
        function, the log tells that there was an error, and of what class.

        Returns:
            What removes it.
        """
        self.receiver.on_error.append(hook)
        return lambda: self.receiver.on_error.remove(hook)

    # What the lifecycle tells us.

    def on_open(self, link: Link) -> None:
        """Subscriptions first, then what waited."""
        self._last_link = link
        self._subscriptions.connected()
        for outgoing in self._queue.take_all():
            link.push(outgoing.encode(link.meta_keys))
            if outgoing.on_sent is not None:
                outgoing.on_sent(link)

    def on_lost(self, link: Link, closed: ConnectionClosed) -> None:
        """No answer will come for what was sent on it."""
        self._requests.settle_all(lambda: again(closed), sent_on=link)

    def on_end(self, closed: ConnectionClosed, *, gave_up: bool) -> None:
        """Nothing waits any more."""
        self._queue.clear()
        self._requests.settle_all(lambda: again(closed))
        self._subscriptions.end(closed)
        self.receiver.end(closed if gave_up else None)
        self.bell.ring()

    def on_failed(self, error: Exception) -> None:
        """An attempt failed."""
        if self.receiver.on_error:
            self.receiver.failed(error)

    # What subscriptions need of us.

    def push(self, message: object, on_settled: Callable[[Exception | None], None]) -> None:
        """See `_subscriptions.Wire`."""
        link = self._life.link
        if link is None:
            return
        meta = self._meta(None)
        try:
            spec = spec_of(type(message))
            if spec.reply is not None:
                meta["correlationId"] = str(uuid.uuid4())
            encoded = spec.encode(message, meta)
        except TrioWskitError as error:  # in the message, which is the application's own
            on_settled(error)
            return
        link.push(text_frame(encoded))
        if spec.reply is None:
            on_settled(None)
        else:
            self._requests.open(
                spec.reply,
                meta["correlationId"],
                on_settled=lambda pending: on_settled(pending.error),
                is_limited=False,
            ).sent_on = link
