"""One task that reads for many sockets: what it costs, that it is fair, and that no link harms another."""

from __future__ import annotations

import itertools
import logging
import select
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, final

import pytest
import trio
import trio.testing

from tests.transports.native_links import KEY, Pulled, narrow
from trio_wskit._core.frames import binary_frame, close_frame, masked, ping_frame, text_frame
from trio_wskit.transports.native import PolledTransport, Poller

calls: Final[Counter[str]] = Counter()


@final
class CountingSocket(socket.socket):
    """Counts the system calls that move data."""

    def recv(self, *args: Any) -> bytes:
        calls["recv"] += 1
        return super().recv(*args)

    def send(self, *args: Any) -> int:
        calls["send"] += 1
        return super().send(*args)


@final
class CountingEpoll:
    """An epoll that counts what is asked of it."""

    def __init__(self) -> None:
        self._epoll = REAL_EPOLL()

    def __enter__(self) -> CountingEpoll:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def __getattr__(self, name: str) -> Any:
        if name != "fileno":
            calls[name] += 1
        return getattr(self._epoll, name)


REAL_EPOLL: Final = select.epoll


@asynccontextmanager
async def running_poller() -> AsyncGenerator[Poller]:
    async with trio.open_nursery() as nursery:
        poller = Poller()
        await nursery.start(poller.run)
        yield poller
        nursery.cancel_scope.cancel()


class Echo:
    """Answers each message at once, as a handler that never waits does."""

    def __init__(self, transport: PolledTransport) -> None:
        self.transport = transport
        self.ended: tuple[int, str] | None = None
        transport.attach(self)

    def feed(self, messages: list[bytes]) -> bool:
        assert self.transport.write_nowait([text_frame(message) for message in messages]) == ()
        return True

    def disconnected(self, code: int, reason: str) -> None:
        self.ended = (code, reason)


class Broken:
    """A receiver with a bug."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, str]] = []

    def feed(self, messages: list[bytes]) -> bool:
        raise ValueError("a bug")

    def disconnected(self, code: int, reason: str) -> None:
        self.ended.append((code, reason))
        raise ValueError("another")


def linked(poller: Poller, *, narrow_buffers: bool = False, **options: Any) -> tuple[PolledTransport, socket.socket]:
    ours, theirs = socket.socketpair()
    if narrow_buffers:
        narrow(ours, theirs)
    theirs.setblocking(False)
    return PolledTransport(CountingSocket(fileno=ours.detach()), poller, **options), theirs


def wire(*frames: bytes) -> bytes:
    return b"".join(masked(one, KEY) for one in frames)


def fill(sock: socket.socket, data: bytes) -> None:
    """Send until the kernel takes no more."""
    with suppress(BlockingIOError):
        while True:
            sock.send(data)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_message_costs_one_recv_and_one_send_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "epoll", CountingEpoll)
    async with running_poller() as poller:
        peers = [linked(poller) for _ in range(50)]
        echoes = [Echo(transport) for transport, _ in peers]
        await settle()
        for rounds in range(1, 4):
            calls.clear()
            for _, peer in peers:
                peer.send(wire(text_frame(b"hello")))
            await settle()
            assert calls == {"poll": 1, "recv": 50, "send": 50}, rounds
            assert all(peer.recv(100) == text_frame(b"hello") for _, peer in peers)
        calls.clear()
        peers[0][1].send(wire(*[text_frame(b"%d" % n) for n in range(16)]))
        await settle()
        assert calls == {"poll": 1, "recv": 1, "send": 1}, "the answers to one read are one write"
        for echo, (_, peer) in zip(echoes, peers, strict=True):
            echo.transport.abort()
            peer.close()


async def test_a_pass_of_the_scheduler_serves_every_ready_link() -> None:
    async with running_poller() as poller:
        peers = [linked(poller) for _ in range(20)]
        for transport, _ in peers:
            Echo(transport)
        await settle()
        steps = 0

        class Steps(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal steps
                steps += task.name.endswith("Poller.run")

        instrument = Steps()
        trio.lowlevel.add_instrument(instrument)
        for _, peer in peers:
            peer.send(wire(text_frame(b"hello")))
        await settle()
        trio.lowlevel.remove_instrument(instrument)
        assert steps == 1
        for transport, peer in peers:
            transport.abort()
            peer.close()


async def test_a_flood_on_one_link_delays_the_others_by_one_read() -> None:
    async with running_poller() as poller:
        order: list[str] = []

        class Noted:
            def __init__(self, name: str) -> None:
                self.name = name

            def feed(self, messages: list[bytes]) -> bool:
                order.append(self.name)
                return True

            def disconnected(self, code: int, reason: str) -> None: ...

        (loud, loud_peer), (quiet, quiet_peer) = linked(poller), linked(poller)
        loud.attach(Noted("loud"))
        quiet.attach(Noted("quiet"))
        loud_peer.send(wire(*[binary_frame(bytes(1000))] * 190))
        quiet_peer.send(wire(text_frame(b"me too")))
        await settle()
        assert order.index("quiet") <= 1
        assert order.count("loud") >= 3
        for transport, peer in ((loud, loud_peer), (quiet, quiet_peer)):
            transport.abort()
            peer.close()


async def test_a_receiver_that_is_behind_is_left_alone_until_it_resumes() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller, narrow_buffers=True)
        pulled = Pulled(transport, room=2)
        for number in range(2):
            peer.send(wire(text_frame(b"%d" % number)))
            await settle()
        calls.clear()
        fill(peer, wire(binary_frame(bytes(1000))))
        await settle()
        assert calls["recv"] == 0, "TCP pushes back on the peer"
        assert await pulled.receive() == [b"0"]
        await settle()
        assert calls["recv"] > 0
        transport.resume()  # once more does no harm
        transport.abort()
        peer.close()


async def test_a_peer_that_hangs_up_is_noticed_while_its_receiver_is_behind() -> None:
    async with running_poller() as poller:
        for how in ("close", "shutdown"):
            transport, peer = linked(poller)
            pulled = Pulled(transport, room=1)
            peer.send(wire(text_frame(b"taken")))
            await settle()
            peer.send(wire(text_frame(b"not read any more")))
            await settle()
            assert not pulled.ended
            if how == "close":
                peer.close()
            else:
                peer.shutdown(socket.SHUT_WR)
            await settle()
            assert pulled.ended == [1006]
            calls.clear()
            transport.resume()
            await settle()
            assert calls["recv"] == 0
            peer.close()


async def test_a_close_frame_behind_the_last_batch_is_told_although_the_receiver_is_full() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller)
        pulled = Pulled(transport, room=1)
        peer.send(wire(text_frame(b"last"), close_frame(4000, "bye")))
        await settle()
        assert pulled.batches == [[b"last"]]
        assert pulled.end is not None
        assert pulled.end.code == 4000
        assert peer.recv(100) == close_frame(4000, "bye")
        assert peer.recv(100) == b""
        peer.close()


async def test_a_receiver_that_fails_loses_its_own_link_only(caplog: pytest.LogCaptureFixture) -> None:
    async with running_poller() as poller:
        (bad, bad_peer), (good, good_peer) = linked(poller), linked(poller)
        broken = Broken()
        bad.attach(broken)
        Echo(good)
        bad_peer.send(wire(text_frame(b"x")))
        good_peer.send(wire(text_frame(b"x")))
        with caplog.at_level(logging.ERROR):
            await settle()
        assert broken.ended == [(1006, "")]
        assert [record.message for record in caplog.records] == [
            "a connection failed, and is aborted",
            "a receiver failed when it was told that its connection is closed",
        ]
        assert good_peer.recv(100) == text_frame(b"x")
        assert bad_peer.recv(100) == b""
        good.abort()
        bad_peer.close()
        good_peer.close()


async def test_a_link_that_an_earlier_one_closed_in_the_same_pass_is_passed_over() -> None:
    async with running_poller() as poller:
        links = [linked(poller) for _ in range(2)]
        fed: list[int] = []

        class ClosesTheOther:
            def __init__(self, number: int) -> None:
                self.number = number

            def feed(self, messages: list[bytes]) -> bool:
                fed.append(self.number)
                links[1 - self.number][0].abort()
                return True

            def disconnected(self, code: int, reason: str) -> None: ...

        for number, (transport, _) in enumerate(links):
            transport.attach(ClosesTheOther(number))
        for _, peer in links:
            peer.send(wire(text_frame(b"x")))
        await settle()
        assert len(fed) == 1
        for transport, peer in links:
            transport.abort()
            peer.close()


async def test_a_receiver_may_abort_or_close_its_own_link_while_it_is_fed() -> None:
    class Leaves:
        told = False

        def __init__(self, leave: Callable[[], None]) -> None:
            self.leave = leave

        def feed(self, messages: list[bytes]) -> bool:
            self.leave()
            return False

        def disconnected(self, code: int, reason: str) -> None:
            self.told = True

    async with running_poller() as poller, trio.open_nursery() as nursery:
        (aborted, aborted_peer), (closed, closed_peer) = linked(poller), linked(poller)
        receivers = [Leaves(aborted.abort), Leaves(lambda: nursery.start_soon(closed.aclose))]
        for transport, receiver in zip((aborted, closed), receivers, strict=True):
            transport.attach(receiver)
        for peer in (aborted_peer, closed_peer):
            peer.send(wire(text_frame(b"x")))
        await settle()
        assert aborted_peer.recv(100) == b""
        assert closed_peer.recv(100) == close_frame()
        closed_peer.send(wire(close_frame()))
        await settle()
        assert closed_peer.recv(100) == b""
        assert not any(receiver.told for receiver in receivers), "whoever closes knows"
        aborted_peer.close()
        closed_peer.close()


async def test_a_descriptor_that_is_used_again_belongs_to_its_new_link() -> None:
    async with running_poller() as poller:
        first, first_peer = linked(poller)
        old = Pulled(first)
        number = first._socket.fileno()  # pyright: ignore[reportPrivateUsage]
        first.abort()
        first_peer.close()
        second, second_peer = linked(poller)
        assert second._socket.fileno() == number  # pyright: ignore[reportPrivateUsage]
        new = Pulled(second)
        second_peer.send(wire(text_frame(b"x")))
        await settle()
        assert (old.batches, new.batches) == ([], [[b"x"]])
        second.abort()
        second_peer.close()


async def test_after_some_messages_their_dispatchers_have_their_turn() -> None:
    """So what waits between reading and dispatching is bounded over all links, and stays in the cache."""

    class Counts(trio.abc.Instrument):
        def __init__(self) -> None:
            self.read = 0
            self.steps: list[int] = []

        def feed(self, messages: list[bytes]) -> bool:
            self.read += len(messages)
            return True

        def disconnected(self, code: int, reason: str) -> None: ...

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps.append(self.read)

    counts = Counts()
    async with running_poller() as poller:
        links = [linked(poller) for _ in range(30)]
        for transport, peer in links:
            transport.attach(counts)
            peer.send(wire(*[text_frame(b"x")] * 20))
        trio.lowlevel.add_instrument(counts)
        await settle()
        trio.lowlevel.remove_instrument(counts)
        assert counts.read == 600
        assert max(late - early for early, late in itertools.pairwise(counts.steps)) == 140  # the read that passed 128
        for transport, peer in links:
            transport.abort()
            peer.close()


async def test_what_was_ready_before_a_descriptor_was_used_again_is_not_told_to_its_new_link() -> None:
    async with running_poller() as poller:
        links = [linked(poller) for _ in range(2)]
        held: list[tuple[PolledTransport, socket.socket]] = []

        class Refuses:
            def feed(self, messages: list[bytes]) -> bool:
                return False

            def disconnected(self, code: int, reason: str) -> None:
                raise AssertionError("its peer has not hung up")

        class Replaces:
            """Whichever is read first: the other goes, and its descriptor belongs to a link that is held back."""

            def __init__(self, number: int) -> None:
                self.number = number

            def feed(self, messages: list[bytes]) -> bool:
                other, other_peer = links[1 - self.number]
                descriptor = other._socket.fileno()  # pyright: ignore[reportPrivateUsage]
                other.abort()
                other_peer.close()
                fresh, fresh_peer = linked(poller, leftover=wire(text_frame(b"first")))
                assert fresh._socket.fileno() == descriptor  # pyright: ignore[reportPrivateUsage]
                fresh.attach(Refuses())
                held.append((fresh, fresh_peer))
                return True

            def disconnected(self, code: int, reason: str) -> None: ...

        for number, (transport, peer) in enumerate(links):
            transport.attach(Replaces(number))
            peer.send(wire(text_frame(b"x")))
            peer.shutdown(socket.SHUT_WR)
        await settle()
        ((fresh, fresh_peer),) = held
        assert fresh.write_nowait([text_frame(b"it is open")]) == ()
        for transport, peer in (*links, (fresh, fresh_peer)):
            transport.abort()
            peer.close()


async def test_a_stuck_pong_goes_as_soon_as_there_is_room() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller, narrow_buffers=True)
        pulled = Pulled(transport)
        filler = binary_frame(bytes(500))
        while transport.write_nowait([filler]) == ():
            pass
        left_over = transport._rest  # pyright: ignore[reportPrivateUsage]
        peer.send(wire(ping_frame(b"are you there?"), text_frame(b"x")))
        await settle()
        assert pulled.batches == [[b"x"]]
        got = b""
        while True:
            try:
                got += peer.recv(65536)
            except BlockingIOError:
                break
        await settle()
        if left_over:
            assert transport.write_nowait([left_over]) == ()
        got += peer.recv(65536)
        assert got.endswith(b"\x8a\x0eare you there?")
        calls.clear()
        await settle()
        assert calls["poll"] == 0, "nothing is watched for that is not wanted"
        transport.abort()
        peer.close()


async def test_pings_without_end_from_a_peer_that_reads_nothing_are_not_stored() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller, narrow_buffers=True)
        pulled = Pulled(transport)
        flood = wire(*[ping_frame(bytes(125))] * 10)
        for _ in range(2000):
            try:
                peer.send(flood)
            except BlockingIOError:
                await settle()
        await settle()
        assert len(transport._urgent) < 20_000  # pyright: ignore[reportPrivateUsage]
        assert pulled.end is None
        transport.abort()
        peer.close()


async def test_what_came_with_the_handshake_is_fed_while_attaching() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller, leftover=wire(text_frame(b"early"), close_frame()))
        pulled = Pulled(transport)
        assert pulled.batches == [[b"early"]]
        assert pulled.end is not None
        peer.close()


async def test_a_link_that_is_closed_already_says_so_when_it_is_attached() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller)
        transport.abort()
        assert Pulled(transport).end is not None
        peer.close()


async def test_who_is_still_attached_when_the_poller_ends_is_told() -> None:
    async with running_poller() as poller:
        transport, peer = linked(poller)
        pulled = Pulled(transport)
    assert pulled.end is not None
    assert pulled.end.code == 1006
    peer.close()


async def test_a_poller_that_does_not_run_takes_nothing() -> None:
    transport, peer = linked(Poller())
    with pytest.raises(RuntimeError, match=r"Poller\.run must have been started"):
        Pulled(transport)
    transport.abort()
    peer.close()
