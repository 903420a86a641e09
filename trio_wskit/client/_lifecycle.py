"""The life of a client: attempts, connections, delays, the end. One task does all of it, one thing after the other.

    connecting --> open --> reconnecting --> connecting …
        |            |           |
        +------------+-----------+--> closing --> closed

There are never two connections, nor a connection and an attempt: the task has closed the one before it begins the
other. From `closing` on, and after the client has given up, there is only the end.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import Final, Literal, Protocol, final

import attrs
import trio

from trio_wskit._core.frames import close_frame
from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit.abc import Transport
from trio_wskit.client._auth import Credentials, Handshake, TokenAuth
from trio_wskit.client._connect import Connector, Opened
from trio_wskit.client._link import Link
from trio_wskit.client._receive import Receiver
from trio_wskit.client._reconnect import Reconnect
from trio_wskit.client._streams import Bell, Stream, again
from trio_wskit.errors import ConnectFailed, ConnectionClosed, TrioWskitError

__all__ = ["Lifecycle", "Listener", "State", "StateChange"]

logger = logging.getLogger("trio_wskit.client")

State = Literal["connecting", "open", "reconnecting", "closing", "closed"]

_LAST_WORDS: Final = 1.0  # seconds for a goodbye when we are cancelled
_STATES_KEPT: Final = 64


@final
@attrs.frozen
class StateChange:
    """One change of a client's state.

    Attributes:
        state: the new one.
        reason: why there is no connection, for ``reconnecting`` and ``closed``.
        attempt: for ``reconnecting``, the number of the next attempt in a row.
        delay: for ``reconnecting``, seconds until then.
    """

    state: State
    reason: ConnectionClosed | None = None
    attempt: int = 0
    delay: float | None = None


class Listener(Protocol):
    """Who is told of the turns of a client's life. None of these may wait."""

    def on_open(self, link: Link) -> None:
        """There is a connection. What is sent in here is the first on it."""
        ...

    def on_lost(self, link: Link, closed: ConnectionClosed) -> None:
        """The connection is lost, and all that came on it has been handed on; or we close it."""
        ...

    def on_end(self, closed: ConnectionClosed, *, gave_up: bool) -> None:
        """There will be no other. Called once."""
        ...

    def on_failed(self, error: Exception) -> None:
        """Something went wrong that nobody waits for."""
        ...


@final
class Lifecycle:
    """See the module."""

    def __init__(
        self,
        *,
        label: str,
        connect: Connector,
        handshake: Handshake,
        auth: TokenAuth | None,
        reconnect: Reconnect | None,
        limits: Limits,
        flusher: Flusher,
        receiver: Receiver,
        bell: Bell,
        randomness: Callable[[], float],
    ) -> None:
        self.state: State = "connecting"
        self.link: Link | None = None  # while the state is open
        self.closed: ConnectionClosed | None = None  # once the state is closed
        self.gave_up: bool = False
        self.attempts: int = 0
        self.connects: int = 0
        self._label = label
        self._connect = connect
        self._handshake = handshake
        self._auth = auth
        self._reconnect = reconnect
        self._limits = limits
        self._flusher = flusher
        self._receiver = receiver
        self._bell = bell  # rung for whoever waits for a stream
        self._listener: Listener  # from `run` on
        self._randomness = randomness
        self._changes = Bell()
        self._change = StateChange("connecting")
        self._watchers: list[Stream[StateChange]] = []
        self._goodbye: ConnectionClosed | None = None  # what `close` was asked to say
        self._until_open = trio.CancelScope()  # around attempts and delays

    # The state, from outside.

    def check(self) -> None:
        """Raise ConnectionClosed when nothing can be sent any more, now or later."""
        if self.closed is not None:
            raise again(self.closed)
        if self._goodbye is not None:
            raise again(self._goodbye)

    @property
    def is_ending(self) -> bool:
        """True where `check` raises."""
        return self.closed is not None or self._goodbye is not None

    @contextlib.contextmanager
    def watched(self) -> Generator[Stream[StateChange]]:
        """A stream of changes, beginning with the present state."""
        stream: Stream[StateChange] = Stream(_STATES_KEPT, "drop_oldest")
        stream.put(self._change)
        if self.closed is not None:
            stream.end()
        self._watchers.append(stream)
        try:
            yield stream
        finally:
            stream.close()
            self._watchers.remove(stream)

    async def wait_open(self) -> None:
        """Wait until there is a connection. Raises ConnectionClosed when there will be none."""
        await trio.lowlevel.checkpoint()
        while self.link is None:
            self.check()
            await self._changes.wait()

    async def wait_closed(self) -> None:
        """Wait for the end."""
        await trio.lowlevel.checkpoint()
        while self.closed is None:
            await self._changes.wait()

    def _go(self, change: StateChange) -> None:
        self.state = change.state
        self._change = change
        for stream in tuple(self._watchers):
            stream.put(change)
        self._changes.ring()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, and wait for the end. The second call only waits."""
        close_frame(code, reason)  # refuses what cannot be sent, before anything has happened
        if self._goodbye is None and self.closed is None:
            self._goodbye = ConnectionClosed(code, reason)
            self._go(StateChange("closing"))
            self._until_open.cancel()
            if self.link is not None:
                self._listener.on_lost(self.link, self._goodbye)  # its requests get no answer any more
                await self.link.connection.aclose(code, reason)
        await self.wait_closed()

    # The life.

    async def run(self, listener: Listener) -> None:
        """Live until `close`, or until it gives up. Cancelled: says goodbye, for at most a second."""
        self._listener = listener
        end = ConnectionClosed(1000, "")
        try:
            end = await self._live()
        finally:
            self.gave_up = self._goodbye is None and end.code != 1000
            self.closed = self._goodbye or end
            self._listener.on_end(self.closed, gave_up=self.gave_up)
            self._go(StateChange("closed", self.closed))
            for stream in self._watchers:
                stream.end()

    async def _live(self) -> ConnectionClosed:
        failures = 0
        while True:
            lasted = 0.0
            try:
                opened, credentials = await self._attempt()
            except ConnectFailed as failed:
                closed: ConnectionClosed = failed
            else:
                began = trio.current_time()
                closed = await self._serve(opened, credentials)
                lasted = trio.current_time() - began
            if self._is_closing():
                return closed
            policy = self._reconnect
            failures = 1 if policy is None or lasted >= policy.stable_after else failures + 1
            delay = None if policy is None else policy.delay_after(closed, failures, self._randomness())
            if delay is None:
                # After a goodbye of the server there is nothing that has failed; see `gave_up`.
                logger.log(
                    logging.INFO if closed.code == 1000 else logging.WARNING, "%s: %s; giving up", self._label, closed
                )
                return closed
            # Who waits for a first connection sees nothing else of it.
            level = logging.WARNING if self.connects == 0 and failures == 1 else logging.INFO
            logger.log(level, "%s: %s; trying again in %.1f s", self._label, closed, delay)
            self._go(StateChange("reconnecting", closed, failures, delay))
            with self._interruptible():
                await trio.sleep(delay)
            if self._is_closing():
                return closed
            self._go(StateChange("connecting"))

    def _is_closing(self) -> bool:
        return self._goodbye is not None

    def _interruptible(self) -> trio.CancelScope:
        self._until_open = trio.CancelScope()
        if self._goodbye is not None:
            self._until_open.cancel()
        return self._until_open

    async def _attempt(self) -> tuple[Opened, Credentials]:
        """Try once to connect.

        Raises:
            ConnectFailed: it failed, for whatever reason.
        """
        self.attempts += 1
        credentials = Credentials(token=None)
        handshake = self._handshake
        with self._interruptible(), trio.move_on_after(self._limits.handshake_timeout):
            try:
                if self._auth is not None:
                    credentials = await self._auth.fetch()
                    handshake = self._auth.apply(handshake, credentials)
                return await self._connect(handshake), credentials
            except ConnectFailed as failed:
                why = credentials.scrub(failed.reason)
                raise ConnectFailed(why, status=failed.status, retry_after=failed.retry_after) from None
            except Exception as error:
                self._listener.on_failed(error)
                # Of an error that is not ours only its class is told: its text may hold the token.
                said = credentials.scrub(str(error)) if isinstance(error, TrioWskitError) else type(error).__name__
                raise ConnectFailed(f"no connection to {self._label}: {said}") from None
        raise ConnectFailed(f"no connection to {self._label} within {self._limits.handshake_timeout:g} s")

    async def _serve(self, opened: Opened, credentials: Credentials) -> ConnectionClosed:
        """Be connected, until that is over."""
        if self._goodbye is not None:
            opened.transport.abort()
            await _close(opened.transport)
            return self._goodbye
        self.connects += 1
        link: Link | None = None
        try:
            async with trio.open_nursery() as nursery:
                link = Link(
                    opened, credentials, self._limits, self._flusher, nursery, self._lost, self._receiver.unreadable
                )
                self.link = link
                self._listener.on_open(link)
                self._go(StateChange("open"))
                link.connection.start()
                nursery.start_soon(link.heartbeat)
                await self._hand_on(link)
                assert link.closed is not None
                if self._goodbye is None:  # else that has told it
                    self._listener.on_lost(link, link.closed)
                nursery.cancel_scope.cancel()
        finally:
            if link is None:
                opened.transport.abort()
            else:
                with trio.CancelScope(shield=True):
                    await link.connection.aclose(1000, patience=_LAST_WORDS)
            await _close(opened.transport)
        assert link is not None
        assert link.closed is not None
        return link.closed

    async def _hand_on(self, link: Link) -> None:
        inbox = link.connection.inbox
        try:
            while True:
                batch = await inbox.get()
                link.heard = True
                await self._receiver.take(batch, lambda: link.closed is None)
        except trio.EndOfChannel:
            pass

    def _lost(self, link: Link) -> None:
        if self.link is link:
            self.link = None
            self._bell.ring()


async def _close(transport: Transport) -> None:
    """Free what a transport holds, whatever happened to it."""
    patience = trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_WORDS)
    with patience, contextlib.suppress(ConnectionClosed):
        await transport.aclose()
