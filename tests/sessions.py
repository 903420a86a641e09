"""An app with clients on links in memory, in virtual time; and at the end, proof that nothing is left of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, final

import trio
from trio.testing import wait_all_tasks_blocked

from trio_wskit import App, ConnectionClosed, Limits, Reject, Request, Router, Rpc, Session, message, open_app
from trio_wskit.transports.memory import MemoryPeer, MemoryTransport, memory_link

__all__ = ["NOW", "Add", "Client", "House", "Said", "Say", "Total", "error_of", "open_house", "raw", "settle"]

NOW: Final = 1_700_000_000_000  # what the wall clock of every house shows, in milliseconds

settle = wait_all_tasks_blocked


@message("SAY")
class Say:
    text: str = ""


@message("SAID")
class Said:
    text: str = ""


@message("TOTAL")
class Total:
    n: int


@message("ADD")
class Add(Rpc[Total]):
    n: int = 0


def raw(kind: str, payload: object = None, *, call_id: str | None = None, **meta: object) -> str:
    """The text of a message, with `call_id` for its correlation id."""
    if call_id is not None:
        meta["correlationId"] = call_id
    envelope: dict[str, object] = {"type": kind}
    if meta:
        envelope["meta"] = meta
    if payload is not None:
        envelope["payload"] = payload
    return json.dumps(envelope)


def error_of(received: dict[str, Any]) -> str:
    """The code of an ERROR or RPC_ERROR."""
    assert received["type"] == ("RPC_ERROR" if "correlationId" in received["meta"] else "ERROR"), received
    code: str = received["payload"]["code"]
    return code


@final
class Client:
    """A peer that speaks JSON.

    Attributes:
        refused: what the app answered where it did not let the client in.
    """

    def __init__(self, transport: MemoryTransport, peer: MemoryPeer) -> None:
        self.transport = transport
        self.peer = peer
        self.client_id = ""
        self.refused: Reject | None = None
        self.served = trio.Event()  # set when the server has done with this client
        self.scope = trio.CancelScope()  # around its session
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The server's side of it."""
        assert self._session is not None, "it was closed at once"
        return self._session

    def send(self, kind: str, payload: object = None, *, call_id: str | None = None, **meta: object) -> None:
        """Send a message, with `call_id` for its correlation id."""
        self.peer.send_nowait(raw(kind, payload, call_id=call_id, **meta))

    def say(self, *texts: str) -> None:
        """Send one SAY for each text."""
        for text in texts:
            self.send("SAY", {"text": text})

    async def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        received: dict[str, Any] = json.loads(await self.peer.receive())
        return received

    async def heard(self) -> list[dict[str, Any]]:
        """All that has come when nothing moves any more; it also ends at the end of the link."""
        heard: list[dict[str, Any]] = []

        async def hear() -> None:
            with suppress(ConnectionClosed):
                while True:
                    heard.append(await self.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await settle()
            nursery.cancel_scope.cancel()
        return heard

    async def texts(self) -> list[str]:
        """The text of each SAID among what was heard; nothing else may be there."""
        heard = await self.heard()
        assert {one["type"] for one in heard} <= {"SAID"}, heard
        return [one["payload"]["text"] for one in heard]

    async def closed(self) -> tuple[int, str]:
        """Wait for the end, past all messages; the close code and reason that the client sees."""
        try:
            while True:
                await self.peer.receive()
        except ConnectionClosed as closed:
            return closed.code, closed.reason

    async def leave(self) -> None:
        """Close cleanly, and wait until the server has done with it."""
        self.peer.resume()
        self.peer.close()
        await self.served.wait()


@final
class House:
    """An open app."""

    def __init__(self, app: App, nursery: trio.Nursery) -> None:
        self.app = app
        self.nursery = nursery
        self.clients: list[Client] = []
        self.sessions: list[Session] = []
        self._records: list[logging.LogRecord] = []

    async def connect(self, request: Request | None = None, *, capacity: int = 65536) -> Client:
        """A client that was let in, its `on_open` hooks begun; or refused: see `Client.refused`."""
        client = self.start(Client(*memory_link(capacity=capacity)), request)
        await settle()
        for session in self.app.sessions:
            if session.client_id == client.client_id:
                client._session = session  # pyright: ignore[reportPrivateUsage]
                self.sessions.append(session)
        return client

    def start(self, client: Client, request: Request | None = None) -> Client:
        """Begin to serve a client with a link of its own."""
        self.clients.append(client)
        self.nursery.start_soon(self._serve, client, request or Request())
        return client

    async def _serve(self, client: Client, request: Request) -> None:
        try:
            with client.scope:
                async with self.app.admit(request) as admission:
                    client.client_id = admission.client_id
                    await self.app.serve_session(client.transport, admission)
        except Reject as refusal:
            client.refused = refusal
        finally:
            client.served.set()

    def logged(self) -> list[str]:
        """What was logged since the last call. A test that logs something and does not ask for it fails."""
        lines = [record.getMessage() for record in self._records]
        self._records.clear()
        return lines

    @property
    def tasks(self) -> int:
        """How many tasks there are, of Trio's and the test's own as well."""
        return trio.lowlevel.current_statistics().tasks_living


@final
class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@asynccontextmanager
async def open_house(
    router: Router | None = None, *, limits: Limits | None = None, **options: Any
) -> AsyncGenerator[House]:
    """Open an app; at the end let every client leave, and look that nothing is left. What the block raises comes bare.

    Pings are off unless `limits` are given.
    """
    tasks = trio.lowlevel.current_statistics().tasks_living
    options.setdefault("wall_clock", lambda: NOW / 1000)
    app = App(router or Router(), limits=limits or Limits(ping_interval=math.inf), **options)
    failure: BaseException | None = None
    house: House | None = None
    handler = _Keep()
    logging.getLogger("trio_wskit").addHandler(handler)
    try:
        with trio.fail_after(1_000):  # virtual: a test that hangs ends at once
            async with open_app(app), trio.open_nursery() as nursery:
                house = House(app, nursery)
                house._records = handler.records  # pyright: ignore[reportPrivateUsage]
                try:
                    yield house
                except BaseException as error:  # bare, without the nursery's group
                    failure = error
                    nursery.cancel_scope.cancel()
                else:
                    for client in house.clients:
                        await client.leave()
            if failure is None:
                _check_nothing_left(house)
    finally:
        logging.getLogger("trio_wskit").removeHandler(handler)
    if failure is not None:
        raise failure
    await settle()
    assert trio.lowlevel.current_statistics().tasks_living == tasks, "a task is left"
    assert house.logged() == []


def _check_nothing_left(house: House) -> None:
    app: Any = house.app  # its inside, too
    assert app.sessions == ()
    assert app.door.places == 0
    assert app.door._places_by_address == {}
    assert len(app._hub) == 0
    assert tuple(app._driver.list_topics()) == ()
    sessions: list[Any] = list(house.sessions)
    for session in sessions:
        assert len(session.topics) == 0
        outbox = session.outbox
        assert (outbox.queued_bytes, outbox.congested, outbox._frames) == (0, False, [])
        assert not outbox._waiting
        dispatcher = session._dispatcher
        assert not dispatcher.running
        assert not dispatcher.calls
        assert dispatcher.in_flight == 0
