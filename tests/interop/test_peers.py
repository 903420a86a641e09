"""Our server and WebSocket implementations that nobody here wrote: `ws` from npm, and the `websockets` package."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as sync_connect
from websockets.trio.client import connect as trio_connect

from tests.needs import node_path, require_peer
from tests.serving import TRANSPORTS, serving
from tests.transports.peers import client_tls, server_tls
from trio_wskit import App, Context, Limits, Request, Router, Rpc, message

pytestmark = pytest.mark.interop
on_both = pytest.mark.parametrize("transport", TRANSPORTS)


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("SUM")
class Sum:
    total: int


@message("ADD")
class Add(Rpc[Sum]):
    a: int
    b: int


@message("JOIN")
class Join:
    room: str


@message("SHOUT")
class Shout:
    room: str
    text: str


@message("LEAVE")
class Leave:
    code: int


router = Router()


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    await ctx.send(Said(ctx.payload.text))


@router.rpc(Add)
async def add(ctx: Context[Add]) -> Sum:
    return Sum(ctx.payload.a + ctx.payload.b)


@router.on(Join)
async def join(ctx: Context[Join]) -> None:
    await ctx.topics.subscribe(ctx.payload.room)
    await ctx.send(Said("joined"))


@router.on(Shout)
async def shout(ctx: Context[Shout]) -> None:
    await ctx.publish(ctx.payload.room, Said(ctx.payload.text))


@router.on(Leave)
async def leave(ctx: Context[Leave]) -> None:
    await ctx.close(ctx.payload.code, "as asked")


def app() -> App:
    return App(router, limits=Limits(ping_interval=0.5))


def shown(received: dict[str, Any]) -> tuple[Any, ...]:
    """What matters of a message, after a look at the rest."""
    assert isinstance(received["meta"]["timestamp"], int)
    return received["type"], received["payload"], received["meta"].get("correlationId")


@on_both
@pytest.mark.parametrize("secure", [False, True])
async def test_ws_from_npm_is_understood_and_understands(transport: str, secure: bool) -> None:
    folder = require_peer("ws")
    tls = server_tls() if secure else None
    async with serving(app(), transport, ssl_context=tls) as server:
        url = server.urls[0].replace("127.0.0.1", "localhost")
        certificate = folder.parent / "data" / "tls" / "cert.pem"
        with trio.fail_after(40):
            done = await trio.run_process(
                [str(node_path()), "ws_talk.mjs", url],
                cwd=folder,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={"NODE_EXTRA_CA_CERTS": str(certificate)},
            )
    assert done.returncode == 0, done.stderr.decode()
    saw = json.loads(done.stdout)
    assert uuid.UUID(saw["clientId"]).version == 7
    assert (saw["extensions"], saw["declined"]) == ("", "")
    assert shown(saw["text"]) == ("SAID", {"text": "grüß 🎉"}, None)
    assert shown(saw["binary"]) == ("SAID", {"text": "binary"}, None)
    assert not saw["binary"]["isBinary"]
    assert saw["large"] == 300_000
    assert shown(saw["pieces"]) == ("SAID", {"text": "pieces"}, None)
    assert shown(saw["reply"]) == ("SUM", {"total": 5}, "c1")
    assert (saw["error"], saw["malformed"]) == ("UNIMPLEMENTED", "INVALID_ARGUMENT")
    assert saw["inOrder"]
    assert (saw["pong"], shown(saw["afterPing"])[1]) == ("are you there?", {"text": "pinged"})
    assert [shown(one) for one in saw["published"]] == [("SAID", {"text": "hello"}, None)] * 2
    assert saw["closed"] == [4001, "bye"]
    assert saw["sentAway"] == [4002, "as asked"]
    assert saw["broken"] == 1002


def talk(url: str) -> None:
    """What the threaded client of `websockets` does."""

    def send(kind: str, payload: object, **meta: object) -> None:
        client.send(json.dumps({"type": kind, "meta": meta, "payload": payload}))

    def receive(one: ClientConnection) -> tuple[Any, ...]:
        return shown(json.loads(one.recv(timeout=20)))

    with sync_connect(url, max_size=None) as client, sync_connect(url, max_size=None) as other:
        assert "Sec-WebSocket-Extensions" not in client.response.headers  # type: ignore[union-attr]
        send("SAY", {"text": "grüß 🎉"})
        assert receive(client) == ("SAID", {"text": "grüß 🎉"}, None)
        client.send(json.dumps({"type": "SAY", "payload": {"text": "binary"}}).encode())
        assert receive(client) == ("SAID", {"text": "binary"}, None)
        client.send(['{"type":"SAY",', '"payload":{"text":', '"pieces"}}'])
        assert receive(client) == ("SAID", {"text": "pieces"}, None)
        send("ADD", {"a": 2, "b": 3}, correlationId="c1")
        assert receive(client) == ("SUM", {"total": 5}, "c1")
        assert client.ping().wait(20)
        for one in (client, other):
            one.send('{"type":"JOIN","payload":{"room":"lobby"}}')
            assert receive(one) == ("SAID", {"text": "joined"}, None)
        send("SHOUT", {"room": "lobby", "text": "x" * 200_000})
        for one in (client, other):
            assert receive(one) == ("SAID", {"text": "x" * 200_000}, None)
        other.close(4001, "bye")
        assert other.close_code == 4001
        send("LEAVE", {"code": 4002})
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=20)
        assert (client.close_code, client.close_reason) == (4002, "as asked")


@on_both
async def test_the_websockets_package_is_understood_and_understands(transport: str) -> None:
    async with serving(app(), transport) as server:
        with trio.fail_after(40):
            await trio.to_thread.run_sync(talk, server.urls[0])


@on_both
async def test_the_websockets_package_on_trio_is_as_well(transport: str) -> None:
    async with (
        serving(app(), transport, ssl_context=server_tls()) as server,
        trio_connect(server.urls[0], ssl=client_tls(), server_hostname="localhost") as client,
    ):
        with trio.fail_after(20):
            for number in range(500):
                await client.send(json.dumps({"type": "SAY", "payload": {"text": str(number)}}))
            for number in range(500):
                assert shown(json.loads(await client.recv())) == ("SAID", {"text": str(number)}, None)
            assert client.latency is not None
            await client.send('{"type":"LEAVE","payload":{"code":4002}}')
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 4002


@on_both
async def test_the_websockets_package_shows_why_it_was_refused(transport: str) -> None:
    async def authenticate(_: Request) -> object:
        return None

    async with serving(App(router, authenticate=authenticate), transport) as server:

        def refused() -> tuple[int, bytes]:
            with pytest.raises(InvalidStatus) as caught, sync_connect(server.urls[0]):
                pass
            response = caught.value.response
            return response.status_code, bytes(response.body or b"")

        assert await trio.to_thread.run_sync(refused) == (401, b"Unauthorized\n")
