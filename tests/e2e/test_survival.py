"""What the server must survive: handlers that fail or never end, clients that do not read, or send too fast."""

from __future__ import annotations

import gc
import json
import logging
import statistics
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
import trio
import trio.testing
import trio_websocket

from tests.serving import TRANSPORTS, Client, connect, hung_up, serving, until
from tests.transports.peers import ProtocolPeer, client_tls, server_tls, socket_pair, stream_of
from trio_wskit import App, ConnectionClosed, Context, Limits, Router, Rpc, Session, message
from trio_wskit._core.frames import text_frame

pytestmark = pytest.mark.e2e
on_both = pytest.mark.parametrize("transport", TRANSPORTS)

MORE_THAN_FITS = 8_000_000  # characters: more than the kernel takes from one who writes to one who does not read

MANY = 4_000  # messages of five kilobytes: more than the kernel holds


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("JOIN")
class Join:
    pass


@message("WORK")
class Work(Rpc[Said]):
    text: str = ""


def echo_router() -> Router:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said(ctx.payload.text))

    return router


async def echo(client: Client, text: str = "hello") -> float:
    """Say something and hear it; the seconds that took."""
    began = trio.current_time()
    with trio.fail_after(20):
        await client.send("SAY", {"text": text})
        while True:
            received = await client.receive()
            if received["type"] == "SAID" and received["payload"] == {"text": text}:
                return trio.current_time() - began


# --- Handlers ---


@on_both
async def test_a_handler_that_raises_harms_nobody(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    router = echo_router()

    @router.on(Join)
    async def fails(ctx: Context[Join]) -> None:
        raise ValueError("the password is 1234")

    @router.rpc(Work)
    async def fails_too(ctx: Context[Work]) -> Said:
        raise KeyError("1234")

    async with serving(App(router), transport) as server, await connect(server) as one, await connect(server) as two:
        await one.send("JOIN")
        error = await one.receive()
        assert (error["type"], error["payload"]["code"]) == ("ERROR", "INTERNAL")
        await one.send("WORK", {}, call="c1")
        error = await one.receive()
        assert (error["type"], error["payload"]["code"]) == ("RPC_ERROR", "INTERNAL")
        assert "1234" not in json.dumps(error)
        await echo(one)
        await echo(two)
    assert len(caplog.records) == 2
    assert all(one.client_id in record.getMessage() for record in caplog.records)


async def _close(client: Client) -> None:
    await client.close()


async def _hang_up(client: Client) -> None:
    await client.stream.aclose()


async def _reset(client: Client) -> None:
    client.cut()


@on_both
@pytest.mark.parametrize("leave", [_close, _hang_up, _reset])
@pytest.mark.parametrize("waits_in", ["an event", "a call"])
async def test_a_handler_that_never_returns_ends_when_its_client_leaves(
    transport: str, leave: Callable[[Client], Awaitable[None]], waits_in: str
) -> None:
    router = Router()
    begun = trio.Event()
    ended = trio.Event()
    left: list[Session] = []

    async def never() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    @router.on(Join)
    async def event(ctx: Context[Join]) -> None:
        await never()

    @router.rpc(Work)
    async def call(ctx: Context[Work]) -> Said:
        await never()
        return Said("never")

    @router.on_close
    async def remember(session: Session) -> None:
        assert ended.is_set()
        left.append(session)

    app = App(router)
    async with serving(app, transport) as server:
        client = await connect(server)
        await client.send(
            "JOIN" if waits_in == "an event" else "WORK", None if waits_in == "an event" else {}, call="1"
        )
        await begun.wait()
        await leave(client)
        with trio.fail_after(2):
            await ended.wait()
        await until(lambda: left and not app.sessions)
        client.cut()


# --- Torn frames ---


async def test_plain_trio_websocket_tears_a_frame_where_a_send_is_cancelled() -> None:
    """Why handlers never write here. When this fails, the library has changed."""
    ours, theirs = map(stream_of, socket_pair())
    peer = ProtocolPeer(theirs, shaken=False)
    async with ours, theirs, trio.open_nursery() as nursery:
        nursery.start_soon(peer.shake_hands)
        request = await trio_websocket.wrap_server_stream(nursery, ours)
        websocket = await request.accept()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.1) as scope:
            await websocket.send_message("x" * MORE_THAN_FITS)
        assert scope.cancelled_caught

        async def send_another() -> None:
            await websocket.send_message("y" * 10)  # returns as if all were well
            await ours.send_eof()

        nursery.start_soon(send_another)
        with pytest.raises(ConnectionClosed) as caught:
            await peer.receive()  # for it was taken for a part of the first
        assert caught.value.code == 1006
        nursery.cancel_scope.cancel()


@on_both
async def test_a_handler_that_is_cancelled_in_the_middle_of_a_send_tears_nothing(transport: str) -> None:
    router = echo_router()
    sent: list[str] = []

    @router.rpc(Work)
    async def work(ctx: Context[Work]) -> Said:
        for letter in "abc":
            await ctx.send(Said(letter * MORE_THAN_FITS))  # the second waits, for the first has not left
            sent.append(letter)
        return Said("never")

    async with serving(App(router), transport) as server, await connect(server) as client:
        await client.send("WORK", {}, call="c1")
        await until(lambda: sent)
        await trio.sleep(0.05)
        await client.send("$ws:abort", call="c1")
        await trio.sleep(0.05)
        first = await client.receive()
        assert first["payload"] == {"text": "a" * MORE_THAN_FITS}
        answer = await client.receive()
        assert (answer["type"], answer["payload"]["code"]) == ("RPC_ERROR", "CANCELLED")
        assert sent == ["a"]
        await echo(client)


@on_both
async def test_a_frame_that_cannot_be_finished_is_the_last_thing_that_the_peer_sees(transport: str) -> None:
    """The server ends while it writes to a peer that does not read."""
    router = echo_router()

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        for letter in "abc":
            await ctx.send(Said(letter * MORE_THAN_FITS))

    app = App(router)
    async with serving(app, transport) as server:
        client = await connect(server)
        await client.send("JOIN")
        await until(lambda: app.sessions and next(iter(app.sessions)).outbox.congested)
    texts: list[str] = []

    async def read() -> None:
        while True:
            texts.append((await client.receive())["payload"]["text"])

    with pytest.raises(ConnectionClosed) as caught:
        await read()
    assert texts in ([], ["a" * MORE_THAN_FITS])
    assert caught.value.code == 1006
    client.cut()


@on_both
async def test_a_peer_that_does_not_read_in_time_is_dropped(transport: str) -> None:
    router = echo_router()
    ended: list[int | None] = []

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        while True:
            await ctx.send(Said("x" * 100_000))

    @router.on_close
    async def remember(session: Session) -> None:
        ended.append(session.close_code)

    app = App(router, limits=Limits(write_timeout=0.3))
    async with serving(app, transport) as server, await connect(server) as another:
        async with await connect(server) as client:
            await client.send("JOIN")
            await until(lambda: ended)
            assert ended == [1006]
            received = await hung_up(client.stream)
            frame = text_frame(b"")[:1]
            assert received.count(frame + b"\x7f") <= 1 + len(received) // 100_000  # whole frames, then the end
        await echo(another)
        assert len(app.sessions) == 1


# --- Clients that do not read ---


@on_both
async def test_a_client_that_stops_reading_costs_the_others_nothing_and_is_disconnected(transport: str) -> None:
    router = echo_router()
    ended: list[tuple[int | None, str]] = []
    over: list[object] = []
    most = 0

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        await ctx.topics.subscribe("news")
        await ctx.send(Said("joined"))

    @router.on_close
    async def remember(session: Session) -> None:
        ended.append((session.close_code, session.close_reason))

    router.on_limit_exceeded(lambda info: over.append(info.type))
    app = App(router, limits=Limits(outbox_bytes=1_000_000))

    async def publish(until_what: Callable[[], bool]) -> None:
        nonlocal most
        while not until_what():
            await app.publish("news", Said("n" * 10_000))
            most = max(most, sum(session.outbox.queued_bytes for session in app.sessions))
            await trio.sleep(0.001)

    async with serving(app, transport) as server, await connect(server) as quick, trio.open_nursery() as nursery:
        alone = [await echo(quick, f"{n}") for n in range(100)]
        slow = await connect(server)
        await slow.send("JOIN")
        await slow.receive()
        beside: list[float] = []

        async def measure() -> None:
            while not ended:
                beside.append(await echo(quick, f"{len(beside)}"))

        nursery.start_soon(measure)
        await publish(lambda: bool(ended))
        assert ended == [(1013, "too slow")]
        assert over == ["backpressure"]
        # A task that publishes shares the processor; a server that waits for the slow one would take for ever.
        assert statistics.median(beside) < 10 * statistics.median(alone) + 0.02
        assert most <= 1_000_000 + 20_000
        assert (await slow.end())[0] == 1006  # its buffers are full: a close frame cannot reach it any more
        assert (await app.publish("news", Said("x"))).matched_local == 0
        slow.cut()
        await echo(quick)


@on_both
@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_is_only_slow_reads_why_it_is_disconnected(transport: str, tls: bool) -> None:
    router = Router()
    over = trio.Event()
    router.on_limit_exceeded(lambda _: over.set())

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        await ctx.topics.subscribe("news")
        await ctx.send(Said("joined"))

    app = App(router, limits=Limits(outbox_bytes=1_000_000))
    async with serving(app, transport, ssl_context=server_tls() if tls else None) as server:
        slow = await connect(server, tls=client_tls() if tls else None)
        await slow.send("JOIN")
        await slow.receive()
        while not over.is_set():
            await app.publish("news", Said("n" * 10_000))
            await trio.lowlevel.checkpoint()
        assert await slow.end() == (1013, "too slow")  # it begins to read now, and what was begun comes whole
        slow.cut()


@on_both
@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_closes_while_it_is_written_to_gets_its_answer(transport: str, tls: bool) -> None:
    router = Router()
    ended: list[int | None] = []

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        while True:
            await ctx.send(Said("x" * 1000))

    @router.on_close
    async def remember(session: Session) -> None:
        ended.append(session.close_code)

    async with serving(App(router), transport, ssl_context=server_tls() if tls else None) as server:
        for number in range(20):
            client = await connect(server, tls=client_tls() if tls else None)
            await client.send("JOIN")
            for _ in range(number):
                await client.receive()
            with trio.fail_after(10):
                await client.close(4001, "enough")
            assert client.peer.close_code == 4001, f"the answer was lost in round {number}"
            client.cut()
        await until(lambda: len(ended) == 20)
        assert ended == [4001] * 20


@on_both
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_a_client_that_stops_reading_may_miss_messages_instead(
    transport: str, policy: Literal["drop_oldest", "drop_newest"]
) -> None:
    router = echo_router()

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        await ctx.topics.subscribe("news")
        await ctx.send(Said("joined"))

    app = App(router, limits=Limits(outbox_bytes=300_000), overflow=policy)
    async with serving(app, transport) as server, await connect(server) as client:
        await client.send("JOIN")
        await client.receive()
        [session] = app.sessions
        count = 0
        while not session.outbox.dropped or count < 1000:
            await app.publish("news", Said(f"{count} " + "n" * 20_000))
            count += 1
            assert session.outbox.queued_bytes < 400_000
            await trio.lowlevel.checkpoint()
        await session.send(Said("end"))
        got: list[int] = []
        while (text := (await client.receive())["payload"]["text"]) != "end":
            got.append(int(text.split()[0]))
        assert got == sorted(got)
        assert len(got) + session.outbox.dropped == count
        assert (count - 1 if policy == "drop_oldest" else 0) in got
        await echo(client)


@on_both
async def test_many_who_stop_reading_are_all_bounded(transport: str) -> None:
    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("news")

    app = App(router, limits=Limits(outbox_bytes=100_000, outbox_messages=50))
    async with serving(app, transport) as server:
        clients = [await connect(server) for _ in range(20)]
        await until(lambda: len(app.sessions) == 20)
        with trio.fail_after(30):
            while app.sessions:
                await app.publish("news", Said("n" * 30_000))
                assert all(session.outbox.queued_bytes <= 200_000 for session in app.sessions)
                await trio.lowlevel.checkpoint()
        for client in clients:
            client.cut()


# --- Clients that send too fast ---


@on_both
async def test_a_client_that_sends_faster_than_handlers_work_is_held_back_and_loses_nothing(transport: str) -> None:
    router = Router()
    served: list[int] = []
    gate = trio.Event()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await gate.wait()
        served.append(int(ctx.payload.text[:6]))

    app = App(router)
    count = 0
    async with serving(app, transport) as server, await connect(server) as client, trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal count
            while count < MANY:
                await client.send("SAY", {"text": f"{count:06}" + "x" * 5000})
                count += 1

        nursery.start_soon(flood)
        before = -1
        while before != count:  # until the kernel takes no more
            before = count
            await trio.sleep(0.1)
        assert count < MANY
        waiting = [one for one in gc.get_objects() if type(one).__name__ == "Envelope"]
        assert len(waiting) < 2_000
        del waiting
        gate.set()
        await until(lambda: len(served) == MANY, seconds=40)
    assert served == list(range(MANY))


@on_both
async def test_aborts_and_heartbeats_pass_those_that_wait(transport: str) -> None:
    router = Router()
    cancelled = trio.Event()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep_forever()

    @router.rpc(Work)
    async def work(ctx: Context[Work]) -> Said:
        try:
            await trio.Event().wait()
        finally:
            cancelled.set()
        return Said("never")

    async with serving(App(router), transport) as server, await connect(server) as client:
        await client.send("WORK", {}, call="job")
        for n in range(100):
            await client.send("SAY", {"text": str(n)})
        with trio.fail_after(5):
            await client.send("__heartbeat")
            assert (await client.receive())["type"] == "__heartbeat_ack"
            await client.send("$ws:abort", call="job")
            assert (await client.receive())["payload"]["code"] == "CANCELLED"
            await cancelled.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of a link that nobody reads is not told")
@on_both
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("leave", [_hang_up, _reset])
async def test_a_client_that_floods_and_leaves_is_noticed_though_nobody_reads(
    transport: str, leave: Callable[[Client], Awaitable[None]], tls: bool
) -> None:
    """Its handler never returns, so reading has stopped; the end of the link is behind what was not read."""
    router = Router()
    ended = trio.Event()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    app = App(router)
    async with serving(app, transport, ssl_context=server_tls() if tls else None) as server:
        client = await connect(server, tls=client_tls() if tls else None)
        await until(lambda: app.sessions)
        [session] = app.sessions
        while not session.connection.holds_back:
            await client.send("SAY", {"text": "x" * 10_000})
            await trio.testing.wait_all_tasks_blocked()
        await client.send("SAY", {"text": "x" * 10_000})
        await leave(client)
        with trio.fail_after(5):
            await ended.wait()
        await until(lambda: not app.sessions)


@on_both
async def test_slow_handshakes_by_the_hundred_keep_nobody_out(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    app = App(echo_router(), limits=Limits(handshake_timeout=1.0, max_connections=1))
    async with serving(app, transport) as server:
        idle: list[Any] = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(300)]
        async with await connect(server) as client:
            await echo(client)
            for stream in idle:
                assert await hung_up(stream) == b""
                await stream.aclose()
            await echo(client)
    assert not caplog.records
