"""From envelope to handler to answer: the first-in first-out dispatcher of one connection.

Rules
- One task of the session is the *leader*: it takes envelopes in the order of arrival and runs each handler itself,
  right there, without a task or a cancel scope of its own. That is all that most messages need.
- Events are serial: when the handler of an event waits, the leader waits with it.
- Calls (RPC) are concurrent: when the handler of a call waits for the first time, a new task is started as leader, and
  the old one belongs to that call alone until it is answered (leader/followers; Schmidt and others, 2000). So calls
  start in order, and only those that wait cost a task.
- The leader's cancel scope is its handler's: an abort, a deadline or a disconnect cancels exactly that.
- While the leader does not wait, the outbox is corked: the answers of one batch leave in one write.
- What a route asks for beside its handler (a lane, a time limit, to be detached) costs those that do not ask nothing:
  the table that is looked at first holds plain routes alone. When the app drains, that table is empty.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio
from trio.lowlevel import wait_task_rescheduled

from trio_wskit._await import go_on, run_until_wait
from trio_wskit._compiled import COROUTINE, CompiledRoute
from trio_wskit._context import Context
from trio_wskit._core.envelope import Envelope
from trio_wskit._lanes import Lanes
from trio_wskit._rpc import Call
from trio_wskit._special import Detached, run_special
from trio_wskit._work import Drain, Runner, Work
from trio_wskit.errors import ErrorCode, WsKitError

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["Dispatcher"]

_NOTHING: Final[Iterator[Envelope]] = iter(())
_NO_ROUTES: Final[Mapping[str, Any]] = {}
_NO_LANES: Final = Lanes()  # of connections whose routes have none
_LAST_WRITE: Final = 1.0  # seconds for a write that was begun before the peer closed


@final
class Dispatcher:
    """The lane of one connection: what waits, what runs, and which task leads.

    Args:
        session: whose envelopes these are.
        routes: type to route.
        plain: those among them that ask for nothing special.
        nursery: owns followers.
        max_in_flight: how many calls may wait at the same time.
        work: what the connections of the app share.
    """

    __slots__ = (
        "aborted",
        "all_routes",
        "calls",
        "disconnected",
        "in_flight",
        "lanes",
        "max_in_flight",
        "nursery",
        "pending",
        "remembers",
        "routes",
        "running",
        "session",
        "work",
    )

    def __init__(
        self,
        session: Session,
        routes: Mapping[str, CompiledRoute],
        plain: Mapping[str, CompiledRoute],
        nursery: trio.Nursery,
        max_in_flight: int,
        work: Work,
    ) -> None:
        self.session = session
        self.all_routes = routes
        self.routes = plain if work.drain is None else _NO_ROUTES
        self.remembers = session.idempotency is not None
        self.work = work
        self.lanes = _NO_LANES if plain is routes else Lanes()
        self.nursery = nursery
        self.max_in_flight = max_in_flight
        self.pending: Iterator[Envelope] = _NOTHING  # what is left of the batch; a new leader goes on where the old was
        self.running: set[_Leader] | None = None  # those whose handler waits; made at the first wait
        self.calls: dict[str, Runner] | None = None  # those among them that a client may abort
        self.aborted: set[str] | None = None  # aborts of calls that have not started yet
        self.in_flight = 0
        self.disconnected = False

    def run(self) -> Awaitable[None]:
        """Lead until the connection is closed and everything that came before has been served."""
        return _Leader(self).lead()

    def abort(self, correlation_id: str) -> None:
        """The client wants this call no more: cancel it, or do not start it."""
        if self.calls and correlation_id in self.calls:
            self.calls[correlation_id].cancel("CANCELLED")
        elif length_hint(self.pending) or self.session.connection.inbox:
            if self.aborted is None:
                self.aborted = set()
            if len(self.aborted) < 1024:  # more than can wait; a client that invents ids gains nothing
                self.aborted.add(correlation_id)

    def disconnect(self) -> None:
        """The client is gone: cancel every handler that waits, now, and every other at its first wait."""
        self.disconnected = True
        for leader in tuple(self.running or ()):
            leader.cancel(None)

    def drain(self, drain: Drain) -> None:
        """Start nothing more, and let `drain` wait for what runs."""
        self.routes = _NO_ROUTES
        if self.running:
            drain.watch(set(self.running))

    def runs(self, correlation_id: str | None) -> bool:
        """True while a call with this id waits for its answer."""
        return self.calls is not None and correlation_id in self.calls

    @property
    def waiting_messages(self) -> int:
        """Messages that were read and not yet started."""
        return length_hint(self.pending) + self.session.connection.inbox.messages

    def detach(self, runner: Runner, context: Context[Any]) -> None:
        """A detached handler starts. It counts as in flight here, and in the app."""
        self.in_flight += 1
        self.work.detached.add(runner)
        if context.call is not None and context.call.correlation_id is not None:
            if self.calls is None:
                self.calls = {}
            self.calls[context.call.correlation_id] = runner

    def detached_ended(self, runner: Runner, context: Context[Any]) -> None:
        """It has ended."""
        self.in_flight -= 1
        work = self.work
        work.detached.discard(runner)
        if work.drain is not None:
            work.drain.ended(runner)
        if context.call is not None and context.call.correlation_id is not None and self.calls is not None:
            del self.calls[context.call.correlation_id]


@final
class _Leader:
    """One task: it leads, or finishes its call."""

    __slots__ = ("cancel_code", "context", "dispatcher", "leading", "route", "scope", "stopped", "waited")

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.leading = True
        self.scope = trio.CancelScope()
        self.context: Context[Any] | None = None  # of the handler that runs
        self.route: CompiledRoute | None = None  # its route, if that is a special one
        self.waited = False  # whether that handler has waited
        self.stopped = False  # this scope serves no more: it was cancelled, or another task leads
        self.cancel_code: ErrorCode | None = None

    async def lead(self) -> None:
        self.dispatcher.session.outbox.cork()
        while self.leading:
            try:
                with self.scope:
                    await self._serve()
            finally:
                if self.waited:
                    self._finished()
            if self.scope.cancelled_caught:
                self._was_cancelled()
            if self.leading:
                self.scope = trio.CancelScope()  # one that was cancelled, even too late, serves no more
                self.stopped = False

    async def _serve(self) -> None:
        dispatcher = self.dispatcher
        routes = dispatcher.routes
        session = dispatcher.session
        inbox = session.connection.inbox
        envelope: Envelope | None
        context: Context[Any] | None
        while True:
            for envelope in dispatcher.pending:
                route = routes.get(envelope.type)
                if route is None:
                    await self._serve_other(envelope)
                elif route.replies:
                    await self._serve_call(route, envelope)
                else:
                    context = Context(session, envelope, None)
                    try:
                        accept = route.accept
                        if accept is None:
                            result = route.run(context)
                        else:
                            try:
                                context.payload = accept(envelope.payload)
                            except Exception:
                                context.payload = route.spec.structure(envelope)
                            result = route.handler(context)
                        if type(result) is COROUTINE:
                            self.context = context
                            try:
                                trap = result.send(None)
                            except StopIteration:
                                pass
                            else:
                                self._event_waits()
                                await go_on(result, trap)
                    except Exception as error:
                        self._failed(context, error)
                    except BaseExceptionGroup as group:
                        raise self._failed_in_part(context, group) from None
                    if self.waited:
                        self._finished()
                        routes = dispatcher.routes  # the app may have begun to drain
                if self.stopped:
                    return
            self.context = context = envelope = None  # an idle connection keeps no message alive
            dispatcher.pending = _NOTHING
            session.outbox.uncork()
            if dispatcher.aborted and not inbox:
                dispatcher.aborted = None
            try:
                # As `await inbox.get()`, with a coroutine less for each wake-up.
                if inbox:
                    await trio.lowlevel.checkpoint()
                elif not inbox.closed:
                    await wait_task_rescheduled(inbox.park())
                dispatcher.pending = iter(inbox.take())
            except trio.EndOfChannel:
                self.leading = False
                if session.outbox.congested:  # its peer may still read: the answer to its close, behind a whole frame
                    with trio.move_on_after(_LAST_WRITE):
                        await session.outbox.drained()
                dispatcher.nursery.cancel_scope.cancel()
                return
            routes = dispatcher.routes
            session.outbox.cork()

    async def _serve_other(self, envelope: Envelope) -> None:
        """A message whose type is not among the plain routes: of a special route, unknown, or come too late."""
        dispatcher = self.dispatcher
        session = dispatcher.session
        route = dispatcher.all_routes.get(envelope.type)
        if route is None:
            what = f"no handler for {envelope.type[:100]!r}"
            session.not_understood(WsKitError("UNIMPLEMENTED", what), envelope.correlation_id)
        elif dispatcher.work.drain is not None:
            session.turn_down(dispatcher.work.drain.refusal(), envelope.correlation_id)
        else:
            await self._serve_special(route, envelope)

    async def _serve_special(self, route: CompiledRoute, envelope: Envelope) -> None:
        dispatcher = self.dispatcher
        session = dispatcher.session
        correlation_id = envelope.correlation_id if route.replies else None
        detached = route.options.detached
        if (route.replies or not route.holds_up or detached) and not self._may_start(
            correlation_id, may_wait=not route.holds_up or detached
        ):
            return
        bound = dispatcher.work.reached(detached=detached, call=route.replies)
        if bound is not None:
            what = f"{bound} {'detached handlers' if detached else 'calls'} run in all"
            session.refuse_over_limit(WsKitError("RESOURCE_EXHAUSTED", what), envelope.correlation_id, bound)
            return
        context: Context[Any] = Context(session, envelope, Call(correlation_id) if route.replies else None)
        self.context = context
        context.start_clock(route.options.timeout)
        try:
            if detached:
                await run_until_wait(Detached(dispatcher, route, context).start(), self._event_waits)
            else:
                self.route = route
                await run_until_wait(run_special(dispatcher, route, context), self._special_waits)
        except Exception as error:
            self._failed(context, error)
        except BaseExceptionGroup as group:
            raise self._failed_in_part(context, group) from None
        if self.waited:
            self._finished()
        self.route = None

    async def _serve_call(self, route: CompiledRoute, envelope: Envelope) -> None:
        dispatcher = self.dispatcher
        session = dispatcher.session
        correlation_id = envelope.correlation_id
        if (dispatcher.in_flight or dispatcher.aborted) and not self._may_start(correlation_id):
            return
        if dispatcher.remembers and "idempotencyKey" in envelope.meta:
            await self._serve_special(route, envelope)
            return
        call = Call(correlation_id)
        context: Context[Any] = Context(session, envelope, call)
        try:
            result = route.run(context)
            if type(result) is COROUTINE:
                self.context = context
                try:
                    trap = result.send(None)
                except StopIteration as finished:
                    result = finished.value
                else:
                    self._call_waits()
                    result = await go_on(result, trap)
            if not call.answered:
                frame = session.reply_frame(context, result)
                if not session.outbox.offer(frame):
                    await session.outbox.send(frame)
                call.answered = True
        except Exception as error:
            self._failed(context, error)
        except BaseExceptionGroup as group:
            raise self._failed_in_part(context, group) from None
        if self.waited:
            self._finished()

    def _may_start(self, correlation_id: str | None, *, may_wait: bool = True) -> bool:
        dispatcher = self.dispatcher
        session = dispatcher.session
        if dispatcher.aborted and correlation_id in dispatcher.aborted:
            dispatcher.aborted.discard(correlation_id)
            session.refuse(WsKitError("CANCELLED", "aborted before it was started"), correlation_id)
            return False
        if dispatcher.calls and correlation_id in dispatcher.calls:
            session.refuse_taken(correlation_id)
            return False
        if may_wait and dispatcher.in_flight >= dispatcher.max_in_flight:
            session.refuse_over_limit(
                WsKitError("RESOURCE_EXHAUSTED", f"{dispatcher.max_in_flight} calls are in flight"),
                correlation_id,
                dispatcher.max_in_flight,
            )
            return False
        return True

    def _event_waits(self) -> None:
        dispatcher = self.dispatcher
        dispatcher.session.outbox.uncork()
        self.waited = True
        if dispatcher.running is None:
            dispatcher.running = set()
        dispatcher.running.add(self)
        if dispatcher.disconnected:
            self.cancel(None)

    def _call_waits(self) -> None:
        self._event_waits()
        dispatcher = self.dispatcher
        assert self.context is not None
        assert self.context.call is not None
        self.scope.deadline = self.context.deadline
        self._may_be_aborted(self.context.call)
        dispatcher.in_flight += 1
        self.leading = False
        self.stopped = True
        dispatcher.nursery.start_soon(_Leader(dispatcher).lead)

    def _may_be_aborted(self, call: Call) -> None:
        dispatcher = self.dispatcher
        if call.correlation_id is not None:
            if dispatcher.calls is None:
                dispatcher.calls = {}
            dispatcher.calls[call.correlation_id] = self

    def _special_waits(self) -> None:
        self._event_waits()
        dispatcher = self.dispatcher
        context, route = self.context, self.route
        assert context is not None
        assert route is not None
        self.scope.deadline = context.deadline
        if context.call is not None:
            self._may_be_aborted(context.call)
            dispatcher.work.calls += 1
        self.stopped = True  # this scope has a deadline, which is not the next handler's
        if not route.holds_up:
            dispatcher.in_flight += 1
            self.leading = False
            dispatcher.nursery.start_soon(_Leader(dispatcher).lead)

    def _finished(self) -> None:
        """The handler that waited has ended, one way or another."""
        self.waited = False
        dispatcher = self.dispatcher
        assert dispatcher.running is not None
        dispatcher.running.discard(self)
        if self.leading:
            dispatcher.session.outbox.cork()
        else:
            dispatcher.in_flight -= 1
        assert self.context is not None
        call = self.context.call
        if call is not None:
            calls = dispatcher.calls
            if calls and call.correlation_id is not None and calls.get(call.correlation_id) is self:
                del calls[call.correlation_id]
            if self.route is not None:
                dispatcher.work.calls -= 1
        self.route = None
        if dispatcher.work.drain is not None:
            dispatcher.work.drain.ended(self)

    def cancel(self, code: ErrorCode | None) -> None:
        """Cancel the handler that waits; `code` is what its client is told, if anything."""
        if self.cancel_code is None:
            self.cancel_code = code
        self.stopped = True
        self.scope.cancel()

    def _failed(self, context: Context[Any], error: Exception) -> None:
        if self.waited and self.scope.cancel_called and context.call is not None:
            self._was_cancelled()  # this is why it failed, and what its client is told
        self.dispatcher.session.failed(context, error)

    def _failed_in_part(self, context: Context[Any], group: BaseExceptionGroup[BaseException]) -> BaseException:
        """Some children of a handler failed over being cancelled. What is left to raise is the cancellation."""
        parts: tuple[Any, Any] = group.split(trio.Cancelled)
        cancelled, rest = parts
        if cancelled is None or not isinstance(rest, Exception):
            return group
        self._failed(context, rest)
        return cast("BaseException", cancelled)

    def _was_cancelled(self) -> None:
        context = self.context
        code, self.cancel_code = self.cancel_code, None
        if context is not None and not self.dispatcher.disconnected:
            self.dispatcher.session.answer_cancelled(context, code)
