"""What the user of a client holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar, cast, final, overload

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.frames import text_frame
from trio_wskit._core.schema import Rpc, spec_of
from trio_wskit.client._asking import Asker, Question
from trio_wskit.client._calls import ClientCall
from trio_wskit.client._lifecycle import Lifecycle, State, StateChange
from trio_wskit.client._listening import Listening
from trio_wskit.client._queue import Outgoing
from trio_wskit.client._raw import RawMessage, spec_of_instance
from trio_wskit.client._receive import ErrorHook, Handler, Receiver, Registrar, UnhandledHook, check_callable
from trio_wskit.client._retry import Retry
from trio_wskit.client._sending import Meta, Sender
from trio_wskit.client._stats import ClientStats
from trio_wskit.client._streams import Overflow, Stream, again
from trio_wskit.client._subscriptions import Gap, Subscribe, Unsubscribe
from trio_wskit.client._turns import Turns
from trio_wskit.errors import ConnectionClosed

__all__ = ["Client"]

M = TypeVar("M")
P = TypeVar("P")
R = TypeVar("R")


@final
class Client:
    """A connection that comes back: made by `open_client`, and only inside its block."""

    def __init__(
        self,
        *,
        life: Lifecycle,
        turns: Turns,
        receiver: Receiver,
        sender: Sender,
        asker: Asker,
        listening: Listening,
    ) -> None:
        self._life = life
        self._turns = turns
        self._receiver = receiver
        self._sender = sender
        self._asker = asker
        self._listening = listening

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
        return None if self._turns.last_link is None else self._turns.last_link.latency

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose for the last connection."""
        return None if self._turns.last_link is None else self._turns.last_link.subprotocol

    @property
    def client_id(self) -> str | None:
        """What the server calls the last connection (``x-client-id``)."""
        return None if self._turns.last_link is None else self._turns.last_link.client_id

    @property
    def stats(self) -> ClientStats:
        """A snapshot of the counters."""
        return self._turns.stats(self._asker.retries)

    def states(self) -> AbstractContextManager[Stream[StateChange]]:
        """Watch the state: ``with client.states() as changes: async for change in changes``.

        It begins with the present state, and ends after ``closed``. Of more than 64 that nobody took, the oldest are
        dropped.
        """
        return self._life.watched()

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
        frame = text_frame(spec_of_instance(message).encode(message, self._sender.meta(meta, correlation_id)))
        await self._sender.submit(Outgoing(lambda _: frame))

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
        question = Question(message, meta, correlation_id, idempotency_key)
        return cast("R", await self._asker.ask(question, retry))

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
        frame = text_frame(RawMessage(type_name, payload).encode(self._sender.meta(meta)))
        await self._sender.submit(Outgoing(lambda _: frame))

    async def request_json(self, type_name: str, payload: Any = ABSENT, *, meta: Meta | None = None) -> Envelope:
        """As `request`, for a request that has no class here: whatever answers it is the reply, as it came."""
        reply: Envelope = await self._asker.ask_once(Question(RawMessage(type_name, payload), meta))
        return reply

    def call_json(
        self, type_name: str, payload: Any = ABSENT, *, capacity: int = 256, meta: Meta | None = None
    ) -> AbstractAsyncContextManager[ClientCall[Envelope, Any]]:
        """As `call`, for a request that has no class here: its progress is JSON, its reply an envelope."""
        stream: Stream[Any] = Stream(capacity, "drop_oldest")
        return self._asker.call(Question(RawMessage(type_name, payload), meta), None, stream)

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
        return self._asker.call(Question(message, meta, correlation_id, idempotency_key), spec, stream)

    # Receiving.

    @overload
    def on(self, cls: type[M]) -> Registrar[M]: ...
    @overload
    def on(
        self, cls: type[M], handler: Callable[[M], Awaitable[object]] | Callable[[M], None]
    ) -> Callable[[], None]: ...
    def on(self, cls: type[M], handler: Callable[[M], Awaitable[object] | None] | None = None) -> Any:
        """Call a handler with each message of a class: ``@client.on(News)``, or ``remove = client.on(News, handler)``.

        A handler is a coroutine function, or a plain function that never waits. Handlers run one after the other, in
        the order in which messages came, and for one message in the order in which they were registered. One that
        raises stops no other: see `on_error`.

        Returns:
            As a decorator, the handler; else a function that removes it.

        Raises:
            ConfigError: the class is no message class, or the handler is no function.
        """
        spec = spec_of(cls)
        if handler is not None:
            return self._receiver.add_handler(spec, handler)

        def decorate(handler: Handler) -> Handler:
            self._receiver.add_handler(spec, handler)
            return handler

        return decorate

    def messages(
        self,
        cls: type[M],
        *,
        where: Callable[[M], bool] | None = None,
        capacity: int = 100,
        overflow: Overflow = "wait",
    ) -> AbstractAsyncContextManager[Stream[M]]:
        """Take messages of a class: ``async with client.messages(News) as stream: async for news in stream``.

        The stream outlives connections. It ends when the client is closed, and raises ConnectionClosed when it gave up.

        Args:
            cls: a message class.
            where: tells which messages are wanted.
            capacity: messages that may wait to be taken.
            overflow: what happens to more: ``wait`` reads nothing at all until there is room, so that the server is
                pushed back; ``drop_oldest`` and ``drop_newest`` count in ``stream.dropped``.
        """
        return self._listening.messages(cls, where, capacity, overflow)

    def subscribed(
        self,
        topic: str,
        cls: type[M],
        *,
        where: Callable[[M], bool] | None = None,
        subscribe: Callable[[str], object] = Subscribe,
        unsubscribe: Callable[[str], object] | None = Unsubscribe,
        capacity: int = 100,
        overflow: Overflow = "drop_oldest",
    ) -> AbstractAsyncContextManager[Stream[M | Gap]]:
        """Be subscribed to a topic: ``async with client.subscribed("room:1", RoomNews) as stream``.

        The block begins when the server has answered. The subscription outlives connections. Where the server keeps a
        history of the topic, each new one resumes after the newest message that has come, and the stream goes on; where
        it does not, or has not all that was missed, there is a `Gap` in the stream.

        A message on the wire does not say from which topic it comes: where several topics have messages of one class,
        tell them apart with `where`.

        Args:
            topic: its name.
            cls: the class of its messages.
            where: tells which messages are wanted.
            subscribe: makes the message that asks for the topic, from its name. If that is a request, its answer is
                waited for. With a field ``since: Position | None`` it can resume; its answer then has the fields
                ``recovered``, ``epoch`` and ``offset``. The first scope of a topic decides, for all that share it.
            unsubscribe: makes the message that ends it; None for none.
            capacity: messages that may wait to be taken.
            overflow: see `messages`. Where messages were dropped, there is a `Gap`.

        Raises:
            RpcError: the server refused. If it does so after a reconnection, the stream raises it.
            ConnectionClosed: the client is closed, or has given up.
        """
        return self._listening.subscribed(topic, cls, where, subscribe, unsubscribe, capacity, overflow)

    def on_unhandled(self, hook: UnhandledHook) -> Callable[[], None]:
        """Call a function with the envelope of each message that nobody wants. Returns what removes it.

        Raises:
            ConfigError: it is no function.
        """
        check_callable(hook, "on_unhandled")
        self._receiver.on_unhandled.append(hook)
        return lambda: self._receiver.on_unhandled.remove(hook)

    def on_error(self, hook: ErrorHook) -> Callable[[], None]:
        """Call a function with each error that nobody waits for, and the envelope if there is one.

        That is: a message that cannot be read or does not fit its class, an ERROR that answers no request, what a
        handler raised, a message that the offline queue dropped, and what `get_token` raised. Without any such
        function, the log tells that there was an error, and of what class.

        Returns:
            What removes it.

        Raises:
            ConfigError: it is no function.
        """
        check_callable(hook, "on_error")
        self._receiver.on_error.append(hook)
        return lambda: self._receiver.on_error.remove(hook)
