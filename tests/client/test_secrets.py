"""A token, and a proxy's password, are never in a log, in an exception's text, or in a repr, whatever goes wrong."""

from __future__ import annotations

import logging
import math
import ssl
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote_plus

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, open_pair, settle
from trio_wskit import Limits, TokenAuth
from trio_wskit.client import Attach, open_client
from trio_wskit.client._auth import Credentials
from trio_wskit.errors import ConfigError, ConnectFailed, ConnectionClosed, RpcError

CANARY = "c4nary.v3ry-secret_t0ken"
Answer = Callable[[bytes], bytes]


def is_clean(*things: object) -> bool:
    """No text of these has the token, nor a good part of it."""
    return not any(piece in repr(thing) + str(thing) for thing in things for piece in (CANARY, CANARY[:10]))


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncGenerator[int]:
    """A server that answers the head of a request with bytes of its own, and hangs up."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (more := await stream.receive_some()):
            head += more
        await stream.send_all(answer(head))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def first_line(head: bytes) -> bytes:
    return head.partition(b"\r\n")[0]


def every_line(head: bytes) -> bytes:
    return head.replace(b"\r\n", b" ")


BAD_ANSWERS: dict[str, Answer] = {
    "echoes the request": lambda head: head,
    "echoes it as a status": lambda head: b"HTTP/1.1 400 " + every_line(head) + b"\r\n\r\n",
    "echoes it as a header": lambda head: b"HTTP/1.1 101 ok\r\n" + every_line(head) + b"\r\n\r\n",
    "echoes it as a subprotocol": lambda head: (
        b"HTTP/1.1 101 ok\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Protocol: "
        + every_line(head)
        + b"\r\n\r\n"
    ),
    "sends us elsewhere": lambda head: b"HTTP/1.1 302 go\r\nLocation: " + first_line(head).split()[1] + b"\r\n\r\n",
    "wants to know who we are": lambda head: b"HTTP/1.1 401 no\r\nWWW-Authenticate: " + every_line(head) + b"\r\n\r\n",
    "hangs up": lambda _: b"",
    "hangs up in the middle": lambda head: b"HTTP/1.1 101" + first_line(head),
}


@pytest.mark.parametrize("attach", ["query", "protocol", "header"])
@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_handshake_that_fails(attach: Attach, answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    auth = TokenAuth(CANARY, attach=attach)
    async with raw_server(answer) as port:
        with pytest.raises(ConnectFailed) as caught:
            async with open_client(f"ws://127.0.0.1:{port}/", auth=auth, reconnect=None):
                pytest.fail("not reached")
    assert is_clean(told(caught.value), caught.value, auth, caplog.text)


async def test_a_handshake_that_tls_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with raw_server(lambda head: head) as port:
        with pytest.raises(ConnectFailed) as caught:
            async with open_client(
                f"wss://localhost:{port}/{CANARY}x?t={CANARY}",
                auth=TokenAuth(CANARY),
                ssl_context=ssl.create_default_context(),
                reconnect=None,
                limits=Limits(handshake_timeout=2),
            ):
                pytest.fail("not reached")
    assert is_clean(told(caught.value).replace(f"{CANARY}x", ""), caplog.text.replace(f"{CANARY}x", ""))


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_proxy_that_refuses(answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with raw_server(answer) as port:
        with pytest.raises(ConnectFailed) as caught:
            async with open_client("ws://h.test/", proxy=f"http://{CANARY}:{CANARY}@127.0.0.1:{port}", reconnect=None):
                pytest.fail("not reached")
    assert is_clean(told(caught.value), caplog.text)


async def refuse(name: str, server: Server) -> None:
    server.send("RPC_ERROR", {"code": CANARY, "message": f"what is {CANARY}?"}, id=name)


async def answer_in_plain(name: str, server: Server) -> None:
    server.send("ERROR", {"code": "X", "message": f"what is {CANARY}?"}, id=name)


async def answer_wrongly(name: str, server: Server) -> None:
    server.send(CANARY, {CANARY: CANARY}, id=name)


async def answer_badly(name: str, server: Server) -> None:
    server.send("USER", {"name": [CANARY]}, id=name)


async def hang_up(_: str, server: Server) -> None:
    server.peer.close(1008, f"{'x' * 100} {CANARY}"[:115])


async def hang_up_for_good(_: str, server: Server) -> None:
    server.peer.close(4401, f"?access_token={quote_plus(CANARY)}")


BAD_SERVERS: list[Callable[[str, Server], Awaitable[None]]] = [
    refuse,
    answer_in_plain,
    answer_wrongly,
    answer_badly,
    hang_up,
    hang_up_for_good,
]


@pytest.mark.parametrize("act", BAD_SERVERS)
async def test_a_server_that_repeats_the_token_to_who_asked(
    act: Callable[[str, Server], Awaitable[None]], caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    async with open_pair(auth=TokenAuth(CANARY), logged=[]) as (client, server):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises((RpcError, Exception)) as caught:
                    await client.request(GetUser("1"))
                errors.append(caught.value)

            nursery.start_soon(ask)
            await act(await server.asked(), server)
        await settle()
        with client.states() as changes:
            change = await changes.receive()
        assert is_clean(repr(client), client.stats, change, server.handshakes)
        if client.state == "closed":
            for attempt in (client.wait_open, partial(client.send, Hello("a"))):
                with pytest.raises(ConnectionClosed) as closed:
                    await attempt()
                errors.append(closed.value)
    assert errors
    assert is_clean(caplog.text, *map(told, errors), *errors, *map(vars, errors))


async def test_a_server_that_repeats_the_token_to_nobody(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[Exception] = []
    async with open_pair(auth=TokenAuth(CANARY), logged=[]) as (client, server), client.messages(News):
        for _ in range(2):
            server.send("ERROR", {"code": CANARY, "message": CANARY})
            server.send("NEWS", {"text": [CANARY]})
            for text in (CANARY, f'{{"type": "{CANARY}"', f'{{"type": 5, "a": "{CANARY}"}}', f'["{CANARY}"]'):
                server.peer.send_nowait(text)
            await settle()
            client.on_error(lambda error, _: errors.append(error))  # the first time there is only the log
    assert len(errors) == 6
    assert is_clean(caplog.text, *map(told, errors))


@pytest.mark.parametrize("failure", [OSError(CANARY), ConfigError(CANARY), ConnectFailed(CANARY), KeyError(CANARY)])
async def test_a_connector_that_fails(
    failure: Exception, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server()
    server.failures.append(failure)
    with pytest.raises(ConnectFailed) as caught:
        async with open_pair(server, auth=TokenAuth(CANARY), reconnect=None, logged=[]):
            pytest.fail("not reached")
    assert is_clean(told(caught.value), caplog.text)


@pytest.mark.parametrize("found", [OSError(CANARY), math.inf, CANARY.encode(), [CANARY]])
async def test_a_token_that_does_not_come(
    found: Any, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)

    async def token() -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(ConnectFailed) as caught:
        async with open_pair(auth=TokenAuth(token), reconnect=None, logged=[]):
            pytest.fail("not reached")
    assert is_clean(told(caught.value), caplog.text)


@pytest.mark.parametrize(
    "options",
    [
        {"subprotocols": [f"{CANARY} "]},
        {"subprotocols": CANARY},
        {"headers": {"Authorization": f"{CANARY}\n"}},
        {"headers": {"Cookie": f"{CANARY}ü"}},
        {"proxy": f"socks5://{CANARY}@h:1"},
        {"proxy": f"http://{CANARY}@h:99999"},
    ],
)
async def test_an_option_that_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_client("ws://h.test/", **options):
            pytest.fail("not reached")
    if options.get("subprotocols") != CANARY.split(".", maxsplit=1)[0]:
        assert is_clean(told(caught.value))


async def test_a_request_that_waits_for_ever_shows_nothing(autojump_clock: MockClock) -> None:
    async with open_pair(auth=TokenAuth(CANARY), limits=Limits(call_timeout=1, ping_interval=math.inf)) as (client, _):
        with pytest.raises(RpcError) as caught:
            await client.request(GetUser("1"))
        assert is_clean(told(caught.value))


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("", ""),
        (CANARY, "•••"),
        (f"a{CANARY}b{CANARY}", "a•••b•••"),
        (f"cut off: {CANARY[:-1]}", "cut off: •••"),
        (f"cut off: {CANARY[:8]}", "cut off: •••"),
        (f"{CANARY[:8]}{CANARY}", "••••••"),
        (CANARY[:7], CANARY[:7]),
        (CANARY[1:], CANARY[1:]),
    ],
)
def test_a_text_is_scrubbed(text: str, scrubbed: str) -> None:
    assert Credentials(token=CANARY).scrub(text) == scrubbed
    assert Credentials(token=None).scrub(text) == text
    assert Credentials(token="").scrub(text) == text


def test_a_token_is_scrubbed_as_a_url_has_it() -> None:
    credentials = Credentials(token="a b&ü/longer")
    assert credentials.scrub("a+b%26%C3%BC%2Flonger a%20b%26%C3%BC%2Flonger a b&ü/longer") == "••• ••• •••"
    assert is_clean(credentials)
