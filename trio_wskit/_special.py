"""Handlers of routes that ask for more than a plain one: a lane, a recorded answer, a life beyond their connection.

Plain routes never come here. In order, from the outside: the lane (a message waits for its turn before anything of it
runs), idempotency (one of many runs), then the middleware and the handler, as in any route.
"""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio

from trio_wskit._context import Context
from trio_wskit._core.codec import encode_error
from trio_wskit._core.frames import payload_of, text_frame
from trio_wskit._core.idempotency import answer_for, fingerprint, is_final
from trio_wskit._outbox import Frame
from trio_wskit.errors import ErrorCode, PayloadInvalid

if TYPE_CHECKING:
    from trio_wskit._compiled import CompiledRoute
    from trio_wskit._dispatch import Dispatcher

__all__ = ["Detached", "run_special"]

_TO_RECORD: Final = 5.0  # seconds that a store may take to record an answer, whatever is cancelled


async def run_special(dispatcher: Dispatcher, route: CompiledRoute, context: Context[Any]) -> None:
    """Serve one message of a special route; raises what its handler raises, unanswered."""
    lane = route.options.lane
    if lane is None or lane.places is None:
        await _run_once(dispatcher, route, context)
        return
    if lane.key is None:
        key = None
    else:
        try:
            context.payload = route.spec.structure(context.envelope)
        except PayloadInvalid:
            await _run_once(dispatcher, route, context)  # it will be refused in its turn, by whoever comes first
            return
        key = lane.key(context)
        del context.payload  # for what runs before the validation, it is not there
    await dispatcher.lanes.enter((context.type, key), lane.places)
    try:
        await _run_once(dispatcher, route, context)
    finally:
        dispatcher.lanes.leave((context.type, key))


async def _run_once(dispatcher: Dispatcher, route: CompiledRoute, context: Context[Any]) -> None:
    session = dispatcher.session
    store = session.idempotency
    given = context.meta.get("idempotencyKey")
    call = context.call
    if store is None or given is None or call is None:
        await _run(route, context)
        return
    key = f"{session.identity}\n{given}"
    request = fingerprint(context.envelope)
    answer = await store.begin(key, request)
    if answer is not None:
        frame = text_frame(answer_for(answer, call.correlation_id, session.timestamp()))
        await session.outbox.send(Frame(frame))
        call.answered = True
        return
    try:
        await _run(route, context)
    except Exception as error:
        known = session.known(error, context)
        if known is not None and is_final(known) and not call.answered:
            answer = encode_error(known, None, 0)
        raise
    finally:
        if call.answer is not None:  # whether or not its client is still there to hear it
            answer = payload_of(call.answer)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _TO_RECORD):
            await store.finish(key, request, answer)


async def _run(route: CompiledRoute, context: Context[Any]) -> None:
    result: Any = route.run(context)
    if type(result) is CoroutineType:
        waits: CoroutineType[Any, Any, Any] = result  # pyright: ignore[reportUnknownVariableType]
        result = await waits
    call = context.call
    if call is None or call.answered:
        return
    session = context.session
    frame = session.reply_frame(context, result)
    call.answer = frame.wire
    await session.outbox.send(frame)
    call.answered = True


@final
class Detached:
    """A handler in the app's nursery: its connection may end, an abort, a deadline or the end of the app cancel it."""

    __slots__ = ("_context", "_dispatcher", "_route", "cancel_code", "scope")

    def __init__(self, dispatcher: Dispatcher, route: CompiledRoute, context: Context[Any]) -> None:
        self._dispatcher = dispatcher
        self._route = route
        self._context = context
        self.scope = trio.CancelScope(deadline=context.deadline)
        self.cancel_code: ErrorCode | None = None

    def cancel(self, code: ErrorCode | None) -> None:
        """Cancel it; `code` is what its client is told, if it is still there."""
        if self.cancel_code is None:
            self.cancel_code = code
        self.scope.cancel()

    async def start(self) -> None:
        """Start it in the app's nursery. A client that is leaving does not keep it from starting."""
        with trio.CancelScope(shield=True):
            await self._dispatcher.work.nursery.start(self.run)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run to the end. Started, when nothing of the handler has run yet: so they start in order."""
        dispatcher, context = self._dispatcher, self._context
        dispatcher.detach(self, context)
        try:
            with self.scope:
                task_status.started()
                await self._run()
        finally:
            dispatcher.detached_ended(self, context)
        if self.scope.cancelled_caught:
            dispatcher.session.answer_cancelled(context, self.cancel_code)

    async def _run(self) -> None:
        try:
            await run_special(self._dispatcher, self._route, self._context)
        except Exception as error:
            self._failed(error)
        except BaseExceptionGroup as group:  # children that failed over being cancelled
            parts: tuple[Any, Any] = group.split(trio.Cancelled)
            cancelled, rest = parts
            if cancelled is None or not isinstance(rest, Exception):
                raise
            self._failed(rest)
            raise cast("BaseException", cancelled) from None

    def _failed(self, error: Exception) -> None:
        session, context = self._dispatcher.session, self._context
        if self.scope.cancel_called and context.call is not None:
            session.answer_cancelled(context, self.cancel_code)
        session.failed(context, error)
