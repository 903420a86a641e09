"""Requests, from the call to the answer: encoded, sent, awaited, asked again, given up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, final

import attrs
import trio

from trio_wskit._core.backoff import RetryBudget
from trio_wskit._core.frames import text_frame
from trio_wskit._core.schema import MessageSpec
from trio_wskit.client._calls import ClientCall, wait_for_reply
from trio_wskit.client._lifecycle import Lifecycle
from trio_wskit.client._queue import Outgoing
from trio_wskit.client._raw import compiled
from trio_wskit.client._requests import Pending, Requests
from trio_wskit.client._retry import Retry
from trio_wskit.client._sending import Meta, Sender
from trio_wskit.client._streams import Stream
from trio_wskit.errors import ConnectionClosed, ServerError

__all__ = ["Asker", "Question"]


@final
@attrs.define  # not frozen: that costs more, once for each request
class Question:
    """What a caller asks: see `Client.request` for each."""

    message: object
    meta: Meta | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None


@final
class Asker:
    """Asks for one client.

    Args:
        life: knows whether there is a link.
        sender: sends on it.
        requests: those that wait for their answers.
        retry: for requests that say nothing of their own.
        call_timeout: seconds for each attempt.
        send_deadlines: whether ``timeoutMs`` goes along; None to do as the server says.
        randomness: gives numbers from 0 to 1.

    Attributes:
        retries: requests that were sent again.
    """

    def __init__(
        self,
        *,
        life: Lifecycle,
        sender: Sender,
        requests: Requests,
        retry: Retry | None,
        call_timeout: float,
        send_deadlines: bool | None,
        randomness: Callable[[], float],
    ) -> None:
        self.retries: int = 0
        self._life = life
        self._sender = sender
        self._requests = requests
        self._retry = retry
        self._call_timeout = call_timeout
        self._send_deadlines = send_deadlines
        self._randomness = randomness
        self._budget = RetryBudget()

    async def ask(self, question: Question, retry: Retry | None) -> Any:
        """See `Client.request`."""
        retry = retry or self._retry
        attempt = 0
        while True:
            try:
                reply = await self.ask_once(question)
            except (ServerError, ConnectionClosed) as error:
                attempt += 1
                delay = None
                if retry is not None and not self._life.is_ending:
                    has_key = question.idempotency_key is not None
                    delay = retry.delay_after(error, attempt, self._randomness(), has_key=has_key)
                if delay is None or not self._budget.failed():
                    raise
                if trio.current_time() + delay >= trio.current_effective_deadline():
                    raise
            else:
                self._budget.succeeded()
                return reply
            self.retries += 1
            await trio.sleep(delay)

    async def ask_once(self, question: Question) -> Any:
        """Ask, and wait for the answer."""
        # In a handler of a server of ours, the deadline of the call is set at its first wait: there must be one.
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + self._call_timeout
        pending, outgoing = self._prepare(question, deadline)
        try:
            if not self._sender.submit_at_once(outgoing):
                with trio.CancelScope(deadline=deadline):
                    await self._sender.submit(outgoing)
            return await wait_for_reply(self._requests, pending, deadline)
        finally:
            self._let_go(pending, outgoing)

    @asynccontextmanager
    async def call(
        self, question: Question, spec: MessageSpec | None, stream: Stream[Any]
    ) -> AsyncGenerator[ClientCall[Any, Any]]:
        """See `Client.call`. Progress goes into `stream`, and is read as `spec`."""
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + self._call_timeout
        pending, outgoing = self._prepare(question, deadline, stream)
        try:
            with trio.CancelScope(deadline=deadline):
                await self._sender.submit(outgoing)
            yield ClientCall(self._requests, pending, stream, spec, deadline)
        finally:
            self._let_go(pending, outgoing)

    def _prepare(
        self, question: Question, deadline: float, progress: Stream[Any] | None = None
    ) -> tuple[Pending, Outgoing]:
        """Make a request, and register it."""
        self._life.check()
        encode_with, reply = compiled(question.message)
        over_at = min(deadline, trio.current_effective_deadline())
        pending = self._requests.open(reply, question.correlation_id, progress=progress)

        def encode(meta_keys: frozenset[str]) -> bytes:
            meta = self._sender.meta(question.meta, pending.id)
            if question.idempotency_key is not None:
                meta["idempotencyKey"] = question.idempotency_key
            takes = "timeoutms" in meta_keys if self._send_deadlines is None else self._send_deadlines
            if takes:
                meta["timeoutMs"] = max(1, round((over_at - trio.current_time()) * 1000))
            return text_frame(encode_with(meta))

        def dropped(error: Exception) -> None:
            self._requests.settle(pending, error=error)

        def sent(link: object) -> None:
            pending.sent_on = link
            if self._life.link is not link:  # it was lost while the outbox let us in
                self._requests.settle(pending, error=ConnectionClosed(1006, "the connection was lost"))

        return pending, Outgoing(encode, dropped, sent)

    def _let_go(self, pending: Pending, outgoing: Outgoing) -> None:
        """The caller has what it wanted, or does not want it any more."""
        self._sender.take_back(outgoing, pending)
        self._requests.settle(pending, error=ConnectionClosed(1000, "nobody waits for the answer"))
