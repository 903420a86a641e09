from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import raw, settle
from trio_wskit import ConnectionClosed, Limits, WsKitError
from trio_wskit._connection import Connection
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.frames import text_frame
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Frame
from trio_wskit.abc import Receiver
from trio_wskit.errors import LocalProtocolError
from trio_wskit.transports.memory import MemoryPeer, MemoryTransport, memory_link


@final
class Owner:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.controls: list[str] = []
        self.refused: list[WsKitError] = []
        self.ended: list[tuple[int, str]] = []
        self.connection: Connection | None = None
        self.waiting: list[int] = []  # batches that waited when a control came
        self.patience = 10**9  # errors, before it closes

    def on_control(self, envelope: Envelope) -> None:
        assert self.connection is not None
        self.controls.append(envelope.correlation_id or envelope.type)
        self.waiting.append(len(self.connection.inbox))

    def on_refused(self, error: WsKitError) -> None:
        assert self.connection is not None
        self.refused.append(error)
        if len(self.refused) >= self.patience:
            self.connection.close_soon(1008, "enough")

    def on_disconnected(self, code: int, reason: str) -> None:
        self.ended.append((code, reason))


@final
class PushLink:
    """A transport that reads by itself, over a memory link: what the poller is to sockets."""

    def __init__(self, transport: MemoryTransport, nursery: trio.Nursery) -> None:
        self._transport = transport
        self._nursery = nursery
        self._receiver: Receiver | None = None
        self._more = trio.Event()
        self.resumed = 0

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._nursery.start_soon(self._push)

    def resume(self) -> None:
        self.resumed += 1
        self._more.set()

    async def _push(self) -> None:
        assert self._receiver is not None
        try:
            while True:
                if not self._receiver.feed(await self._transport.receive()):
                    self._more = trio.Event()
                    await self._more.wait()
        except ConnectionClosed as closed:
            self._receiver.disconnected(closed.code, closed.reason)

    async def receive(self) -> list[bytes]:
        raise AssertionError("nobody asks a transport that pushes")

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        return self._transport.write_nowait(frames)

    async def write(self, frames: Sequence[bytes]) -> None:
        await self._transport.write(frames)

    async def ping(self) -> None:
        await self._transport.ping()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._transport.aclose(code, reason)

    def abort(self) -> None:
        self._transport.abort()


@final
class Link:
    def __init__(self, limits: Limits, nursery: trio.Nursery, capacity: int, push: bool) -> None:
        self.owner = Owner()
        self.flusher = Flusher()
        self.transport, self.peer = memory_link(capacity=capacity)
        self.push = PushLink(self.transport, nursery) if push else None
        self.connection = Connection(self.push or self.transport, limits, self.flusher, nursery, self.owner)
        self.owner.connection = self.connection

    async def take(self) -> list[str]:
        """The next batch, as types."""
        return [envelope.type for envelope in await self.connection.inbox.get()]

    def send(self, text: str) -> bool:
        return self.connection.outbox.offer(Frame(text_frame(text.encode())))

    def code(self) -> int | None:
        return self.connection.close_code

    def aborted(self) -> bool:
        inside: Any = self.transport
        return bool(inside._outbound.broken) and inside._outbound.broken.code == 1006


@asynccontextmanager
async def open_link(*, capacity: int = 65536, push: bool = False, **limits: Any) -> AsyncGenerator[Link]:
    async with trio.open_nursery() as nursery:
        link = Link(Limits(**limits), nursery, capacity, push)
        nursery.start_soon(link.flusher.run)
        link.connection.start()
        await settle()
        try:
            yield link
        finally:
            link.flusher.stop()
            nursery.cancel_scope.cancel()


async def closed(peer: MemoryPeer) -> tuple[int, str]:
    try:
        while True:
            await peer.receive()
    except ConnectionClosed as error:
        return error.code, error.reason


pushes = pytest.mark.parametrize("push", [False, True], ids=["pull", "push"])
LARGE = "x" * 40_000  # two of these are never joined into one batch


# --- reading ---------------------------------------------------------------------------------------------------------


@pushes
async def test_what_one_read_gives_is_one_batch_in_order(push: bool) -> None:
    async with open_link(push=push) as link:
        for name in "ABC":
            link.peer.send_nowait(raw(name))
        assert await link.take() == ["A", "B", "C"]
        link.peer.send_nowait(raw("D"))
        assert await link.take() == ["D"]


async def test_control_messages_are_told_at_once_and_behind_what_came_with_them() -> None:
    async with open_link() as link:
        link.peer.send_nowait(raw("__heartbeat"))
        link.peer.send_nowait(raw("A"))
        link.peer.send_nowait(raw("$ws:abort", call_id="c1"))
        link.peer.send_nowait(raw("B"))
        await settle()
        assert link.owner.controls == ["__heartbeat", "c1"]
        assert link.owner.waiting == [1, 1]
        assert await link.take() == ["A", "B"]


async def test_control_messages_alone_make_no_batch() -> None:
    async with open_link() as link:
        link.peer.send_nowait(raw("__heartbeat"))
        await settle()
        assert len(link.connection.inbox) == 0


async def test_what_cannot_be_decoded_is_told_and_the_rest_goes_on() -> None:
    async with open_link(max_payload_bytes=100, max_depth=3) as link:
        for text in ("garbage", raw("A"), "[]", raw("B", "x" * 100), raw("$mine"), raw("C", [[[1]]]), raw("D")):
            link.peer.send_nowait(text)
        assert await link.take() == ["A", "D"]
        codes = ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
        assert [error.code for error in link.owner.refused] == codes


@pushes
async def test_a_dispatcher_that_is_behind_holds_the_peer_back_and_nothing_is_lost(push: bool) -> None:
    async with open_link(push=push, max_waiting_batches=2) as link:
        sent: list[str] = []

        async def flood() -> None:
            for n in range(20):
                await link.peer.send(raw(f"N{n}", LARGE))
                sent.append(f"N{n}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await settle()
            assert link.connection.holds_back
            assert len(sent) < 5
            got: list[str] = []
            while len(got) < 20:
                got += await link.take()
                await settle()
        assert got == sent
        assert not link.connection.holds_back


@pushes
async def test_control_messages_that_come_before_the_hold_are_told(push: bool) -> None:
    async with open_link(push=push, max_waiting_batches=1) as link:
        link.peer.send_nowait(raw("A"))
        link.peer.send_nowait(raw("__heartbeat"))
        await settle()
        link.peer.send_nowait(raw("__heartbeat"))
        await settle()
        assert link.owner.controls == ["__heartbeat"]
        assert await link.take() == ["A"]
        await settle()
        assert link.owner.controls == ["__heartbeat"] * 2


# --- the peer's end --------------------------------------------------------------------------------------------------


@pushes
async def test_a_clean_close_comes_behind_all_messages_and_is_told_once(push: bool) -> None:
    async with open_link(push=push) as link:
        link.peer.send_nowait(raw("A"))
        link.peer.close(1001, "bye")
        await settle()
        assert link.owner.ended == [(1001, "bye")]
        assert (link.connection.close_code, link.connection.close_reason) == (1001, "bye")
        assert await link.take() == ["A"]
        with pytest.raises(trio.EndOfChannel):
            await link.take()
        link.connection.disconnected(1006, "")
        assert link.owner.ended == [(1001, "bye")]
        assert not link.send("x")
        assert link.connection.feed([b"more"])  # what comes late is nobody's


async def test_a_cut_is_1006() -> None:
    async with open_link() as link:
        link.peer.cut()
        await settle()
        assert link.owner.ended == [(1006, "")]


# --- our end ---------------------------------------------------------------------------------------------------------


@pushes
async def test_aclose_sends_what_is_queued_then_the_code(push: bool) -> None:
    async with open_link(push=push) as link:
        link.send("a")
        await link.connection.aclose(1001, "bye")
        assert link.owner.ended == [(1001, "bye")]
        assert await link.peer.receive() == "a"
        assert await closed(link.peer) == (1001, "bye")


async def test_a_second_aclose_is_no_matter() -> None:
    async with open_link() as link:
        await link.connection.aclose(1001)
        await link.connection.aclose(1000)
        assert link.owner.ended == [(1001, "")]


@pytest.mark.parametrize(
    ("code", "reason"), [(1006, ""), (999, ""), (5000, ""), (1000, "x" * 124), (1000, "é" * 62)], ids=str
)
async def test_aclose_refuses_what_cannot_be_sent_and_nothing_has_happened(code: int, reason: str) -> None:
    async with open_link() as link:
        with pytest.raises(LocalProtocolError):
            await link.connection.aclose(code, reason)
        assert link.code() is None
        assert link.send("still here")
        assert await link.peer.receive() == "still here"


@pytest.mark.parametrize(("patience", "seconds"), [(100, 5), (2, 2)])
async def test_aclose_aborts_a_peer_that_takes_too_long(
    autojump_clock: MockClock, patience: float, seconds: float
) -> None:
    async with open_link(close_timeout=5) as link:
        link.peer.stall()
        await link.connection.aclose(1001, patience=patience)
        assert trio.current_time() == seconds
        assert link.code() == 1001
        inside: Any = link.transport
        assert inside._inbound.broken.code == 1001 or link.aborted()


async def test_aclose_aborts_a_peer_that_does_not_take_what_is_queued(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10, close_timeout=5) as link:
        link.peer.stall()
        link.send("x" * 8)
        link.send("y" * 8)
        await link.connection.aclose(1001)
        assert trio.current_time() == 5
        assert link.aborted()


async def test_aclose_cancelled_has_aborted_the_link(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10) as link:
        link.peer.stall()
        link.send("x" * 8)
        link.send("y" * 8)
        with trio.move_on_after(1) as scope:
            await link.connection.aclose(1001)
        assert scope.cancelled_caught
        assert link.aborted()
        assert link.owner.ended == [(1001, "")]


@pushes
async def test_aclose_hears_the_peers_close_while_the_dispatcher_is_behind(
    autojump_clock: MockClock, push: bool
) -> None:
    async with open_link(push=push, max_waiting_batches=1) as link:
        link.peer.send_nowait(raw("A"))
        await settle()
        assert link.connection.holds_back
        link.peer.send_nowait(raw("B"))
        await link.connection.aclose(1001)
        assert trio.current_time() == 0
        assert link.push is None or link.push.resumed == 1
        assert await link.take() == ["A"]
        with pytest.raises(trio.EndOfChannel):
            await link.take()


async def test_what_comes_while_we_close_is_not_looked_at(autojump_clock: MockClock) -> None:
    async with open_link() as link:
        link.peer.stall()
        link.connection.close_soon(1001, "")
        link.peer.send_nowait(raw("A"))
        link.peer.send_nowait("garbage")
        await settle()
        link.peer.resume()
        assert await closed(link.peer) == (1001, "")
        assert link.owner.refused == []
        with pytest.raises(trio.EndOfChannel):
            await link.take()


async def test_a_peer_that_is_quicker_ends_our_close(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10) as link:
        link.peer.stall()
        link.send("x" * 8)
        link.send("y" * 8)
        link.connection.close_soon(1001, "")
        await settle()
        link.peer.close(1000, "me first")
        await settle()
        assert link.owner.ended == [(1000, "me first")]


async def test_an_aclose_that_finds_the_link_closed_is_done() -> None:
    async with open_link() as link:

        async def gone(code: int = 1000, reason: str = "") -> None:
            raise ConnectionClosed(1006)

        link.transport.aclose = gone  # type: ignore[method-assign]
        await link.connection.aclose(1001)
        assert link.owner.ended == [(1001, "")]


async def test_closing_soon_twice_closes_once() -> None:
    async with open_link() as link:
        link.connection.close_soon(1008, "a")
        link.connection.close_soon(1009, "b")
        await settle()
        link.connection.close_soon(1010, "c")
        assert link.owner.ended == [(1008, "a")]


async def test_who_closes_second_waits_for_the_first(autojump_clock: MockClock) -> None:
    async with open_link() as link:
        link.peer.stall()
        log: list[tuple[str, float, int | None]] = []

        async def close(name: str, code: int) -> None:
            await link.connection.aclose(code)
            log.append((name, trio.current_time(), link.code()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, "first", 4001)
            await trio.sleep(1)
            nursery.start_soon(close, "second", 4002)
            nursery.start_soon(close, "third", 4003)
            await trio.sleep(2)
            assert log == []
            link.peer.resume()
        assert sorted(log) == [("first", 3, 4001), ("second", 3, 4001), ("third", 3, 4001)]
        await close("late", 4004)
        assert log[-1] == ("late", 3, 4001)


async def test_who_closes_second_and_will_not_wait_as_long_drops_the_link_with_the_code_of_the_first(
    autojump_clock: MockClock,
) -> None:
    async with open_link() as link:
        link.peer.stall()
        link.connection.close_soon(4001, "first")
        await settle()
        await link.connection.aclose(1001, patience=1)
        assert trio.current_time() == 1
        assert link.owner.ended == [(4001, "first")]
        await settle()
        assert link.owner.ended == [(4001, "first")]


async def test_who_closes_second_and_is_cancelled_has_aborted_the_link(autojump_clock: MockClock) -> None:
    async with open_link() as link:
        link.peer.stall()
        link.connection.close_soon(4001, "first")
        await settle()
        with trio.move_on_after(1) as scope:
            await link.connection.aclose(1001)
        assert scope.cancelled_caught
        assert link.owner.ended == [(4001, "first")]


async def test_what_came_before_the_fatal_message_is_answered_before_the_close(autojump_clock: MockClock) -> None:
    for _ in range(20):  # Trio shuffles what runs in a pass
        async with open_link() as link, trio.open_nursery() as nursery:

            async def serve(link: Link) -> None:
                with suppress(trio.EndOfChannel):
                    while True:
                        for kind in await link.take():
                            link.send(f"answer to {kind}")

            link.owner.patience = 1
            nursery.start_soon(serve, link)
            await settle()
            for text in (raw("A"), raw("B"), "bad", raw("C")):
                link.peer.send_nowait(text)
            assert [await link.peer.receive() for _ in range(2)] == ["answer to A", "answer to B"]
            assert await closed(link.peer) == (1008, "enough")


async def test_a_reply_that_was_accepted_before_our_close_is_written_before_it(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10) as link:
        link.peer.stall()
        assert all([link.send("x" * 8), link.send("y" * 8), link.send("z" * 8)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.connection.aclose, 4000, "bye")
            await trio.sleep(1)
            assert link.send("while we wait for the writer")
            link.peer.resume()
            texts = [await link.peer.receive() for _ in range(4)]
        assert texts == ["x" * 8, "y" * 8, "z" * 8, "while we wait for the writer"]
        assert await closed(link.peer) == (4000, "bye")


async def test_a_peer_that_is_given_up_sees_why_if_it_reads_within_a_second(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10) as link:
        link.peer.stall()
        for letter in "abcdef":
            link.send(letter * len(LARGE))
        await settle()
        link.connection.give_up(1013, "too slow")
        assert not link.send("nothing more")
        await trio.sleep(0.9)
        assert link.owner.ended == []
        link.peer.resume()
        # One was on its way, two are the writer's; of those behind, the first may have been begun.
        assert [(await link.peer.receive())[0] for _ in range(4)] == ["a", "b", "c", "d"]
        assert await closed(link.peer) == (1013, "too slow")
        await settle()
        assert link.owner.ended == [(1013, "too slow")]
        assert link.connection.outbox.queued_bytes == 0


async def test_a_peer_that_is_given_up_and_does_not_read_is_aborted_after_a_second(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10) as link:
        link.peer.stall()
        for text in "abcdef":
            link.send(text * 8)
        await settle()
        link.connection.give_up(1013, "too slow")
        link.connection.give_up(1013, "again")
        await trio.sleep(2)
        assert link.owner.ended == [(1013, "too slow")]
        assert link.aborted()


async def test_to_give_up_where_no_task_can_be_started_is_to_abort() -> None:
    async with trio.open_nursery() as nursery:
        transport, peer = memory_link()
        owner = Owner()
        connection = Connection(transport, Limits(), Flusher(), nursery, owner)
    connection.give_up(1013, "too slow")
    assert owner.ended == [(1013, "too slow")]
    assert await closed(peer) == (1006, "")


async def test_the_message_that_was_one_too_many_is_the_last_that_is_looked_at() -> None:
    async with open_link() as link:
        link.owner.patience = 2
        for text in (raw("A"), "bad", "bad", "bad", raw("B")):
            link.peer.send_nowait(text)
        assert await link.take() == ["A"]
        assert len(link.owner.refused) == 2
        assert await closed(link.peer) == (1008, "enough")


async def test_abort_ends_the_link_at_once() -> None:
    async with open_link() as link:
        link.connection.abort(1013, "too slow")
        assert link.owner.ended == [(1013, "too slow")]
        assert await closed(link.peer) == (1006, "")


async def test_a_nursery_that_has_just_closed_takes_no_writer_and_nobody_falls_over_it(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as around:
        flusher = Flusher()
        around.start_soon(flusher.run)
        transport, peer = memory_link(capacity=10)
        owner = Owner()
        async with trio.open_nursery() as nursery:
            connection = owner.connection = Connection(transport, Limits(), flusher, nursery, owner)
        for text in ("x" * 8, "y" * 8):
            assert connection.outbox.offer(Frame(text_frame(text.encode())))
        await settle()
        connection.close_soon(1008, "nobody does it")
        assert connection.close_code is None
        around.start_soon(connection.aclose, 1001, "bye")
        assert [await peer.receive() for _ in range(2)] == ["x" * 8, "y" * 8]
        assert await closed(peer) == (1001, "bye")
        flusher.stop()


# --- a transport that hears a peer hang up ---------------------------------------------------------------------------


async def test_a_peer_that_hangs_up_while_it_is_held_back_is_gone_at_once() -> None:
    async with open_link(max_waiting_batches=1) as link:
        hung_up = trio.Event()
        watched: Any = link.transport
        watched.hung_up = hung_up.wait
        link.peer.send_nowait(raw("A"))
        await settle()
        assert link.connection.holds_back
        assert await link.take() == ["A"]
        await settle()
        assert link.owner.ended == []
        link.peer.send_nowait(raw("B"))
        await settle()
        hung_up.set()
        await settle()
        assert link.owner.ended == [(1006, "")]
        assert await link.take() == ["B"]
        with pytest.raises(trio.EndOfChannel):
            await link.take()


# --- a write that fails ----------------------------------------------------------------------------------------------


async def test_a_broken_write_is_found_by_the_reader_behind_what_came_before() -> None:
    async with open_link() as link:
        link.peer.send_nowait(raw("A"))
        inside: Any = link.transport
        inside._outbound.break_off(1006, "", forget=True)
        link.send("a")
        await settle()
        assert link.connection.outbox.closed is not None
        assert link.owner.ended == []
        link.peer.send_nowait(raw("B"))
        await settle()
        assert await link.take() == ["A", "B"]
        link.peer.cut()
        await settle()
        assert link.owner.ended == [(1006, "")]


@pushes
@pytest.mark.parametrize("held_back", ["before", "after"])
async def test_a_broken_write_ends_a_link_that_is_held_back(push: bool, held_back: str) -> None:
    async with open_link(push=push, max_waiting_batches=1) as link:
        inside: Any = link.transport
        if held_back == "before":
            link.peer.send_nowait(raw("A"))
            await settle()
        inside._outbound.break_off(1006, "", forget=True)
        link.send("a")
        await settle()
        if held_back == "after":
            link.peer.send_nowait(raw("A"))
            await settle()
        assert link.owner.ended == [(1006, "")]
        assert await link.take() == ["A"]
        with pytest.raises(trio.EndOfChannel):
            await link.take()


async def test_a_write_that_is_too_slow_ends_a_link_that_is_held_back(autojump_clock: MockClock) -> None:
    async with open_link(capacity=10, max_waiting_batches=1, write_timeout=3) as link:
        link.peer.stall()
        link.peer.send_nowait(raw("A"))
        link.send("x" * 8)
        link.send("y" * 8)
        await trio.sleep(4)
        assert link.owner.ended == [(1006, "the peer did not read in time")]
