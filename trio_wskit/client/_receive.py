"""Where what comes from the server goes: to requests, streams, handlers, hooks.

Rules
- One task (`Receiver.take`) hands on what comes, in its order; it never waits for a handler.
- It waits for a stream that is full and must not drop, and then nothing is read: the server is pushed back. But while
  a request waits for its answer it goes on reading, up to eight times the bound: the answer may be behind all that,
  and whoever asked may be the one who would make room.
- Handlers run one after the other in a task of their own (`Receiver.run_handlers`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar, final, overload

import attrs

from trio_wskit._core.envelope import ERROR, RPC_ERROR, Envelope, is_reserved
from trio_wskit._core.schema import MessageSpec
from trio_wskit.client._gate import Gate
from trio_wskit.client._requests import Requests, server_error
from trio_wskit.client._streams import Bell, Stream
from trio_wskit.errors import ConfigError

__all__ = ["ErrorHook", "Handler", "Receiver", "Registrar", "Tap", "UnhandledHook", "check_callable"]

logger = logging.getLogger("trio_wskit.client")

M = TypeVar("M")
T = TypeVar("T")
Handler = Callable[[Any], Awaitable[object] | None]
UnhandledHook = Callable[[Envelope], object]
ErrorHook = Callable[[Exception, Envelope | None], object]

_UNHANDLED_LOGGED: Final = 100  # characters of a type, which the server chose


class Registrar(Protocol[M]):
    """What `Client.on` gives as a decorator: the handler comes back as it was."""

    @overload
    def __call__(self, handler: Callable[[M], Awaitable[T]], /) -> Callable[[M], Awaitable[T]]: ...
    @overload
    def __call__(self, handler: Callable[[M], None], /) -> Callable[[M], None]: ...


def check_callable(hook: object, where: str) -> None:
    """Refuse what is no function when it is registered, and not when it is first needed."""
    if not callable(hook):
        raise ConfigError(f"{where} takes a function, not {hook!r}")


@final
@attrs.define(eq=False)
class Tap:
    """One who wants the messages of a type: a stream, or a handler behind the queue of handlers.

    Attributes:
        spec: the class that they get.
        put: takes a message.
        stream: where it then waits.
        wanted: tells whether a message is one of theirs.
    """

    spec: MessageSpec
    put: Callable[[Any], None]
    stream: Stream[Any]
    wanted: Callable[[Any], bool] | None = None
    is_open: bool = True


@final
class Receiver:
    """Hands on what comes.

    Args:
        requests: who may wait for it.
        handler_capacity: messages that may wait for their handlers.

    Attributes:
        gate: what comes goes through it first.
        unhandled: messages that nobody wanted.
        refused: messages that could not be read, or did not fit their class.
    """

    def __init__(self, requests: Requests, bell: Bell, handler_capacity: int) -> None:
        self.gate: Gate = Gate()
        self.unhandled: int = 0
        self.refused: int = 0
        self.on_unhandled: list[UnhandledHook] = []
        self.on_error: list[ErrorHook] = []
        self._requests = requests
        self._bell = bell
        self._taps: dict[str, list[Tap]] = {}
        self._jobs: Stream[tuple[Tap, Handler, Any, Envelope]] = Stream(handler_capacity, on_room=bell.ring)
        self._now: Envelope | None = None

    # Who wants what.

    def add_stream(
        self, spec: MessageSpec, stream: Stream[Any], wanted: Callable[[Any], bool] | None = None
    ) -> Callable[[], None]:
        """From now on put messages into the stream; what is returned ends that."""
        return self._add(Tap(spec, stream.put, stream, wanted))

    def add_handler(self, spec: MessageSpec, handler: Handler) -> Callable[[], None]:
        """From now on call the handler with messages; what is returned ends that.

        Raises:
            ConfigError: it is no function.
        """
        check_callable(handler, "on")

        def put(message: Any) -> None:
            assert self._now is not None
            self._jobs.put((tap, handler, message, self._now))

        tap = Tap(spec, put, self._jobs)
        return self._add(tap)

    def _add(self, tap: Tap) -> Callable[[], None]:
        self._taps.setdefault(tap.spec.type, []).append(tap)

        def remove() -> None:
            if tap.is_open:
                tap.is_open = False
                taps = self._taps[tap.spec.type]
                taps.remove(tap)
                if not taps:
                    del self._taps[tap.spec.type]

        return remove

    # What comes.

    async def take(self, batch: Sequence[Envelope], link_is_open: Callable[[], bool]) -> None:
        """Hand on a batch. Once the link is gone, what is left of it is handed on without waiting."""
        gate = self.gate
        for envelope in batch:
            # An answer may let go what the gate has kept, and so may too much that is kept, and whoever leaves a topic.
            if gate.released:
                await self._let_go(link_is_open)
            if self._requests.take(envelope) or gate.keeps(envelope):
                await self._let_go(link_is_open)
            else:
                await self._hand_on(envelope, link_is_open)

    async def _let_go(self, link_is_open: Callable[[], bool]) -> None:
        while (kept := self.gate.next_released()) is not None:
            await self._hand_on(kept, link_is_open)

    async def _hand_on(self, envelope: Envelope, link_is_open: Callable[[], bool]) -> None:
        taps = self._taps.get(envelope.type)
        if taps:
            for tap in tuple(taps):
                await self._give(tap, envelope, link_is_open)
        else:
            self._nobody(envelope)

    async def _give(self, tap: Tap, envelope: Envelope, link_is_open: Callable[[], bool]) -> None:
        try:
            message = tap.spec.structure(envelope)
            if tap.wanted is not None and not tap.wanted(message):
                return
        except Exception as error:  # PayloadInvalid, or whatever a validator of the application raises
            self.refused += 1
            self.failed(error, envelope)
            return
        while tap.is_open and link_is_open() and tap.stream.must_wait(stretch=len(self._requests) > 0):
            await self._bell.wait()
        if tap.is_open:
            self._now = envelope
            tap.put(message)

    def _nobody(self, envelope: Envelope) -> None:
        if envelope.type in (ERROR, RPC_ERROR):
            self.failed(server_error(envelope, self._requests.scrub), envelope)
        elif not is_reserved(envelope.type):
            self.unhandled += 1
            for hook in tuple(self.on_unhandled):
                try:
                    hook(envelope)
                except Exception as error:
                    self.failed(error, envelope)

    def unreadable(self, error: Exception) -> None:
        """Something came that is no message."""
        self.refused += 1
        self.failed(error)

    def failed(self, error: Exception, envelope: Envelope | None = None) -> None:
        """Tell the hooks of an error that nobody waits for; the log, where there is no hook."""
        for hook in tuple(self.on_error):
            try:
                hook(error, envelope)
            except Exception:
                logger.exception("an on_error hook failed")
        if not self.on_error:
            # No text of the error: it may repeat what came.
            kind = "" if envelope is None else f" about a message {envelope.type[:_UNHANDLED_LOGGED]!r}"
            logger.warning("%s%s: register an on_error hook to see it", type(error).__name__, kind)

    async def run_handlers(self) -> None:
        """Call the handlers, one after the other, until cancelled."""
        async for tap, handler, message, envelope in self._jobs:
            if tap.is_open:
                try:
                    running = handler(message)
                    if running is not None:
                        await running
                except Exception as error:
                    if self.on_error:
                        self.failed(error, envelope)
                    else:
                        logger.exception("a handler of %r failed", tap.spec.type)

    def end(self, error: Exception | None) -> None:
        """Nothing more will come."""
        for taps in tuple(self._taps.values()):
            for tap in tuple(taps):
                tap.stream.end(error)
