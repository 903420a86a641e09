"""What the server must survive: peers that break the protocol, say nonsense, or are no more."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import pytest
import trio

from tests.serving import TRANSPORTS, Client, connect, hung_up, open_stream, serving, until
from tests.transports.peers import client_tls, server_tls
from trio_wskit import App, Context, Limits, Router, Session, message
from trio_wskit._core.frames import binary_frame, close_frame, frame, masked, ping_frame, pong_frame, text_frame

pytestmark = pytest.mark.e2e
on_both = pytest.mark.parametrize("transport", TRANSPORTS)


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


router = Router()


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    await ctx.send(Said(ctx.payload.text))


async def echoes(client: Client) -> bool:
    await client.send("SAY", {"text": "hello"})
    with trio.fail_after(10):
        return bool((await client.receive())["payload"] == {"text": "hello"})


HALF_A_CHARACTER = "ü".encode()[:1]


VIOLATIONS = [
    pytest.param([text_frame(b"\xff")], 1007, id="text that is not UTF-8"),
    pytest.param([frame(1, HALF_A_CHARACTER, first_bits=0), frame(0, b"")], 1007, id="half a character"),
    pytest.param([close_frame(1000)[:1] + b"\x03\x03\xe8\xff"], 1007, id="a close reason that is not UTF-8"),
    pytest.param([frame(1, b"", first_bits=0xC0)], 1002, id="RSV1"),
    pytest.param([frame(2, b"", first_bits=0xA0)], 1002, id="RSV2"),
    pytest.param([frame(9, b"", first_bits=0x90)], 1002, id="RSV3"),
    pytest.param([frame(3, b"")], 1002, id="a reserved opcode"),
    pytest.param([frame(0xB, b"")], 1002, id="a reserved control opcode"),
    pytest.param([frame(0, b"")], 1002, id="a continuation of nothing"),
    pytest.param([frame(1, b"", first_bits=0), text_frame(b"")], 1002, id="a message within a message"),
    pytest.param([frame(9, b"", first_bits=0)], 1002, id="a ping in pieces"),
    pytest.param([frame(9, b"x" * 126)], 1002, id="a ping too long"),
    pytest.param([b"\x88\x01\x03"], 1002, id="half a close code"),
    pytest.param([b"\x88\x02\x03\xed"], 1002, id="a close code that is never sent"),
    pytest.param([text_frame(b"x" * 4001)], 1009, id="a frame too large"),
    pytest.param([frame(1, b"x" * 2500, first_bits=0), frame(0, b"x" * 2500)], 1009, id="pieces too large"),
]


@on_both
@pytest.mark.parametrize(("sent", "code"), VIOLATIONS)
async def test_a_broken_protocol_is_answered_with_a_close_frame(
    transport: str, sent: Sequence[bytes], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(router, limits=Limits(max_payload_bytes=1000))
    async with serving(app, transport) as server, await connect(server) as client, await connect(server) as another:
        assert await echoes(client)
        await client.send_frames(*sent)
        with trio.fail_after(10):
            assert (await client.end())[0] == code
        client.cut()
        assert await echoes(another)
        await until(lambda: len(app.sessions) == 1)
    assert not caplog.records


@on_both
@pytest.mark.parametrize(
    ("sent", "code"), [(text_frame(b"\xff"), 1007), (frame(3, b""), 1002), (binary_frame(b"x" * 5000), 1009)]
)
async def test_and_so_it_is_over_tls(transport: str, sent: bytes, code: int) -> None:
    app = App(router, limits=Limits(max_payload_bytes=1000))
    async with serving(app, transport, ssl_context=server_tls()) as server:
        client = await connect(server, tls=client_tls())
        await client.send_frames(sent)
        with trio.fail_after(10):
            assert (await client.end())[0] == code
        client.cut()
        await until(lambda: not app.sessions)


@on_both
async def test_a_frame_that_is_not_masked_is_1002(transport: str) -> None:
    async with serving(App(router), transport) as server, await connect(server) as client:
        await client.stream.send_all(text_frame(b'{"type":"SAY","payload":{"text":"hello"}}'))
        assert (await client.end())[0] == 1002


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1])
async def test_a_frame_that_announces_the_impossible_is_refused_from_its_header(size: int) -> None:
    async with serving(App(router)) as server, await connect(server) as client:
        await client.stream.send_all(b"\x82\xff" + size.to_bytes(8, "big") + b"mask" + b"begin")
        with trio.fail_after(5):
            assert (await client.end())[0] == 1009


async def test_or_once_it_has_come_too_far() -> None:
    """trio-websocket reads on until its limit is passed."""
    app = App(router, limits=Limits(max_payload_bytes=10_000))
    async with serving(app, "trio_websocket") as server, await connect(server) as client:
        await client.stream.send_all(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"mask" + bytes(50_000))
        with trio.fail_after(5):
            assert (await client.end())[0] == 1009


@on_both
@pytest.mark.parametrize(("on_exceeded", "lives"), [("send", True), ("custom", True), ("close", False)])
async def test_a_message_that_is_too_large_gets_what_the_app_says(
    transport: str, on_exceeded: str, lives: bool
) -> None:
    own = Router()
    over: list[tuple[str, float, float]] = []
    own.on_limit_exceeded(lambda info: over.append((info.type, info.observed, info.limit)))
    own.merge(router)
    app = App(own, limits=Limits(max_payload_bytes=1000, on_exceeded=on_exceeded))  # type: ignore[arg-type]
    async with serving(app, transport) as server, await connect(server) as client:
        await client.send_frames(text_frame(b"x" * 1001))
        if on_exceeded == "send":
            error = (await client.receive())["payload"]
            assert (error["code"], error["details"]) == ("RESOURCE_EXHAUSTED", {"observed": 1001, "limit": 1000})
        if lives:
            assert await echoes(client)
        else:
            assert (await client.end())[0] == 1009
        assert over == [("payload", 1001, 1000)]


@on_both
async def test_fragments_without_end_end(transport: str) -> None:
    app = App(router, limits=Limits(max_payload_bytes=1000))
    async with serving(app, transport) as server, await connect(server) as client:
        await client.send_frames(frame(1, b"", first_bits=0))
        with trio.move_on_after(10):
            while app.sessions:
                try:
                    await client.stream.send_all(masked(frame(0, b"", first_bits=0), b"abcd") * 5000)
                except trio.BrokenResourceError:
                    break
        await until(lambda: not app.sessions)


@on_both
async def test_messages_that_are_none_are_counted_and_end_the_connection(transport: str) -> None:
    app = App(router, limits=Limits(max_protocol_errors=3))
    async with serving(app, transport) as server, await connect(server) as client:
        for nonsense in (b"", b"[", b'{"type":1}'):
            await client.send_frames(text_frame(nonsense))
        for _ in range(2):
            assert (await client.receive())["payload"]["code"] == "INVALID_ARGUMENT"
        assert (await client.end())[0] == 1008


@on_both
async def test_what_came_before_the_last_of_them_in_the_same_read_is_still_answered(transport: str) -> None:
    app = App(router, limits=Limits(max_protocol_errors=2))
    async with serving(app, transport) as server:
        for _ in range(20):  # Trio shuffles what runs at the same time
            async with await connect(server) as client:
                says = [text_frame(b'{"type":"SAY","payload":{"text":"%d"}}' % number) for number in range(3)]
                await client.send_frames(says[0], text_frame(b"{"), says[1], text_frame(b"{"), says[2])
                with trio.fail_after(10):
                    heard = [(await client.receive())["payload"].get("text", "error") for _ in range(4)]
                    assert (await client.end())[0] == 1008
                assert sorted(heard) == ["0", "1", "error", "error"]


@on_both
async def test_noise_instead_of_a_handshake_or_of_frames_harms_nobody(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    chance = random.Random(20)
    request = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    frames = [text_frame(b'{"type":"SAY"}'), binary_frame(b"\0"), ping_frame(), pong_frame(b"x"), close_frame()]
    app = App(router)
    async with serving(app, transport) as server, await connect(server) as client:
        for number in range(60):
            async with await open_stream(server) as stream:
                await stream.send_all(_noise(chance, request) if number % 2 else chance.randbytes(300))
                await stream.send_all(b"\r\n\r\n")
                if number % 3:
                    await hung_up(stream)
        for _ in range(60):
            async with await connect(server) as noisy:
                good = masked(chance.choice(frames), b"abcd")
                await noisy.stream.send_all(good + _noise(chance, masked(chance.choice(frames), b"dcba")))
        assert await echoes(client)
        await until(lambda: len(app.sessions) == 1)
    assert not caplog.records


def _noise(chance: random.Random, data: bytes) -> bytes:
    """Something near to what would be right."""
    changed = bytearray(data * chance.randint(1, 4))
    for _ in range(chance.randint(1, 5)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.randint(1, len(changed))])


@on_both
async def test_a_peer_that_is_no_more_is_found_by_the_heartbeat_and_one_that_is_stays(transport: str) -> None:
    own = Router()
    ended: list[Session] = []

    @own.on_close
    async def remember(session: Session) -> None:
        ended.append(session)

    own.merge(router)
    app = App(own, limits=Limits(ping_interval=0.4, ping_timeout=1.0))
    async with serving(app, transport) as server, await connect(server) as alive, trio.open_nursery() as nursery:
        dead = await connect(server)  # it reads nothing any more, and so it answers nothing
        heard: list[object] = []

        async def listen() -> None:
            while True:
                heard.append(await alive.receive())

        nursery.start_soon(listen)
        await until(lambda: ended)
        assert [(session.client_id, session.close_code) for session in ended] == [(dead.client_id, 1006)]
        [session] = app.sessions
        assert session.latency is not None
        await alive.send("SAY", {"text": "still here"})
        await until(lambda: heard)
        nursery.cancel_scope.cancel()
    dead.cut()


@on_both
async def test_a_peer_that_sends_pings_and_reads_nothing_piles_nothing_up(transport: str) -> None:
    """Its pongs are left out, or it is not read any more: both are its own loss."""
    app = App(router)
    async with serving(app, transport) as server, await connect(server) as client:
        await until(lambda: app.sessions)
        [session] = app.sessions
        with trio.move_on_after(0.5):
            while True:
                await client.stream.send_all(masked(ping_frame(b"x" * 125), b"abcd") * 100)
        assert session.outbox.queued_bytes == 0
        async with await connect(server) as another:
            assert await echoes(another)
        client.cut()
        await until(lambda: not app.sessions)


@on_both
async def test_a_reset_in_the_middle_of_everything_is_an_end_like_another(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app = App(router)
    async with serving(app, transport) as server, await connect(server) as another:
        half = masked(text_frame(b'{"type":"SAY","payload":{"text":"hello"}}'), b"abcd")
        for cut_at in (0, 1, 3, 20, len(half)):
            client = await connect(server)
            await client.stream.send_all(half * 3 + half[:cut_at])
            client.cut()
        await until(lambda: len(app.sessions) == 1)
        assert await echoes(another)
    assert not caplog.records
