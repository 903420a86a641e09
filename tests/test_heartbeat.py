from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Client, House, Said, Say, open_house, raw, settle
from trio_wskit import ConnectionClosed, Context, Limits, Router


def count_pings(client: Client) -> list[float]:
    """The times of the pings from now on."""
    pings: list[float] = []
    ping = client.transport.ping

    async def counted() -> None:
        pings.append(trio.current_time())
        await ping()

    client.transport.ping = counted  # type: ignore[method-assign]
    return pings


async def test_every_connection_is_pinged_each_interval(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits()) as house:
        client = await house.connect()
        pings = count_pings(client)
        await trio.sleep(100)
        assert pings == [30, 60, 90]
        assert client.session.close_code is None


async def test_connections_of_different_age_are_pinged_at_different_times(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8)) as house:
        pings: list[list[float]] = []
        for _ in range(3):
            pings.append(count_pings(await house.connect()))
            await trio.sleep(2)
        await trio.sleep(3)
        assert pings == [[8], [], []]
        await trio.sleep(16)
        assert pings == [[8, 16, 24], [10, 18], [12, 20]]


async def test_the_latency_is_what_the_last_pong_took(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[float | None] = []
    router.on(Say)(lambda ctx: seen.append(ctx.latency))
    async with open_house(router, limits=Limits()) as house:
        client = await house.connect()
        client.say("")
        await trio.sleep(31)
        assert client.session.latency == 0
        client.peer.delay(0.25)
        await trio.sleep(30)
        assert client.session.latency == 0.5
        client.say("")
        await trio.sleep(1)
        assert seen == [None, 0.5]


async def test_a_peer_that_does_not_answer_in_time_is_aborted(autojump_clock: MockClock) -> None:
    router = Router()
    ended: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with open_house(router, limits=Limits(ping_interval=8, ping_timeout=3)) as house:
        client, other = await house.connect(), await house.connect()
        client.say("")
        await settle()
        client.peer.stall()
        await client.served.wait()
        assert trio.current_time() == 11
        assert ended == [11]
        assert (client.session.close_code, client.session.close_reason) == (1006, "no pong in time")
        assert other.session.close_code is None


async def test_a_peer_that_answers_just_in_time_lives(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=3)) as house:
        client = await house.connect()
        client.peer.delay(1.4)
        await trio.sleep(50)
        assert client.session.close_code is None
        assert client.session.latency == pytest.approx(2.8)


async def held_back(house: House) -> Client:
    """A client whose messages are not read, for a handler that takes 50 seconds."""
    client = await house.connect()
    client.say("stuck")
    await settle()
    client.say("waits")
    await settle()
    assert client.session.connection.holds_back
    return client


def slow_router() -> Router:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(50)

    return router


async def test_who_is_held_back_is_not_pinged_for_his_pong_could_not_be_seen(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(slow_router(), limits=limits) as house:
        client = await held_back(house)
        pings = count_pings(client)
        client.peer.stall()
        await trio.sleep(45)
        assert pings == []
        client.peer.resume()
        await trio.sleep(60)
        assert pings[0] == 56
        assert client.session.close_code is None


async def test_a_pong_that_is_late_because_we_hold_back_is_not_counted(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(slow_router(), limits=limits) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(9)  # the ping is on its way
        client.peer.send_nowait(raw("SAY", {"text": "stuck"}))
        await settle()
        client.say("waits")
        await trio.sleep(5)
        assert client.session.connection.holds_back
        assert client.session.close_code is None
        client.peer.resume()


async def test_a_pong_may_be_late_where_we_held_back_for_a_part_of_its_time(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(1)

    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(router, limits=limits) as house:
        client = await house.connect()
        seen: list[tuple[bool, int | None]] = []
        client.peer.stall()
        await trio.sleep(9)  # the ping is on its way
        for text in ("stuck", "waits"):
            client.peer.send_nowait(raw("SAY", {"text": text}))
            await settle()
        for seconds in (0, 4, 9):  # the next pong has no excuse
            await trio.sleep(seconds)
            seen.append((client.session.connection.holds_back, client.session.close_code))
        assert seen == [(True, None), (False, None), (False, 1006)]


async def test_inf_switches_pings_off(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=math.inf)) as house:
        client = await house.connect()
        pings = count_pings(client)
        client.peer.stall()
        await trio.sleep(900)
        assert pings == []


async def test_without_a_timeout_a_ping_waits_for_ever_and_aborts_nobody(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=math.inf)) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(100)
        assert client.session.close_code is None
        client.peer.resume()
        await trio.sleep(1)
        assert client.session.latency is not None


@pytest.mark.parametrize("seconds", [3, math.inf])
async def test_a_ping_of_a_link_that_ends_is_no_matter(autojump_clock: MockClock, seconds: float) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=seconds)) as house:
        client = await house.connect()
        before = house.tasks

        async def gone() -> None:
            client.peer.close()
            await trio.sleep(0.1)
            raise ConnectionClosed(1000)

        client.transport.ping = gone  # type: ignore[method-assign]
        await trio.sleep(9)
        assert client.session.close_code == 1000
        assert house.tasks < before


async def test_a_link_that_only_seems_to_be_ending_has_as_long_as_a_pong(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=3)) as house:
        client = await house.connect()

        async def ending() -> None:
            raise ConnectionClosed(1000)

        client.transport.ping = ending  # type: ignore[method-assign]
        await client.served.wait()
        assert trio.current_time() == 11
        assert client.session.close_code == 1006


async def test_a_ping_that_fails_ends_its_own_link_and_no_other(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8)) as house:
        client, other = await house.connect(), await house.connect()

        async def broken() -> None:
            raise OSError("a bug")

        client.transport.ping = broken  # type: ignore[method-assign]
        await client.served.wait()
        assert client.session.close_reason == "a ping failed"
        pings: Any = count_pings(other)
        await trio.sleep(10)
        assert len(pings) == 1
        assert house.logged() == [f"the ping of client {client.client_id} failed"]


async def test_who_has_left_is_not_pinged(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_close
    async def slow(session: object) -> None:
        await trio.sleep(9)

    async with open_house(router, limits=Limits(ping_interval=8)) as house:
        client = await house.connect()
        pings = count_pings(client)
        await trio.sleep(7)
        client.peer.close()
        await trio.sleep(3)
        assert len(house.app.sessions) == 1
        assert pings == []


async def test_a_dead_peer_is_found_while_a_handler_is_stuck_in_a_send(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for _ in range(10):
            await ctx.send(Said("x" * 100))

    limits = Limits(ping_interval=8, ping_timeout=3, outbox_messages=1, write_timeout=math.inf)
    async with open_house(router, limits=limits) as house:
        client = await house.connect(capacity=100)
        client.peer.stall()
        client.say("")
        with trio.fail_after(100):
            await client.served.wait()
        assert trio.current_time() == 11


async def test_once_the_server_reads_again_a_missing_pong_counts(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(slow_router(), limits=limits) as house:
        client = await held_back(house)
        pings = count_pings(client)
        client.peer.stall()
        with trio.fail_after(200):
            await client.served.wait()
        assert pings == [56]
        assert trio.current_time() == 59


async def test_a_ping_costs_a_task_only_until_it_is_answered_and_an_app_that_ends_waits_for_none(
    autojump_clock: MockClock,
) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=3)) as house:
        clients = [await house.connect() for _ in range(3)]
        idle = house.tasks
        for client in clients:
            client.peer.delay(0.25)
        await trio.sleep(8.25)
        assert house.tasks == idle + 3
        await trio.sleep(0.5)
        assert house.tasks == idle
        clients[0].peer.stall()
        await trio.sleep(8)
    assert trio.current_time() == 16.75


async def test_pings_do_not_pile_up_for_a_peer_that_is_waited_for_with_patience(autojump_clock: object) -> None:
    async with open_house(Router(), limits=Limits(ping_interval=1, ping_timeout=math.inf)) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(2)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(100)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        client.peer.resume()
        await trio.sleep(3)
        assert client.session.latency is not None
