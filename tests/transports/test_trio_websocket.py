"""The transport on trio-websocket: what it adds to the library, and requests of an application that uses it already."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio_websocket

from tests.serving import Client, Refused, connect, serving, until
from trio_wskit import App, Context, Limits, Reject, Request, Router, Server, Session, message, open_app
from trio_wskit._core.frames import Binary, binary_frame, close_frame, frame, ping_frame, text_frame
from trio_wskit.transports.trio_websocket import TrioWebSocketTransport, request_of, serve_request

pytestmark = pytest.mark.e2e


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


def make_router() -> tuple[Router, list[tuple[int, str]]]:
    """An echo, and how its sessions ended."""
    router = Router()
    ended: list[tuple[int, str]] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        if ctx.payload.text.startswith("close "):
            await ctx.close(int(ctx.payload.text.removeprefix("close ")), "as asked")
        await ctx.send(Said(ctx.payload.text))

    @router.on_close
    async def remember(session: Session) -> None:
        assert session.close_code is not None
        ended.append((session.close_code, session.close_reason))

    return router, ended


@asynccontextmanager
async def embedding(app: App, nursery: trio.Nursery | None = None) -> AsyncGenerator[Server]:
    """An application of trio-websocket's own, whose handler is `serve_request`."""
    async with open_app(app), trio.open_nursery() as own:
        server = await (nursery or own).start(
            partial(trio_websocket.serve_websocket, partial(serve_request, app), "127.0.0.1", 0, ssl_context=None)
        )
        yield Server([f"ws://127.0.0.1:{server.port}"], server.port)
        own.cancel_scope.cancel()


@asynccontextmanager
async def serving_it(app: App) -> AsyncGenerator[Server]:
    async with serving(app, "trio_websocket") as server:
        yield server


both_ways = pytest.mark.parametrize("way", [serving_it, embedding])
Way = Callable[[App], Any]


async def echo(client: Client, text: str) -> object:
    await client.send("SAY", {"text": text})
    return (await client.receive())["payload"]["text"]


@both_ways
async def test_messages_text_and_binary(way: Way) -> None:
    router, _ = make_router()
    async with way(App(router)) as server, await connect(server) as client:
        assert await echo(client, "grüß 🎉") == "grüß 🎉"
        assert await echo(client, "x" * 300_000) == "x" * 300_000
        await client.peer.send(Binary(b'{"type":"SAY","payload":{"text":"binary"}}'))
        assert (await client.receive())["payload"]["text"] == "binary"
        await client.close()


@both_ways
async def test_the_session_knows_the_code_that_it_closed_with_and_so_does_the_peer(way: Way) -> None:
    router, ended = make_router()
    async with way(App(router)) as server:
        async with await connect(server) as client:
            await client.send("SAY", {"text": "close 4321"})
            assert await client.end() == (4321, "as asked")
        await until(lambda: ended)
        assert ended == [(4321, "as asked")]


async def test_a_ping_that_crosses_our_close_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The library fails when it wants to answer one."""
    router, ended = make_router()
    async with serving_it(App(router)) as server:
        async with await connect(server) as client:
            await client.send("SAY", {"text": "close 4321"})
            assert isinstance(client.stream, trio.SocketStream)
            await trio.lowlevel.wait_readable(client.stream.socket)
            await client.send_frames(*[ping_frame(b"late")] * 3)
            with trio.fail_after(1):
                assert await client.end() == (4321, "as asked")
        await until(lambda: ended)
        assert ended == [(4321, "as asked")]
    assert not caplog.records


@both_ways
async def test_the_session_knows_the_code_that_its_peer_closed_with(way: Way) -> None:
    router, ended = make_router()
    async with way(App(router)) as server:
        async with await connect(server) as client:
            await client.close(4001, "bye")
        async with await connect(server) as client:
            client.cut()
        await until(lambda: len(ended) == 2)
        assert sorted(ended) == [(1006, ""), (4001, "bye")]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([text_frame(b"\xff\xfe")], 1007),
        ([frame(1, "ü".encode()[:1], first_bits=0), frame(0, b"x")], 1007),
        ([frame(1, b"", first_bits=0xC0)], 1002),  # a reserved bit
        ([frame(3, b"")], 1002),  # a reserved opcode
        ([frame(0, b"of nothing")], 1002),
        ([frame(1, b"", first_bits=0), text_frame(b"")], 1002),
        ([frame(9, b"", first_bits=0)], 1002),  # a ping in pieces
        ([frame(9, b"x" * 126)], 1002),
        ([b"\x88\x02\x03\xed"], 1002),  # a close with 1005
        ([binary_frame(b"x" * 5000)], 1009),
        ([frame(1, b"x" * 1000, first_bits=0), *[frame(0, b"x" * 1000, first_bits=0)] * 5], 1009),
    ],
)
async def test_a_broken_protocol_gets_a_real_close_frame(
    sent: list[bytes], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    router, ended = make_router()
    async with serving_it(App(router, limits=Limits(max_payload_bytes=1000))) as server:
        async with await connect(server) as client:
            assert await echo(client, "before") == "before"
            await client.send_frames(*sent, *[ping_frame(b"x" * 100)] * 50)
            assert (await client.end())[0] == code
        await until(lambda: ended)
        assert ended[0][0] == code
        async with await connect(server) as another:
            assert await echo(another, "lives") == "lives"
    assert not caplog.records


async def test_fragments_without_end_end() -> None:
    router, ended = make_router()
    async with (
        serving_it(App(router, limits=Limits(max_payload_bytes=1000))) as server,
        await connect(server) as client,
    ):
        await client.send_frames(frame(1, b"", first_bits=0))
        for _ in range(30):
            await client.send_frames(*[frame(0, b"", first_bits=0)] * 1000)
        assert (await client.end())[0] == 1009
        await until(lambda: ended)
        assert ended == [(1009, "message too big, or in too many fragments")]


async def test_pings_and_pongs_never_end_a_connection() -> None:
    router, _ = make_router()
    async with (
        serving_it(App(router, limits=Limits(max_payload_bytes=1000))) as server,
        await connect(server) as client,
    ):
        for _ in range(20):
            await client.send_frames(*[ping_frame(b"x" * 125)] * 100)
            assert await echo(client, "alive") == "alive"


async def test_the_heartbeat_finds_a_peer_that_answers_a_close_never() -> None:
    """The library waits for ever to answer a close where nothing can be sent; and then knows nothing of the end."""
    router, ended = make_router()
    app = App(router, limits=Limits(ping_interval=0.5, ping_timeout=0.2, close_timeout=0.2, write_timeout=100))
    async with serving_it(app) as server, await connect(server) as client:
        await until(lambda: app.sessions)
        [session] = app.sessions
        with trio.move_on_after(0.2):  # until nothing more goes
            while True:
                await session.send(Said("x" * 100_000))
        await client.send_frames(close_frame(1000))
        await until(lambda: ended)


# --- An application that uses trio-websocket already ---


async def test_a_request_in_our_words() -> None:
    seen: list[Request] = []

    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        seen.append(request_of(request))
        await request.reject(400)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trio_websocket.serve_websocket, handler, "127.0.0.1", 0, ssl_context=None))
        with pytest.raises(Refused):
            await connect(Server([f"ws://127.0.0.1:{server.port}"], server.port), "/a?b=c", headers={"X-One": "1"})
        nursery.cancel_scope.cancel()
    [request] = seen
    assert (request.target, request.remote, request.secure) == ("/a?b=c", "127.0.0.1", False)
    assert request.headers["x-one"] == "1"


async def test_who_is_not_admitted_is_rejected_with_the_status_that_is_due() -> None:
    async def authenticate(request: Request) -> object:
        match request.path:
            case "/nobody":
                return None
            case "/own":
                raise Reject(418, "no coffee", {"X-Why": "tea"})
            case _:
                return {"path": request.path}

    router, _ = make_router()
    app = App(router, authenticate=authenticate, origins={"https://good.example"}, limits=Limits(max_connections=1))

    async def refused(target: str = "/", **headers: str) -> Refused:
        with pytest.raises(Refused) as caught:
            await connect(server, target, headers=headers)
        return caught.value

    async with embedding(app) as server:
        assert (await refused("/nobody")).status == 401
        assert (await refused(Origin="https://evil.example")).status == 403
        own = await refused("/own")
        assert (own.status, own.body, own.headers["x-why"]) == (418, "no coffee", "tea")
        async with await connect(server, headers={"Origin": "https://good.example"}) as client:
            assert await echo(client, "hello") == "hello"
            [session] = app.sessions
            assert session.client_id == client.client_id
            full = await refused()
            assert (full.status, full.headers["retry-after"]) == (429, "1")


async def test_a_client_that_leaves_in_the_handshake_does_not_end_the_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In trio-websocket an exception of a handler ends the whole server."""
    asked = trio.Event()
    left = trio.Event()

    async def authenticate(request: Request) -> object:
        if request.path.startswith("/leaves"):
            asked.set()
            await left.wait()
        return None if request.path == "/leaves/nobody" else {}

    router, _ = make_router()
    async with embedding(App(router, authenticate=authenticate)) as server:
        for target in ("/leaves", "/leaves/nobody"):
            asked, left = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(connect, server, target))
                await asked.wait()
                nursery.cancel_scope.cancel()
            await trio.sleep(0.05)
            left.set()
        async with await connect(server) as client:
            assert await echo(client, "lives") == "lives"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_cancelling_the_application_tells_its_clients() -> None:
    router, ended = make_router()
    async with trio.open_nursery() as nursery, embedding(App(router), nursery) as server:
        client = await connect(server)
        assert await echo(client, "hello") == "hello"
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            assert await client.end() == (1001, "going away")
    client.cut()
    assert ended == [(1001, "going away")]


async def test_an_open_connection_may_be_served_as_it_is() -> None:
    """`App.serve_session` with a plain request: it is admitted late, and closed where it would have been rejected."""

    async def authenticate(request: Request) -> object:
        return {} if request.path == "/good" else None

    router, _ = make_router()
    app = App(router, authenticate=authenticate)

    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        websocket = await request.accept()
        async with trio.open_nursery() as nursery:
            await app.serve_session(TrioWebSocketTransport(websocket, nursery), request_of(request))

    async with open_app(app), trio.open_nursery() as nursery:
        started = await nursery.start(
            partial(trio_websocket.serve_websocket, handler, "127.0.0.1", 0, ssl_context=None)
        )
        server = Server([f"ws://127.0.0.1:{started.port}"], started.port)
        async with await connect(server, "/good") as client:
            assert await echo(client, "hello") == "hello"
        async with await connect(server, "/bad") as client:
            assert await client.end() == (1008, "Unauthorized")
        nursery.cancel_scope.cancel()
