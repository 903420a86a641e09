"""Servers that do what no server should, at every moment: the client tells who waits, and comes back."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, User, open_pair, settle
from tests.transports.peers import drop
from trio_wskit import Limits, QueueOptions, Reconnect, open_client
from trio_wskit._core.frames import binary_frame, close_frame, ping_frame, text_frame
from trio_wskit._core.upgrade import accept_upgrade
from trio_wskit.client import Client, State
from trio_wskit.errors import ConnectionClosed, RpcError

QUICK = Reconnect(initial_delay=0.01, max_delay=0.01)
NO_PINGS = Limits(ping_interval=math.inf)


@final
class Socket:
    """A server's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def read_request(self) -> bytes:
        """Read a handshake, and give the answer that is due."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.stream.receive_some()
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]]
        return accept_upgrade([(name, value) for name, value in fields]).to_bytes()

    async def open(self) -> None:
        await self.stream.send_all(await self.read_request())

    async def say(self, frame: bytes) -> None:
        await self.stream.send_all(frame)

    async def hear_anything(self) -> None:
        await self.stream.receive_some()

    async def wait_for_the_end(self) -> None:
        """Read until the client closes, or hangs up."""
        with suppress(trio.BrokenResourceError):
            while (data := await self.stream.receive_some()) and data[0] != 0x88:
                pass


Act = Callable[[Socket], Awaitable[None]]


async def behave(socket: Socket) -> None:
    """What the server does on every connection after the first: answer whatever is asked."""
    await socket.open()
    await socket.wait_for_the_end()


@asynccontextmanager
async def server(act: Act) -> AsyncGenerator[str]:
    """Misbehave on the first connection, and not on others."""
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await (act if connections == 1 else behave)(Socket(stream))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


# At every moment of a handshake


async def hangs_up_at_once(_: Socket) -> None:
    pass


async def resets_at_once(socket: Socket) -> None:
    drop(socket.stream)


async def hangs_up_after_the_request(socket: Socket) -> None:
    await socket.read_request()


async def hangs_up_in_its_answer(socket: Socket) -> None:
    answer = await socket.read_request()
    await socket.say(answer[:-5])


async def resets_in_its_answer(socket: Socket) -> None:
    answer = await socket.read_request()
    await socket.say(answer[:-5])
    drop(socket.stream)


async def says_nothing(socket: Socket) -> None:
    await socket.read_request()
    await socket.wait_for_the_end()


async def says_it_slowly_for_ever(socket: Socket) -> None:
    await socket.read_request()
    await socket.say(b"HTTP/1.1 101 ok\r\n")
    while True:
        await socket.say(b"A: b\r\n")
        await trio.sleep(0.05)


async def says_too_much(socket: Socket) -> None:
    await socket.read_request()
    await socket.say(b"HTTP/1.1 101 ok\r\n" + b"A: b\r\n" * 50_000)
    await socket.wait_for_the_end()


async def answers_another_key(socket: Socket) -> None:
    answer = await socket.read_request()
    await socket.say(answer.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"))


async def says_no_for_now(socket: Socket) -> None:
    await socket.read_request()
    await socket.say(b"HTTP/1.1 503 later\r\nContent-Length: 1000000\r\n\r\n")


BAD_HANDSHAKES = [
    hangs_up_at_once,
    resets_at_once,
    hangs_up_after_the_request,
    hangs_up_in_its_answer,
    resets_in_its_answer,
    says_nothing,
    says_it_slowly_for_ever,
    says_too_much,
    answers_another_key,
    says_no_for_now,
]


@pytest.mark.parametrize("act", BAD_HANDSHAKES)
async def test_a_handshake_that_goes_wrong_is_tried_again(act: Act) -> None:
    limits = Limits(handshake_timeout=0.3, ping_interval=math.inf)
    async with server(act) as url, open_client(url, reconnect=QUICK, limits=limits, wait=False) as client:
        await client.send(Hello("queued"))
        with trio.fail_after(10):
            await client.wait_open()
        assert (client.stats.attempts, client.stats.connects, client.stats.queued) == (2, 1, 0)


# At every moment of a connection


async def closes_with_its_answer(socket: Socket) -> None:
    await socket.say(await socket.read_request() + close_frame(1001, "at once"))
    await socket.wait_for_the_end()


async def closes_when_asked(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    await socket.say(close_frame(1011, "oops"))
    await socket.wait_for_the_end()


async def resets_when_asked(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    drop(socket.stream)


async def hangs_up_when_asked(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()


async def closes_and_does_not_hang_up(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    await socket.say(close_frame(1001, ""))
    await trio.sleep_forever()


async def talks_on_after_its_close(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    await socket.say(close_frame(1001, "") + text_frame(b'{"type":"NEWS","payload":{"text":"after"}}') * 100)
    await socket.wait_for_the_end()


def says(frame: bytes) -> Act:
    async def act(socket: Socket) -> None:
        await socket.open()
        await socket.hear_anything()
        await socket.say(frame)
        await socket.wait_for_the_end()

    return act


BAD_FRAMES = {
    "half of a frame": text_frame(b'{"type":"NEWS"}')[:7] + b"\xff" * 3,
    "a masked frame": b"\x81\x82\x00\x00\x00\x00{}",
    "a reserved bit": b"\xc1\x02{}",
    "a reserved opcode": b"\x83\x00",
    "text that is no UTF-8": b"\x81\x02\xff\xff",
    "the rest of nothing": b"\x80\x00",
    "a control frame in parts": b"\x09\x00",
    "a control frame that is too long": b"\x89\x7e\x00\x80" + b"x" * 128,
    "a frame above every limit": b"\x81\x7f\x00\x00\x7f\xff\xff\xff\xff\xff",
    "a length with its highest bit": b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    "a close code that may not be sent": b"\x88\x02\x03\xee",
    "a close of one byte": b"\x88\x01\x03",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}

BAD_LINKS: dict[str, Act] = {
    "closes with its answer": closes_with_its_answer,
    "closes when asked": closes_when_asked,
    "resets when asked": resets_when_asked,
    "hangs up when asked": hangs_up_when_asked,
    "closes and does not hang up": closes_and_does_not_hang_up,
    "talks on after its close": talks_on_after_its_close,
    **{name: says(frame) for name, frame in BAD_FRAMES.items() if name != "half of a frame"},
}


@pytest.mark.parametrize("act", BAD_LINKS.values(), ids=BAD_LINKS)
async def test_a_connection_that_goes_wrong_is_told_to_who_asked_and_comes_back(act: Act) -> None:
    limits = Limits(ping_interval=math.inf, close_timeout=0.3)
    async with server(act) as url, open_client(url, reconnect=QUICK, limits=limits) as client:
        with client.states() as changes, trio.fail_after(10):
            with suppress(ConnectionClosed):
                with trio.move_on_after(0.5):
                    await client.request(GetUser("1"))
            while client.stats.connects < 2 or client.state != "open":
                await changes.receive()
        assert (client.stats.pending, client.stats.connects) == (0, 2)


async def test_half_a_frame_and_then_silence_is_found_out_by_the_heartbeat() -> None:
    limits = Limits(ping_interval=0.1, ping_timeout=0.1)
    act = says(text_frame(b'{"type":"NEWS"}')[:7])
    async with server(act) as url, open_client(url, reconnect=QUICK, limits=limits) as client:
        with trio.fail_after(10), pytest.raises(ConnectionClosed, match="no pong in time"):
            await client.request(GetUser("1"))


@pytest.mark.parametrize("frame", [binary_frame(b"\x00\xff" * 10), ping_frame(b"x") * 500, b"\x8a\x00" * 500])
async def test_what_is_only_useless_changes_nothing(frame: bytes) -> None:
    async def act(socket: Socket) -> None:
        await socket.open()
        await socket.hear_anything()
        await socket.say(frame + text_frame(b'{"type":"NEWS","payload":{"text":"a"}}'))
        await socket.wait_for_the_end()

    async with server(act) as url, open_client(url, limits=NO_PINGS) as client, client.messages(News) as stream:
        client.on_error(lambda _, __: None)
        await client.send(Hello("a"))
        with trio.fail_after(10):
            assert await stream.receive() == News("a")
        assert (client.state, client.stats.connects) == ("open", 1)


# While we close


async def never_answers_a_close(socket: Socket) -> None:
    await socket.open()
    await trio.sleep_forever()


async def resets_when_we_close(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    drop(socket.stream)


async def closes_when_we_do(socket: Socket) -> None:
    await socket.open()
    await socket.say(close_frame(4000, "crossing"))
    await socket.wait_for_the_end()


async def talks_while_we_close(socket: Socket) -> None:
    await socket.open()
    await socket.hear_anything()
    while True:
        await socket.say(text_frame(b'{"type":"NEWS","payload":{"text":"more"}}') * 10)
        await trio.sleep(0.01)


@pytest.mark.parametrize("act", [never_answers_a_close, resets_when_we_close, closes_when_we_do, talks_while_we_close])
async def test_our_close_ends_whatever_the_server_does(act: Act) -> None:
    limits = Limits(ping_interval=math.inf, close_timeout=0.3)
    async with server(act) as url:
        with trio.fail_after(5):
            async with open_client(url, limits=limits) as client:
                await client.close(4001, "enough")
                assert client.state == "closed"


# In every state, in virtual time


async def be_connecting(server: Server, _: Client) -> None:
    server.failures.append(5.0)


@pytest.mark.parametrize("state", ["connecting", "open", "reconnecting", "closing", "closed"])
@pytest.mark.parametrize("how", ["cut", 1000, 1001, 1011, 1012, 4000, 4401])
async def test_a_server_that_closes_in_every_state(state: State, how: str | int, autojump_clock: MockClock) -> None:
    def end(server: Server) -> None:
        with suppress(ConnectionClosed):
            if isinstance(how, int):
                server.peer.close(how, "why not")
            else:
                server.peer.cut()

    server = Server()
    outcomes: list[object] = []
    async with open_pair(server, logged=[], queue=QueueOptions(max_messages=5)) as (client, _):

        async def ask() -> None:
            try:
                outcomes.append(await client.request(GetUser("1")))
            except (ConnectionClosed, RpcError) as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await settle()
            if state in ("connecting", "reconnecting"):
                server.failures += [5.0, 5.0]
                server.peer.cut()
                await settle()
                await trio.sleep(1 if state == "connecting" else 0.01)
                assert client.state == state
                nursery.start_soon(ask)
                await settle()
            if state == "closing":
                server.peer.stall()
                nursery.start_soon(client.close)
                await settle()
                assert client.state == "closing"
                server.peer.resume()
            if state == "closed":
                await client.close()
            end(server)
            await trio.sleep(100)
        assert client.state in ("open", "closed")
        if client.state == "open":
            nobody_waits = client.stats.pending == 0
            assert nobody_waits
    assert len(outcomes) == 2 if state in ("connecting", "reconnecting") else 1
    assert not any(isinstance(one, User) for one in outcomes)


# Answers that are none


async def test_endless_progress_to_a_request_that_wants_none_ends_at_its_time_limit(autojump_clock: MockClock) -> None:
    async with (
        open_pair(limits=Limits(call_timeout=3, ping_interval=math.inf)) as (client, server),
        trio.open_nursery() as nursery,
    ):

        async def talk() -> None:
            name = await server.asked()
            while True:
                server.send("$ws:rpc-progress", {"more": 1}, id=name)
                await trio.sleep(0.01)

        nursery.start_soon(talk)
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await client.request(GetUser("1"))
        assert trio.current_time() == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "USER", "payload": {"name": "n"}, "data": 1, "more": None},
        {"type": "USER", "payload": {"name": "n"}, "meta": {"correlationId": "1", "more": 1, "timestamp": "soon"}},
        {"type": "USER", "payload": {"name": "n"}, "meta": {"correlationId": "1", "clientId": 5, "receivedAt": "x"}},
    ],
)
async def test_an_answer_with_more_than_was_asked_for_is_one(answer: Any, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def reply() -> None:
            name = await server.asked()
            server.peer.send_nowait(json.dumps({"meta": {"correlationId": name}, **answer}))

        nursery.start_soon(reply)
        assert await client.request(GetUser("1"), correlation_id="1") == User("n")


@pytest.mark.parametrize("meta", [None, 5, [], "x", {"correlationId": 5}, {"correlationId": None}])
async def test_an_answer_that_names_no_request_is_nobodys(meta: Any, autojump_clock: MockClock) -> None:
    async with open_pair(limits=Limits(call_timeout=1, ping_interval=math.inf)) as (client, server):
        client.on_error(lambda _, __: None)
        async with trio.open_nursery() as nursery:

            async def reply() -> None:
                await server.asked()
                server.peer.send_nowait(json.dumps({"type": "USER", "meta": meta, "payload": {"name": "n"}}))

            nursery.start_soon(reply)
            with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
                await client.request(GetUser("1"))
        assert client.stats.unhandled + client.stats.refused == 1
