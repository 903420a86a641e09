"""Between two states: what is under way when a connection comes, goes, or is given up."""

from __future__ import annotations

import math
import signal
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, User, open_pair, settle
from tests.serving import serving
from trio_wskit import App, Context, Limits, QueueOptions, Router, Rpc, message, open_client
from trio_wskit.client import Handshake, Opened
from trio_wskit.errors import ConnectionClosed, TrioWskitError

NO_PINGS = Limits(ping_interval=math.inf)


async def test_it_can_be_closed_before_anything_has_happened(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(math.inf)
    async with open_pair(server, wait=False) as (client, _):
        await client.close()
        assert trio.current_time() == 0


async def test_a_link_that_opens_after_all_is_not_kept_by_a_client_that_closes(autojump_clock: MockClock) -> None:
    server = Server()

    async def connect(handshake: Handshake) -> Opened:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
            return await server.connect(handshake)
        raise AssertionError

    async with open_client("ws://h.test/", connect=connect, wait=False, limits=NO_PINGS) as client:
        await settle()
        with trio.fail_after(10):
            await client.close()
        assert (client.state, client.stats.connects) == ("closed", 0)
    assert server.open_links == 0


async def test_requests_end_with_close_and_do_not_wait_for_its_answer(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        ended: list[float] = []

        async def ask() -> None:
            with pytest.raises(ConnectionClosed, match="1000"):
                await client.request(GetUser("1"))
            ended.append(trio.current_time())

        nursery.start_soon(ask)
        await server.asked()
        server.peer.stall()
        await client.close()
        assert (ended, trio.current_time()) == ([0], 5)


@pytest.mark.parametrize("steps", range(12))
async def test_a_request_whose_connection_is_lost_at_any_step_ends_at_once_or_goes_on_the_next(
    steps: int, autojump_clock: MockClock
) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                outcomes.append(await client.request(GetUser("1")))
            except ConnectionClosed as closed:
                outcomes.append(closed.code)

        nursery.start_soon(ask)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        server.peer.cut()
        await settle()
        if not outcomes:  # it waits in the queue
            assert client.stats.queued == 1
            await client.wait_open()
            server.send("USER", {"name": "n"}, id=await server.asked())
            await settle()
        assert outcomes in ([1006], [User("n")])
        assert trio.current_time() < 1


@pytest.mark.parametrize("steps", range(12))
async def test_a_request_whose_connection_is_lost_when_it_gets_its_room_does_not_wait_for_an_answer(
    steps: int, autojump_clock: MockClock
) -> None:
    limits = Limits(ping_interval=math.inf, outbox_messages=1, outbox_bytes=60_000)
    async with open_pair(limits=limits) as (client, server), trio.open_nursery() as nursery:
        outcomes: list[object] = []

        async def fill() -> None:
            while client.state == "open":
                await client.send(Hello("x" * 50_000))

        async def ask() -> None:
            try:
                outcomes.append(await client.request(GetUser("1")))
            except ConnectionClosed as closed:
                outcomes.append(closed.code)

        async def hear() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await server.peer.receive()

        nursery.start_soon(fill)
        await settle()
        nursery.start_soon(ask)
        await settle()
        nursery.start_soon(hear)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        inside: Any = client
        inside._life.link.broke()  # as the heartbeat does it: at once, and not when the reader has seen it
        await settle()
        if not outcomes:
            assert client.stats.queued >= 1
            await client.wait_open()
            server.send("USER", {"name": "n"}, id=await server.asked())
            await settle()
        assert outcomes in ([1006], [User("n")])
        assert trio.current_time() < 1
        nursery.cancel_scope.cancel()


async def test_what_is_sent_comes_behind_what_was_queued_however_much_that_is(autojump_clock: MockClock) -> None:
    server = Server()
    limits = Limits(ping_interval=math.inf, outbox_messages=3, outbox_bytes=60_000)

    async def connect(handshake: Handshake) -> Opened:
        await trio.sleep(1)
        opened = await server.connect(handshake)
        server.peer.stall()
        return opened

    async with (
        open_client("ws://h.test/", connect=connect, wait=False, limits=limits) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(50):
            await client.send(Hello(f"{number} " + "x" * 20_000))
        await client.wait_open()

        async def send() -> None:
            for number in range(50, 60):
                await client.send(Hello(f"{number} "))

        nursery.start_soon(send)
        await settle()
        server.peer.resume()
        heard = [int(one["payload"]["name"].split()[0]) for one in await server.heard()]
        assert heard == list(range(60))


async def test_a_request_that_is_given_up_leaves_its_room_in_the_queue(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(5.0)
    async with open_pair(server, wait=False, queue=QueueOptions(max_bytes=2000)) as (client, _):
        for _ in range(20):
            with trio.move_on_after(0.1):
                await client.request(GetUser("x" * 1000))
        await client.send(Hello("x" * 1500))
        assert client.stats.queue_dropped == 0


async def test_a_connection_on_which_nothing_can_be_written_is_given_up_by_who_sends(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=math.inf, write_timeout=3, outbox_messages=2)
    async with open_pair(limits=limits) as (client, server):
        server.peer.stall()
        with trio.fail_after(100):
            while client.state == "open":
                await client.send(Hello("x" * 100_000))
        assert 3 <= trio.current_time() < 5


async def test_a_watcher_who_does_not_look_misses_the_oldest_changes(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with client.states() as changes:
            for _ in range(40):
                server.peer.cut()
                await settle()
                await client.wait_open()
            assert (len(changes), changes.dropped) == (64, 1 + 3 * 40 - 64)


async def test_while_we_do_not_read_a_pong_is_not_waited_for() -> None:
    router = Router()

    @message("FLOOD")
    class Flood:
        pass

    @router.on(Flood)
    async def flood(ctx: Context[Flood]) -> None:
        for number in range(500):
            await ctx.send(News(f"{number}" + "x" * 5000))

    limits = Limits(ping_interval=0.05, ping_timeout=0.05, max_waiting_batches=1)
    async with (
        serving(App(router, limits=Limits(ping_interval=math.inf))) as server,
        open_client(server.urls[0], limits=limits) as client,
        client.messages(News, capacity=1) as stream,
    ):
        await client.send(Flood())
        await trio.sleep(0.5)
        assert client.stats.connects == 1
        with trio.fail_after(10):
            for number in range(500):
                assert (await stream.receive()).text.rstrip("x") == str(number)
        assert (client.state, client.stats.connects) == ("open", 1)


async def test_the_deadline_of_a_call_goes_on_to_the_next_server() -> None:
    @message("OUTER")
    class Outer(Rpc[User]):
        pass

    async with open_pair() as (inner, far_server):
        router = Router()

        @router.rpc(Outer)
        async def outer(ctx: Context[Outer]) -> User:
            return await inner.request(GetUser("1"))

        async with serving(App(router)) as server, open_client(server.urls[0]) as client:
            heard: list[object] = []

            async def hear() -> None:
                asked = await far_server.receive()
                heard.append(asked["meta"]["timeoutMs"])
                far_server.send("USER", {"name": "n"}, id=asked["meta"]["correlationId"])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                with trio.fail_after(7):
                    assert await client.request(Outer()) == User("n")
            (seen,) = heard
            assert isinstance(seen, int)
            assert 6000 < seen <= 7000


async def test_a_stream_that_is_left_while_it_is_full_lets_the_rest_in(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News, capacity=100) as everything:
        async with client.messages(News, capacity=1):
            for number in range(3):
                server.send("NEWS", {"text": str(number)})
            await settle()
            assert len(everything) < 3
        await settle()
        assert len(everything) == 3


async def test_close_is_not_held_up_by_a_stream_that_nobody_reads(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News, capacity=1):
        with suppress(trio.WouldBlock):
            for number in range(200):
                server.send("NEWS", {"text": str(number)})
        await settle()
        await client.close()
        assert trio.current_time() == 0


@pytest.mark.parametrize("attempt", ["send", "request"])
async def test_a_caller_that_is_cancelled_already_sends_nothing(attempt: str, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with trio.CancelScope() as scope:
            scope.cancel()
            if attempt == "send":
                await client.send(Hello("a"))
            else:
                await client.request(GetUser("1"))
        assert scope.cancelled_caught
        assert await server.heard() == []
        assert client.stats.pending == 0


async def test_ctrl_c_in_the_block_says_goodbye_and_comes_out_bare(autojump_clock: MockClock) -> None:
    server = Server()
    with pytest.raises(KeyboardInterrupt):
        async with open_pair(server):
            raise KeyboardInterrupt
    with pytest.raises(ConnectionClosed, match="1000"):
        await server.peer.receive()


def test_a_second_ctrl_c_does_not_wait_for_a_server_that_does_not_close() -> None:
    server = Server()
    ended: list[float] = []

    async def press_again() -> None:
        await trio.sleep(0.5)
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        try:
            async with open_client("ws://h.test/", connect=server.connect, limits=NO_PINGS):
                server.peer.stall()
                trio.lowlevel.spawn_system_task(press_again)  # and not the block, which is over then
                signal.raise_signal(signal.SIGINT)
        finally:
            ended.append(trio.current_time())

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert caught.group_contains(KeyboardInterrupt)
    assert server.open_links == 0
    assert ended == [0.5]


async def test_a_connector_that_gives_no_link_ends_the_client_and_says_so() -> None:
    async def connect(handshake: Handshake) -> Any:
        return "a link"

    with pytest.raises(TrioWskitError, match="the client failed; the cause is below") as caught:
        async with open_client("ws://h.test/", connect=connect):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, BaseExceptionGroup)


async def test_a_client_that_is_cancelled_with_its_task_ends_without_an_error(autojump_clock: MockClock) -> None:
    server = Server()
    with trio.CancelScope() as scope:
        async with open_pair(server) as (client, _):
            scope.cancel()
            await client.wait_closed()
    assert scope.cancelled_caught
    assert server.open_links == 0
