"""From an address to admitted sessions, and back to silence; on both transports, on real sockets."""

from __future__ import annotations

import json
import logging
import socket
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
import websockets.sync.client

from tests.e2e.echo_server import Said, Say, router
from tests.serving import TRANSPORTS, Client, Refused, ask, connect, hung_up, open_stream, serving, until
from tests.transports.peers import client_tls, server_tls
from trio_wskit import (
    App,
    ConfigError,
    Context,
    HttpResponse,
    Limits,
    Reject,
    Request,
    Router,
    Session,
    open_app,
    serve,
)
from trio_wskit._core.frames import masked, text_frame

pytestmark = pytest.mark.e2e
on_both = pytest.mark.parametrize("transport", TRANSPORTS)


async def echoes(client: Client, text: str = "hello") -> bool:
    await client.send("SAY", {"text": text})
    with trio.fail_after(10):
        return bool((await client.receive())["payload"] == {"text": text})


def get(target: str, method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode()


# --- Plain HTTP ---


@on_both
async def test_health_and_readiness_are_there_and_a_plain_get_is_told_what_this_is(transport: str) -> None:
    async with serving(App(router), transport) as server:
        assert (await ask(server, get("/healthz"))).body == "ok\n"
        assert (await ask(server, get("/readyz"))).body == "ready\n"
        plain = await ask(server, get("/"))
        assert (plain.status, plain.headers["upgrade"]) == (426, "websocket")
        async with await connect(server) as client:
            assert await echoes(client)


async def test_pages_are_served_beside_the_sockets(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Request) -> HttpResponse:
        raise ValueError("secret")

    async def where(request: Request) -> HttpResponse:
        return HttpResponse(200, f"{request.remote} {request.query['q']} {request.secure}")

    pages = {"/": "<h1>grüß", "/healthz": b"own", "/fails": fails, "/where": where}
    async with serving(App(router), http=pages) as server:
        page = await ask(server, get("/"))
        assert (page.status, page.body, page.headers["content-type"]) == (200, "<h1>grüß", "text/html; charset=utf-8")
        head = await ask(server, get("/", "HEAD"))
        assert (head.status, head.body, head.headers["content-length"]) == (200, "", page.headers["content-length"])
        assert (await ask(server, get("/", version="1.0"))).status == 200
        assert (await ask(server, get("/healthz"))).body == "own"
        assert (await ask(server, get("/where?q=1"))).body == "127.0.0.1 1 False"
        assert (await ask(server, get("/", "POST"))).status == 405
        assert (await ask(server, get("/nothing"))).status == 426
        assert not caplog.records
        failed = await ask(server, get("/fails"))
        assert (failed.status, failed.body) == (500, "Internal server error\n")
        assert [record.getMessage() for record in caplog.records] == ["the page /fails failed"]


async def test_an_app_that_takes_nobody_is_not_ready() -> None:
    from trio_wskit._serve import _readiness  # pyright: ignore[reportPrivateUsage]

    answer = _readiness(App(router), None)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


# --- Handshakes ---


@on_both
async def test_what_is_no_request_is_answered_and_harms_nobody(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(App(router), transport) as server, await connect(server) as client:
        assert (await ask(server, b"garbage\r\n\r\n")).status == 400
        assert (await ask(server, get("/")[:-2] + b"X: " + b"x" * 50_000)).status == 431
        async with await open_stream(server) as stream:
            await stream.send_all(b"GET / HT")
        assert await echoes(client)
    assert not caplog.records


@on_both
@pytest.mark.parametrize(
    ("headers", "status", "answer"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426, {"sec-websocket-version": "13"}),
        ({"Sec-WebSocket-Key": ""}, 400, {}),
        ({"Sec-WebSocket-Key": "short"}, 400, {}),
        ({"Sec-WebSocket-Extensions": "="}, 400, {}),
        ({"Connection": "close"}, 426, {"upgrade": "websocket"}),
    ],
)
async def test_a_broken_handshake_gets_its_status(
    transport: str, headers: dict[str, str], status: int, answer: dict[str, str]
) -> None:
    async with serving(App(router), transport) as server:
        with pytest.raises(Refused) as caught:
            await connect(server, headers=headers)
        assert caught.value.status == status
        assert answer.items() <= dict(caught.value.headers).items()


@on_both
@pytest.mark.parametrize("first_line", ["POST / HTTP/1.1", "GET / HTTP/1.0"])
async def test_an_upgrade_that_does_not_count_gets_a_plain_answer(transport: str, first_line: str) -> None:
    raw = (
        f"{first_line}\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with serving(App(router), transport) as server:
        assert (await ask(server, raw.encode())).status == 426


@on_both
async def test_frames_that_come_with_the_handshake_are_served(transport: str) -> None:
    at_once = masked(text_frame(b'{"type":"SAY","payload":{"text":"early"}}'), b"abcd")
    async with serving(App(router), transport) as server, await connect(server, and_at_once=at_once * 2) as client:
        assert [(await client.receive())["payload"] for _ in range(2)] == [{"text": "early"}] * 2


@on_both
@pytest.mark.parametrize("tls", [False, True])
async def test_a_slow_handshake_ends_at_its_deadline(transport: str, tls: bool) -> None:
    app = App(router, limits=Limits(handshake_timeout=0.7))
    async with serving(app, transport, ssl_context=server_tls() if tls else None) as server:
        slow = [await open_stream(server) for _ in range(2)]
        await slow[1].send_all(b"GET / HTTP/1.1\r\nHost: local")
        async with await connect(server, tls=client_tls() if tls else None) as client:
            for stream in slow:
                assert await hung_up(stream) == b""
                await stream.aclose()
            await trio.sleep(0.7)
            assert await echoes(client)  # the deadline is the handshake's, not the connection's


@on_both
async def test_a_slow_authenticate_ends_at_the_deadline_and_frees_its_place(transport: str) -> None:
    async def authenticate(request: Request) -> object:
        if request.path == "/slow":
            await trio.sleep_forever()
        return request.path

    limits = Limits(handshake_timeout=0.7, max_connections=1)
    async with serving(App(router, authenticate=authenticate, limits=limits), transport) as server:
        with pytest.raises(trio.BrokenResourceError):
            await connect(server, "/slow")
        async with await connect(server, "/quick") as client:
            assert await echoes(client)


@on_both
async def test_every_connection_has_one_id_of_its_own(transport: str) -> None:
    opened: list[str] = []
    own = Router()

    @own.on_open
    async def remember(session: Session) -> None:
        opened.append(session.client_id)

    async with serving(App(own), transport) as server, await connect(server) as one, await connect(server) as two:
        assert one.client_id != two.client_id
        assert uuid.UUID(one.client_id).version == 7
        await until(lambda: len(opened) == 2)
        assert {one.client_id, two.client_id} == set(opened)


@on_both
async def test_authenticate_decides_who_comes_in_and_with_what(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Request] = []

    async def authenticate(request: Request) -> Any:
        seen.append(request)
        match request.query.get("token"):
            case "ada":
                return {"user": "ada"}
            case "teapot":
                raise Reject(418, "no coffee", {"X-Why": "tea"})
            case "bug":
                raise ValueError("the database's password is 1234")
            case _:
                return None

    own = Router()

    @own.on(Say)
    async def whoami(ctx: Context[Say]) -> None:
        await ctx.send(Said(ctx.data["user"]))

    async def refused(target: str) -> Refused:
        with pytest.raises(Refused) as caught:
            await connect(server, target)
        return caught.value

    async with serving(App(own, authenticate=authenticate), transport) as server:
        async with await connect(server, "/chat/%C3%BC?token=ada", headers={"X-Mine": "1"}) as client:
            await client.send("SAY", {"text": ""})
            assert (await client.receive())["payload"] == {"text": "ada"}
        [request] = seen
        assert (request.path, request.remote, request.secure) == ("/chat/ü", "127.0.0.1", False)
        assert (request.headers["x-mine"], request.headers["HOST"]) == ("1", "localhost")
        nobody = await refused("/")
        assert (nobody.status, nobody.body) == (401, "Unauthorized\n")
        teapot = await refused("/?token=teapot")
        assert (teapot.status, teapot.body, teapot.headers["x-why"]) == (418, "no coffee\n", "tea")
        assert not caplog.records
        bug = await refused("/?token=bug")
        assert (bug.status, bug.body) == (500, "Internal server error\n")
        assert len(caplog.records) == 1


@on_both
@pytest.mark.parametrize(
    ("origins", "origin", "comes_in"),
    [
        (None, "", True),  # no browser
        (None, "http://localhost", True),
        (None, "https://localhost", True),
        (None, "https://evil.example", False),
        (None, "null", False),
        ({"https://good.example"}, "https://GOOD.example", True),
        ({"https://good.example/"}, "https://good.example", True),
        ({"https://good.example"}, "https://good.example.evil.example", False),
        ({"https://good.example"}, "http://good.example", False),
        ({"*"}, "https://evil.example", True),
        (set[str](), "http://localhost", False),
    ],
)
async def test_only_pages_that_may_connect_do(
    transport: str, origins: set[str] | None, origin: str, comes_in: bool
) -> None:
    async with serving(App(router, origins=origins), transport) as server:
        if comes_in:
            async with await connect(server, headers={"Origin": origin}) as client:
                assert await echoes(client)
        else:
            with pytest.raises(Refused) as caught:
                await connect(server, headers={"Origin": origin})
            assert caught.value.status == 403


@on_both
@pytest.mark.parametrize("limits", [Limits(max_connections=2), Limits(max_connections_per_address=2)])
async def test_one_connection_too_many_is_429_until_a_place_is_free(transport: str, limits: Limits) -> None:
    own = Router()
    over: list[object] = []
    own.on_limit_exceeded(lambda info: over.append((info.type, info.observed, info.limit)))
    async with serving(App(own, limits=limits), transport) as server, await connect(server) as one:
        two = await connect(server)
        with pytest.raises(Refused) as caught:
            await connect(server)
        assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "1")
        assert over == [("connections", 3, 2)]
        assert (await ask(server, get("/healthz"))).status == 200
        await one.close()
        with trio.fail_after(10):
            await _until_let_in(server)
        two.cut()


async def _until_let_in(server: Any) -> None:
    while True:
        try:
            async with await connect(server):
                return
        except Refused:
            await trio.sleep(0.01)


# --- Where it listens ---


@on_both
async def test_tls(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    secure: list[bool] = []

    async def authenticate(request: Request) -> object:
        secure.append(request.secure)
        return {}

    app = App(router, authenticate=authenticate)
    async with serving(app, transport, ssl_context=server_tls(), http={"/": "page"}) as server:
        assert server.urls == [f"wss://127.0.0.1:{server.port}"]
        assert (await ask(server, get("/"), tls=client_tls())).body == "page"
        async with await connect(server, tls=client_tls()) as client:
            assert await echoes(client)
            assert await echoes(client, "x" * 500_000)
            assert secure == [True]
            async with await open_stream(server) as plain:
                await plain.send_all(get("/"))
                assert b"HTTP" not in await hung_up(plain)
            await client.close(4000)
    assert not caplog.records


@on_both
async def test_a_unix_socket_comes_and_goes(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with serving(App(router), transport, None, unix_path=str(path)) as server:
        assert server.urls == [f"unix:{path}"]
        assert server.port == 0
        async with await connect(server) as client:
            assert await echoes(client)
        assert (await ask(server, get("/healthz"))).status == 200
    assert not path.exists()


async def test_a_unix_socket_that_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(App(router), host=None, unix_path=str(path)) as server, await connect(server) as client:
        assert await echoes(client)


async def test_a_unix_socket_that_somebody_uses_is_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with serving(App(router), host=None, unix_path=str(path)) as server:
        with pytest.raises(OSError, match="in use"):
            await serve(App(router), unix_path=str(path))
        async with await connect(server) as client:
            assert await echoes(client)
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        await serve(App(router), unix_path=str(path))
    assert path.read_text() == "a file"


async def test_the_socket_of_who_took_over_stays(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with serving(App(router), host=None, unix_path=str(path)):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system has no SO_REUSEPORT")
async def test_several_may_listen_on_one_port_if_all_agree() -> None:
    async with serving(App(router), reuse_port=True) as one:
        other_app = App(router)
        async with serving(other_app, reuse_port=True, port=one.port) as other:
            assert other.urls == one.urls
            clients = [await connect(one) for _ in range(40)]
            for client in clients:
                assert await echoes(client)
            assert 0 < len(other_app.sessions) < 40
            for client in clients:
                await trio.aclose_forcefully(client.stream)
        with pytest.raises(OSError, match="in use"):
            await serve(App(router), "127.0.0.1", one.port)


@pytest.mark.skipif(not (socket.has_ipv6 and hasattr(socket, "SO_REUSEPORT")), reason="the system has no IPv6")
@pytest.mark.parametrize("reuse_port", [False, True])
async def test_an_address_of_ipv6_has_brackets_in_its_url(reuse_port: bool) -> None:
    async with serving(App(router), host="::1", reuse_port=reuse_port) as server, await connect(server) as client:
        assert server.urls == [f"ws://[::1]:{server.port}"]
        assert await echoes(client)


async def test_every_interface_is_listened_on_without_a_host() -> None:
    async with serving(App(router), host=None) as server:
        assert all(url.startswith("ws://") for url in server.urls)
        async with await connect(server, stream=await trio.open_tcp_stream("127.0.0.1", server.port)) as client:
            assert await echoes(client)


@pytest.mark.parametrize(
    "options",
    [
        {"transport": "carrier pigeon"},
        {"port": 70_000},
        {"port": -1},
        {"unix_path": "/tmp/x", "host": "127.0.0.1"},
        {"unix_path": "/tmp/x", "port": 80},
        {"unix_path": "/tmp/x", "reuse_port": True},
        {"http": {"no-slash": ""}},
        {"shutdown_code": 1000},
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_opened(options: dict[str, Any]) -> None:
    app = App(router)
    with pytest.raises(ConfigError):
        await serve(app, **options)
    assert not app.is_open


# --- The end ---


@on_both
@pytest.mark.parametrize("code", [1001, 1012])
async def test_whoever_is_connected_at_the_end_is_told_within_two_seconds(
    transport: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    heard: list[tuple[int, str]] = []

    async def hear(client: Client) -> None:
        heard.append(await client.end())

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(_serve_until, stop := trio.Event(), transport=transport, shutdown_code=code)
        )
        clients = [await connect(server) for _ in range(20)]
        for client in clients[:10]:
            await client.send("WAIT", call="1")  # whose handler never returns
            assert (await client.receive())["type"] == "$ws:rpc-progress"
        stalled = await connect(server)  # which answers nothing
        silent = await open_stream(server)  # which has not even asked
        for client in clients:
            nursery.start_soon(hear, client)
        await trio.testing.wait_all_tasks_blocked(0.01)
        began = trio.current_time()
        stop.set()
        await _until_refused(server)  # nobody new is taken, while the old are told
        await until(lambda: len(heard) == len(clients))
        assert trio.current_time() - began < 2
        assert heard == [(code, "going away")] * len(clients)
        assert (await stalled.end())[0] == code
    assert trio.current_time() - began < 2.5
    assert not caplog.records
    for stream in (stalled.stream, silent, *(client.stream for client in clients)):
        await trio.aclose_forcefully(stream)


async def _serve_until(
    stop: trio.Event, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED, **options: Any
) -> None:
    async with serving(App(router), **options) as server:
        task_status.started(server)
        await stop.wait()


async def _until_refused(server: Any) -> None:
    with trio.fail_after(1):
        while True:
            try:
                await trio.aclose_forcefully(await open_stream(server))
            except OSError:
                return
            await trio.sleep(0.005)


@on_both
async def test_without_anybody_the_end_is_at_once(transport: str) -> None:
    async with serving(App(router), transport) as server:
        async with await connect(server) as client:
            await client.close()
        began = trio.current_time()
    assert trio.current_time() - began < 0.5


@on_both
async def test_a_port_can_be_listened_on_again_at_once(transport: str) -> None:
    async with serving(App(router), transport) as server, await connect(server) as client:
        assert await echoes(client)
    async with serving(App(router), transport, port=server.port) as again, await connect(again) as client:
        assert await echoes(client)


@on_both
async def test_an_open_app_may_be_served_twice_and_each_end_is_only_its_own(transport: str) -> None:
    ends: list[tuple[int, str]] = []

    async def hear(client: Client) -> None:
        ends.append(await client.end())

    async with open_app(App(router)) as app, serving(app, transport) as first, await connect(first) as stays:
        async with trio.open_nursery() as nursery, serving(app, transport) as second:
            leaves = await connect(second)
            assert await echoes(leaves)
            nursery.start_soon(hear, leaves)
        await leaves.stream.aclose()
        assert ends == [(1001, "going away")]
        assert app.is_open
        assert await echoes(stays)
        stays.cut()


async def test_serving_ends_the_app_that_it_opened() -> None:
    app = App(router)
    async with serving(app):
        assert app.is_open
        assert app.ready
    assert not app.is_open


async def test_an_address_that_is_not_ours_is_an_os_error() -> None:
    with pytest.raises(OSError):  # noqa: PT011 - the message is the system's
        await serve(App(router), "192.0.2.1", 1)


@on_both
@pytest.mark.parametrize(
    ("spoken", "offered", "chosen"),
    [(None, ["x", "y"], "x"), (None, [], None), (["y", "z"], ["x", "y"], "y"), (["z"], ["x"], None)],
)
async def test_a_subprotocol_is_chosen_as_the_app_says(
    transport: Any, spoken: list[str] | None, offered: list[str], chosen: str | None
) -> None:
    async with (
        serving(App(Router(), subprotocols=spoken), transport=transport) as server,
        trio_websocket.open_websocket_url(server.urls[0], subprotocols=offered) as client,
    ):
        assert client.subprotocol == chosen


def test_subprotocols_are_a_list() -> None:
    with pytest.raises(ConfigError, match="not the text"):
        App(Router(), subprotocols="chat")


@pytest.mark.parametrize("compression", [True, False])
async def test_messages_are_compressed_where_both_sides_want_it(compression: bool) -> None:
    text = "over and over " * 500
    async with serving(App(router), compression=compression) as server:

        def talk() -> tuple[list[str], str]:
            with websockets.sync.client.connect(server.urls[0]) as client:
                client.send(json.dumps({"type": "SAY", "payload": {"text": text}}))
                said: str = json.loads(client.recv(timeout=10))["payload"]["text"]
                return [extension.name for extension in client.protocol.extensions], said

        extensions, said = await trio.to_thread.run_sync(talk)
    assert said == text
    assert extensions == (["permessage-deflate"] if compression else [])


async def test_compression_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match="native"):
        await serve(App(router), "127.0.0.1", transport="trio_websocket", compression=True)
