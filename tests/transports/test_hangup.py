"""A peer that vanishes without a word while nobody reads: the system finds it, and whoever holds back is told."""

from __future__ import annotations

import socket
import sys
from typing import Final, Literal, final

import pytest
import trio

from tests.transports.native_links import KEY, stream_of
from trio_wskit._core.frames import masked, text_frame
from trio_wskit.transports import _hangup
from trio_wskit.transports._frame_stream import FrameStream
from trio_wskit.transports._hangup import keep_alive
from trio_wskit.transports.native import PolledTransport, Poller, SocketTransport, StreamTransport

linux = pytest.mark.skipif(sys.platform != "linux", reason="EPOLLRDHUP is Linux's own")
TCP_REPAIR: Final = 19  # of Linux: a socket that is closed in this state sends nothing, as if its cable were pulled


@final
class Behind:
    """A receiver that has enough with one batch."""

    def __init__(self) -> None:
        self.fed = trio.Event()
        self.ended = trio.Event()

    def feed(self, messages: list[bytes]) -> bool:
        self.fed.set()
        return False

    def disconnected(self, code: int, reason: str) -> None:
        assert code == 1006
        self.ended.set()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


def vanish(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except OSError:  # no right to it, or no such thing
        sock.close()
        pytest.skip("only who may administrate the network of a Linux can make a peer vanish")
    sock.close()


@linux
async def test_a_peer_that_vanishes_while_its_receiver_is_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hangup, "KEEP_ALIVE", (1, 1, 1))
    ours, theirs = tcp_pair()
    with theirs:
        async with trio.open_nursery() as nursery:
            poller = Poller()
            await nursery.start(poller.run)
            receiver = Behind()
            PolledTransport(ours, poller).attach(receiver)
            theirs.send(masked(text_frame(b"x"), KEY))
            await receiver.fed.wait()
            vanish(theirs)
            with trio.fail_after(30):
                await receiver.ended.wait()
            nursery.cancel_scope.cancel()


@linux
@pytest.mark.parametrize("kind", ["native", "trio-websocket"])
async def test_a_peer_that_vanishes_while_nobody_reads_its_stream_is_noticed(
    kind: Literal["native", "trio-websocket"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hangup, "KEEP_ALIVE", (1, 1, 1))
    ours, theirs = tcp_pair()
    link = StreamTransport(stream_of(ours)) if kind == "native" else FrameStream(stream_of(ours))
    theirs.send(masked(text_frame(b"x"), KEY))
    vanish(theirs)
    with trio.fail_after(30):
        await link.hung_up()
    link.abort()


@pytest.mark.parametrize("client", [False, True])
async def test_a_plain_link_is_asked_about_later_than_by_pings(client: bool) -> None:
    ours, theirs = tcp_pair()
    link = SocketTransport(ours, client=client)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 40
    link.abort()
    theirs.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="unix sockets")
def test_what_is_not_tcp_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    keep_alive(ours)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    ours.close()
    theirs.close()


async def test_a_stream_that_has_gone_already_is_taken_all_the_same() -> None:
    ours, theirs = tcp_pair()
    stream = stream_of(ours)
    await stream.aclose()
    link = StreamTransport(stream)
    link.abort()
    theirs.close()
