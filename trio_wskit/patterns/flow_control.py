"""Flow control: a bounded queue for what each client sends, and a sender that has only so many messages under way.

The server keeps a `FlowControl`; each `DataAck` is a credit for the sender's next message. See docs/howto/patterns.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar, final, get_args

import trio

from trio_wskit import Client, ConfigError, Context, message

__all__ = ["DataAck", "FlowControl", "FlowPolicy", "FlowSender", "ResourceExhausted"]

M = TypeVar("M")
FlowPolicy = Literal["drop-oldest", "drop-new", "queue"]


@message("RESOURCE_EXHAUSTED")
class ResourceExhausted:
    """To a client: the queue of what it sends is full, and a message is dropped.

    Attributes:
        policy: which one that is.
        retry_after_ms: how long to wait before it is sent again.
        queue_depth: how many wait now.
        dropped: the message's id.
    """

    policy: FlowPolicy
    retry_after_ms: int
    queue_depth: int
    dropped: str


@message("DATA_ACK")
class DataAck:
    """To a client: the message with this id is done with, well or not."""

    id: str


@final
class _Turn:
    __slots__ = ("came", "dropped", "id")

    def __init__(self, message_id: str) -> None:
        self.id = message_id
        self.came = trio.Event()
        self.dropped = False


@final
class FlowControl(Generic[M]):
    """The server's side: one queue for each client, whose messages are handled one after the other.

    Args:
        handle: ``async def (ctx)`` handles one message.
        capacity: messages of a client that wait; above 0.
        policy: what happens to one more: ``drop-oldest`` makes room, ``drop-new`` refuses it, ``queue`` lets it wait
            all the same, up to `limit`, and then refuses it.
        retry_after: seconds that the client is asked to wait.
        limit: messages of a client that wait under ``queue``.
    """

    def __init__(
        self,
        handle: Callable[[Context[M]], Awaitable[object]],
        *,
        capacity: int = 10,
        policy: FlowPolicy = "drop-oldest",
        retry_after: float = 0.1,
        limit: int = 1000,
    ) -> None:
        if policy not in get_args(FlowPolicy):
            raise ConfigError(f"FlowControl(policy=…) takes one of {get_args(FlowPolicy)}, not {policy!r}")
        if capacity < 1 or limit < capacity or retry_after < 0:
            raise ConfigError("FlowControl takes capacity above 0, limit not below it, retry_after not below 0")
        self._handle = handle
        self._capacity = limit if policy == "queue" else capacity
        self._policy: FlowPolicy = policy
        self._retry_after = retry_after
        self._queues: dict[str, deque[_Turn]] = {}  # of the clients of whom a message is being handled

    @property
    def busy(self) -> int:
        """Of how many clients a message is being handled."""
        return len(self._queues)

    def waiting(self, client_id: str) -> list[str]:
        """The ids of a client's messages that wait, the oldest first."""
        return [turn.id for turn in self._queues.get(client_id, ())]

    async def push(self, ctx: Context[M], message_id: str) -> bool:
        """Wait for the message's turn, handle it, acknowledge it. Call it from the handler of the message.

        That handler's route has a ``lane=concurrent(n)``: n is the capacity and two more, for one that is being handled
        and one that comes. ``Limits.max_in_flight`` is not below n.

        Args:
            ctx: of the message.
            message_id: what the client calls it.

        Returns:
            False where it was dropped; the client has been told.

        Raises:
            Exception: what `handle` raises; it is acknowledged all the same.

        Cancelled: it has left the queue.
        """
        queue = self._queues.get(ctx.client_id)
        if queue is None:
            queue = self._queues[ctx.client_id] = deque()
        elif not await self._wait(ctx, message_id, queue):
            return False
        try:
            await self._handle(ctx)
        except Exception:
            await ctx.send(DataAck(message_id))
            raise
        finally:
            if queue:
                queue.popleft().came.set()
            else:
                del self._queues[ctx.client_id]
        await ctx.send(DataAck(message_id))
        return True

    async def _wait(self, ctx: Context[M], message_id: str, queue: deque[_Turn]) -> bool:
        turn = _Turn(message_id)
        if len(queue) < self._capacity:
            queue.append(turn)
        else:
            dropped = turn
            if self._policy == "drop-oldest":
                dropped = queue.popleft()
                dropped.dropped = True
                dropped.came.set()
                queue.append(turn)
            wait = round(self._retry_after * 1000)
            try:
                await ctx.send(ResourceExhausted(self._policy, wait, len(queue), dropped.id))
            except BaseException:
                self._give_up(turn, queue, ctx)
                raise
            if dropped is turn:
                return False
        try:
            await turn.came.wait()
        except BaseException:
            self._give_up(turn, queue, ctx)
            raise
        return not turn.dropped

    def _give_up(self, turn: _Turn, queue: deque[_Turn], ctx: Context[M]) -> None:
        if turn in queue:
            queue.remove(turn)
        elif turn.came.is_set() and not turn.dropped:  # it was its turn: pass it on
            if queue:
                queue.popleft().came.set()
            else:
                del self._queues[ctx.client_id]


@final
class _Parcel:
    __slots__ = ("done", "retry_after")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.retry_after: float | None = None


@final
class FlowSender:
    """A client's side, made by `open`: it has as many credits as the server has places.

    Attributes:
        resent: messages that were sent again, because the server had dropped them.
    """

    def __init__(self, client: Client, window: int) -> None:
        self.resent: int = 0
        self._client = client
        self._credits = trio.Semaphore(window, max_value=window)
        self._parcels: dict[str, _Parcel] = {}

    @staticmethod
    @asynccontextmanager
    async def open(client: Client, window: int = 10) -> AsyncGenerator[FlowSender]:
        """Be a sender for the time of a block.

        Args:
            client: of the connection.
            window: messages that may be under way; above 0, and not above the server's capacity.
        """
        sender = FlowSender(client, window)
        removes = (client.on(DataAck, sender._acknowledged), client.on(ResourceExhausted, sender._dropped))
        try:
            yield sender
        finally:
            for remove in removes:
                remove()

    async def send(self, message: object, message_id: str) -> None:
        """Send a message when there is a credit, and wait until the server has done with it.

        Where the server has dropped it, wait as long as the server asks, and send it again.

        Args:
            message: that carries the id.
            message_id: that no other message under way has.

        Raises:
            ConnectionClosed, WsKitError: as `Client.send`.

        Cancelled: the server may have got it. What was under way when a connection broke is not acknowledged by
        another: put a cancel scope around.
        """
        async with self._credits:
            try:
                while True:
                    parcel = self._parcels[message_id] = _Parcel()
                    await self._client.send(message)
                    await parcel.done.wait()
                    if parcel.retry_after is None:
                        return
                    await trio.sleep(parcel.retry_after)
                    self.resent += 1
            finally:
                del self._parcels[message_id]

    def _acknowledged(self, ack: DataAck) -> None:
        parcel = self._parcels.get(ack.id)
        if parcel is not None:
            parcel.done.set()

    def _dropped(self, refusal: ResourceExhausted) -> None:
        parcel = self._parcels.get(refusal.dropped)
        if parcel is not None:
            parcel.retry_after = refusal.retry_after_ms / 1000
            parcel.done.set()
