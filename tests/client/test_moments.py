"""A connection that breaks at the very moment when somebody relies on it, and one that only seems to be broken."""

from __future__ import annotations

import math
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, User, open_pair, settle
from trio_wskit import Limits
from trio_wskit._core.backlog import Frame
from trio_wskit._queue import Waiter
from trio_wskit.client import Client
from trio_wskit.client._link import Link
from trio_wskit.errors import ConnectionClosed


def link_of(client: Client) -> Link:
    inside: Any = client
    link: Link = inside._life.link
    return link


@final
class _Breaker(Waiter):
    """Waits for room behind a request, and breaks the link as soon as there is some: before the request goes on."""

    def __init__(self, link: Link) -> None:
        super().__init__(Frame(b""))
        self.link = link

    def accepted(self) -> None:
        self.link.broke()


@pytest.mark.parametrize("how", ["request", "call"])
async def test_a_request_that_has_its_room_on_a_link_that_is_lost_before_it_goes_on_ends_at_once(
    how: str, autojump_clock: MockClock
) -> None:
    async with (
        open_pair(limits=Limits(ping_interval=math.inf, outbox_bytes=60_000)) as (client, server),
        trio.open_nursery() as nursery,
    ):
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                if how == "request":
                    await client.request(GetUser("1"))
                else:
                    async with client.call(GetUser("1")) as call:
                        await call.reply
            except ConnectionClosed as closed:
                outcomes.append(closed.code)

        for size in (50_000, 50_000, 9_800):  # the link takes one of them, and the outbox is full
            await client.send(Hello("x" * size))
            await settle()
        nursery.start_soon(ask)
        await settle()
        link = link_of(client)
        link.outbox.wait_for_room(_Breaker(link))
        await server.receive()
        await settle()
        assert outcomes == [1006]
        assert (trio.current_time(), client.stats.pending) == (0, 0)


async def test_a_request_that_waits_for_room_when_the_link_is_lost_goes_on_the_next(autojump_clock: MockClock) -> None:
    async with (
        open_pair(limits=Limits(ping_interval=math.inf, outbox_bytes=60_000)) as (client, server),
        trio.open_nursery() as nursery,
    ):
        answers: list[User] = []

        async def ask() -> None:
            answers.append(await client.request(GetUser("1")))

        for size in (50_000, 50_000, 9_800):
            await client.send(Hello("x" * size))
            await settle()
        nursery.start_soon(ask)
        await settle()
        server.peer.cut()
        await settle()
        assert (client.stats.pending, client.stats.queued) == (1, 1)
        await client.wait_open()
        server.send("USER", {"name": "n"}, id=await server.asked())
        await settle()
        assert answers == [User("n")]


@pytest.mark.parametrize("how", ["send", "request"])
async def test_who_sends_on_a_link_that_cannot_be_written_gives_it_up_though_the_reader_has_not_seen_it(
    how: str, autojump_clock: MockClock
) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        inside: Any = server.links[0][0]
        inside._outbound.break_off(1006, "", forget=True)  # as a socket whose peer has reset it, and that is not read
        await client.send(Hello("lost"))  # which nobody can know
        await settle()
        assert client.state == "open"

        async def go_on() -> None:
            if how == "send":
                await client.send(Hello("a"))
            else:
                assert await client.request(GetUser("1")) == User("n")

        nursery.start_soon(go_on)
        await settle()
        assert (client.state, client.stats.queued) == ("reconnecting", 1)
        await client.wait_open()
        received = await server.receive()
        if how == "request":
            server.send("USER", {"name": "n"}, id=received["meta"]["correlationId"])
        else:
            assert received["payload"] == {"name": "a"}


@pytest.mark.parametrize("code", [1001, 1012, 4000])
async def test_an_answer_that_comes_just_before_the_close_is_the_answer(code: int, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer() -> None:
            name = await server.asked()
            server.send("NEWS", {"text": "a"})
            server.send("USER", {"name": "n"}, id=name)
            server.peer.close(code)

        nursery.start_soon(answer)
        async with client.messages(News, capacity=1):
            assert await client.request(GetUser("1")) == User("n")
        await client.wait_open()
        nursery.start_soon(answer)
        async with client.call(GetUser("2")) as call:
            assert [step async for step in call.progress] == []
            assert await call.reply == User("n")


# Heartbeat


async def test_a_link_that_cannot_be_written_is_found_out_though_nobody_sends(autojump_clock: MockClock) -> None:
    async with open_pair(limits=Limits()) as (client, server):
        inside: Any = server.links[0][0]
        inside._outbound.break_off(1006, "", forget=True)
        with client.states() as changes:
            assert (await changes.receive()).state == "open"
            assert str((await changes.receive()).reason) == "connection closed with 1006 (no pong in time)"
        assert trio.current_time() == 30 + 5


async def test_a_pong_is_not_waited_for_when_we_stop_reading_while_it_is_on_its_way(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=10, ping_timeout=5, max_waiting_batches=1)
    async with open_pair(limits=limits) as (client, server), client.messages(News, capacity=1) as stream:
        await trio.sleep(9)
        server.peer.stall()  # the pong would come behind what we do not take
        for number in range(2):  # one for the stream, and one that finds it full
            server.send("NEWS", {"text": str(number)})
            await settle()
        await trio.sleep(3)
        assert not link_of(client).connection.holds_back
        sent = 2
        while not link_of(client).connection.holds_back:
            server.send("NEWS", {"text": str(sent)})
            await settle()
            sent += 1
        await trio.sleep(100)
        assert (client.state, client.stats.connects) == ("open", 1)
        server.peer.resume()
        with trio.fail_after(1):
            assert [(await stream.receive()).text for _ in range(sent)] == [str(number) for number in range(sent)]
        await trio.sleep(100)
        assert (client.state, client.stats.connects) == ("open", 1)


async def test_a_server_that_speaks_is_not_given_up_for_a_pong_that_is_late(autojump_clock: MockClock) -> None:
    async with open_pair(Server(), limits=Limits()) as (client, server), client.messages(News) as stream:
        server.peer.stall()
        for _ in range(30):  # each ping hears something within its five seconds
            await trio.sleep(4)
            server.send("NEWS", {"text": "a"})
            await stream.receive()
        assert (client.state, client.stats.connects) == ("open", 1)
        with client.states() as changes:
            assert (await changes.receive()).state == "open"
            assert str((await changes.receive()).reason) == "connection closed with 1006 (no pong in time)"
        assert trio.current_time() - 120 <= 30 + 5 + 5
