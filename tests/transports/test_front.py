"""The front door: what comes in as a request, and what plain HTTP gets."""

from __future__ import annotations

from typing import Any

import outcome
import pytest
import trio
import trio.testing

from tests.transports.peers import client_tls, server_tls, socket_pair, stream_of
from trio_wskit import ConfigError, HttpResponse, Reject, Request
from trio_wskit.transports._front import (
    Head,
    Page,
    answer_plain,
    check_pages,
    read_head,
    reject_response,
    remote_of,
    send_response,
)

UPGRADE = b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"


async def head_of(*pieces: bytes) -> Head:
    client, server = trio.testing.memory_stream_pair()
    outcomes: list[outcome.Outcome[Head]] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            outcomes.append(await outcome.acapture(read_head, server, remote="192.0.2.7", secure=True))

        nursery.start_soon(read)
        for piece in pieces:
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
    return outcomes[0].unwrap()


async def test_a_request_is_read_to_the_end_of_its_head_and_nothing_that_follows_is_lost() -> None:
    raw = b"GET /chat?room=a%20b HTTP/1.1\r\nHost: h\r\nX-Two: 1\r\nX-Two: 2\r\n" + UPGRADE + b"\r\n"
    head = await head_of(raw[:10], raw[10:60], raw[60:] + b"\x81\x80then")
    assert head.raw == raw + b"\x81\x80then"
    assert head.leftover == b"\x81\x80then"
    assert head.wants_websocket
    request = head.request
    assert (request.method, request.path, request.query) == ("GET", "/chat", {"room": "a b"})
    assert request.headers["x-two"] == "1, 2"
    assert (request.remote, request.secure) == ("192.0.2.7", True)


@pytest.mark.parametrize(
    "first_line",
    [b"POST / HTTP/1.1", b"HEAD / HTTP/1.1", b"GET / HTTP/1.0"],
)
async def test_an_upgrade_that_is_no_get_over_http_1_1_does_not_count(first_line: bytes) -> None:
    head = await head_of(first_line + b"\r\nHost: h\r\n" + UPGRADE + b"\r\n")
    assert head.request.is_upgrade
    assert not head.wants_websocket


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), 400),  # TLS where none is spoken
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: h\r\nbroken header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 40_000, 431),
        (b"GET /" + b"x" * 40_000, 431),
    ],
)
async def test_what_is_no_request_gets_a_status(raw: bytes, status: int) -> None:
    with pytest.raises(Reject) as caught:
        await head_of(raw)
    assert caught.value.status == status


@pytest.mark.parametrize("raw", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n"])
async def test_a_peer_that_leaves_in_the_middle_of_its_request_is_a_broken_link(raw: bytes) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await head_of(raw)


async def made(request: Request) -> HttpResponse:
    return HttpResponse(200, request.query["q"])


PAGES: dict[str, Page] = {
    "/text": "<p>grüß",
    "/bytes": b"\x00\x01",
    "/own": HttpResponse(204, headers={"X-Own": "1"}),
    "/async": made,
    "/plain": lambda request: HttpResponse(200, request.path),
}


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        ("GET", "/text", 200, "<p>grüß"),
        ("HEAD", "/text", 200, "<p>grüß"),
        ("GET", "/bytes", 200, b"\x00\x01"),
        ("GET", "/own", 204, b""),
        ("GET", "/async?q=7", 200, "7"),
        ("GET", "/plain?q=7", 200, "/plain"),
        ("POST", "/text", 405, "Only GET is understood here.\n"),
        ("GET", "/", 426, "This is a WebSocket endpoint.\n"),
        ("POST", "/", 426, "This is a WebSocket endpoint.\n"),
    ],
)
async def test_plain_http_gets_its_page(method: str, target: str, status: int, body: str | bytes) -> None:
    answer = await answer_plain(Request(method=method, target=target), PAGES)
    assert (answer.status, answer.body) == (status, body)
    if status == 405:
        assert answer.headers["Allow"] == "GET, HEAD"
    if status == 426:
        assert answer.headers["Upgrade"] == "websocket"


@pytest.mark.parametrize("pages", [{"healthz": "no slash"}, {"/x": 5}, {"/x": None}])
def test_a_page_that_cannot_work_is_refused_at_once(pages: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(pages))):
        check_pages(pages)


def test_good_pages_are_accepted() -> None:
    check_pages(PAGES)


def test_a_reject_becomes_an_answer_with_its_headers() -> None:
    assert reject_response(Reject(429, "Too many", {"Retry-After": "1"})).to_bytes() == (
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n"
        b"Connection: close\r\nRetry-After: 1\r\n\r\nToo many\n"
    )
    assert reject_response(Reject(401)).body == ""


async def read_all(stream: trio.abc.Stream) -> bytes:
    read = b""
    while data := await stream.receive_some(65536):
        read += data
    return read


async def test_an_answer_arrives_even_where_the_peer_still_sends() -> None:
    """A socket that is closed with unread bytes on it resets the link, and takes the answer with it."""
    ours, theirs = map(stream_of, socket_pair())
    async with theirs, trio.open_nursery() as nursery:

        async def answer() -> None:
            await send_response(ours, HttpResponse(200, "page"))
            await ours.aclose()

        nursery.start_soon(answer)
        await theirs.send_all(b"x" * 30_000)
        await theirs.send_all(b"x" * 30_000)
        assert (await read_all(theirs)).endswith(b"\r\n\r\npage")
        await theirs.aclose()


async def test_an_answer_waits_a_second_for_a_peer_that_never_hangs_up(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    started = trio.current_time()
    await send_response(ours, HttpResponse(200, "page"), head_only=True)
    assert trio.current_time() - started == 1.0
    assert (await read_all(theirs)).endswith(b"Content-Length: 4\r\nConnection: close\r\n\r\n")


async def test_the_peers_address_is_known_through_tls_and_absent_where_there_is_none() -> None:
    ours, theirs = map(stream_of, socket_pair())
    async with ours, theirs:
        assert remote_of(ours) == "127.0.0.1"
        assert remote_of(trio.SSLStream(ours, server_tls(), server_side=True)) == "127.0.0.1"
        assert remote_of(trio.SSLStream(theirs, client_tls())) == "127.0.0.1"
    assert remote_of(ours) is None  # it has gone already
    assert remote_of(trio.testing.memory_stream_pair()[0]) is None
    unix, other = trio.socket.socketpair()
    with unix, other:
        assert remote_of(trio.SocketStream(unix)) is None
