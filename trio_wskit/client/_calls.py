"""A request with progress."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import Any, Generic, TypeVar, cast, final

import trio

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.schema import MessageSpec
from trio_wskit.client._requests import Pending, Requests
from trio_wskit.client._streams import Stream, again
from trio_wskit.errors import PayloadInvalid, RpcError, ValidationError

__all__ = ["ClientCall", "Progress", "wait_for_reply"]

P = TypeVar("P")
R_co = TypeVar("R_co", covariant=True)


async def wait_for_reply(requests: Requests, pending: Pending, deadline: float) -> Any:
    """Wait for the answer; at the deadline (as `trio.current_time` counts) settle the request ourselves."""
    if not pending.is_settled:
        with trio.CancelScope(deadline=deadline) as patience:
            await pending.wait()
        if patience.cancelled_caught and not pending.is_settled:
            error = RpcError("DEADLINE_EXCEEDED", "no answer in time", correlation_id=pending.id)
            requests.settle(pending, error=error)
    else:
        await trio.lowlevel.checkpoint()
    if pending.error is not None:
        raise again(pending.error)
    return pending.reply


@final
class Progress(AsyncIterator[P]):
    """What a call tells while it runs; ends with its answer, whatever that is.

    Attributes:
        dropped: values that were dropped because nobody took them in time: the oldest.
    """

    def __init__(self, stream: Stream[Envelope], spec: MessageSpec | None, deadline: float) -> None:
        self._stream = stream
        self._spec = spec
        self._deadline = deadline

    @property
    def dropped(self) -> int:
        """See the class."""
        return self._stream.dropped

    async def __anext__(self) -> P:
        """The next value. At the call's deadline it ends, and the reply then raises.

        Raises:
            ValidationError: it does not fit the class that was asked for.
        """
        with trio.CancelScope(deadline=self._deadline):
            try:
                envelope = await self._stream.receive()
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            if self._spec is None:
                return cast("P", None if envelope.payload is ABSENT else envelope.payload)
            try:
                return cast("P", self._spec.structure(envelope))
            except PayloadInvalid as invalid:
                raise ValidationError(self._spec.type, invalid.issues) from None
        raise StopAsyncIteration


@final
class _Reply(Generic[R_co]):
    def __init__(self, requests: Requests, pending: Pending, deadline: float) -> None:
        self._requests = requests
        self._pending = pending
        self._deadline = deadline

    def __await__(self) -> Generator[Any, Any, R_co]:
        return wait_for_reply(self._requests, self._pending, self._deadline).__await__()


@final
class ClientCall(Generic[R_co, P]):
    """One request that runs: see `Client.call`.

    Attributes:
        progress: iterate over it for the progress; it ends when the answer has come.
        correlation_id: its name on the wire.
    """

    def __init__(
        self, requests: Requests, pending: Pending, stream: Stream[Envelope], spec: MessageSpec | None, deadline: float
    ) -> None:
        self.progress: Progress[P] = Progress(stream, spec, deadline)
        self.correlation_id: str = pending.id
        self._reply: _Reply[R_co] = _Reply(requests, pending, deadline)

    @property
    def reply(self) -> _Reply[R_co]:
        """``await call.reply`` waits for the answer, and raises what came instead of it; as often as you like.

        Raises:
            RpcError: the server said no; or DEADLINE_EXCEEDED, when there was no answer in time.
            ServerError: the server answered with a plain ERROR.
            ValidationError: what it answered is not what the request declares.
            ConnectionClosed: the connection was lost before the answer came.

        Cancelled: the call goes on, until its block is left.
        """
        return self._reply
