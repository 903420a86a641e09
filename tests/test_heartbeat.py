from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Client, House, Said, Say, open_house, settle
from trio_wskit import ConnectionClosed, Context, Limits, Router

LIMITS = Limits(ping_interval=8, ping_timeout=3)


async def watched(
    house: House, monkeypatch: pytest.MonkeyPatch, *, ping: Callable[[], Awaitable[None]] | None = None
) -> tuple[Client, list[float]]:
    """A client, and when it was pinged; `ping` is what its transport does then."""
    client = await house.connect()
    times: list[float] = []
    answer = ping or client.transport.ping

    async def watch() -> None:
        times.append(trio.current_time())
        await answer()

    monkeypatch.setattr(client.transport, "ping", watch)
    return client, times


def busy(seconds: float) -> Router:
    """SAY takes so many seconds."""
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(seconds)

    return router


async def hold_back(client: Client) -> None:
    """Send until the server does not read any more."""
    while not client.session.connection.holds_back:
        client.say("")
        await settle()


# --- pings -----------------------------------------------------------------------------------------------------------


async def test_every_client_is_pinged_once_an_interval(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(limits=LIMITS) as house:
        watches = [await watched(house, monkeypatch) for _ in range(3)]
        await trio.sleep(33)
        assert [times for _, times in watches] == [[8, 16, 24, 32]] * 3


async def test_the_first_ping_comes_an_interval_after_the_client_and_at_most_an_eighth_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(limits=LIMITS) as house:
        await trio.sleep(2.5)
        _, times = await watched(house, monkeypatch)
        await trio.sleep(20)
        assert 10.5 <= times[0] <= 11.5
        assert 8 <= times[1] - times[0] <= 9


async def test_without_an_interval_nobody_is_pinged(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_house(limits=Limits(ping_interval=math.inf)) as house:
        client, times = await watched(house, monkeypatch)
        client.peer.stall()
        await trio.sleep(900)
        assert times == []
        assert client.session.close_code is None


async def test_the_latency_is_what_the_last_pong_took_and_handlers_see_it(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[float | None] = []

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        seen.append(ctx.latency)

    async with open_house(router, limits=LIMITS) as house:
        client = await house.connect()
        assert client.session.latency is None
        for delay in (0.25, 0.5):
            client.peer.delay(delay)
            client.say("")
            await trio.sleep(9)
        client.say("")
        await trio.sleep(1)
        assert seen == [None, 0.5, 1.0]
        assert client.session.latency == 1.0


async def test_a_ping_that_is_answered_leaves_no_task(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        clients = [await house.connect() for _ in range(3)]
        idle = house.tasks
        for client in clients:
            client.peer.delay(0.25)
        await trio.sleep(8.25)
        assert house.tasks == idle + 3
        await trio.sleep(0.5)
        assert house.tasks == idle


async def test_who_has_left_is_pinged_no_more(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_house(limits=LIMITS) as house:
        client, times = await watched(house, monkeypatch)
        await trio.sleep(9)
        await client.leave()
        await trio.sleep(50)
        assert times == [8]


# --- no pong ---------------------------------------------------------------------------------------------------------


async def test_a_peer_that_does_not_answer_in_time_is_cut_off_and_the_others_are_not(
    autojump_clock: MockClock,
) -> None:
    ended: list[float] = []
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with open_house(router, limits=LIMITS) as house:
        dead, alive = await house.connect(), await house.connect()
        dead.say("")
        await settle()
        dead.peer.stall()
        with trio.fail_after(100):
            await dead.served.wait()
        assert trio.current_time() == 8 + 3
        assert ended == [8 + 3]
        assert (dead.session.close_code, dead.session.close_reason) == (1006, "no pong in time")
        assert (await dead.closed())[0] == 1006
        assert dead.session.latency is None
        await trio.sleep(50)
        assert alive.session.close_code is None
        await alive.session.send(Said("hello"))
        assert await alive.texts() == ["hello"]


async def test_a_peer_that_answers_late_but_in_time_stays(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(8 + 2.5)
        client.peer.resume()
        await trio.sleep(50)
        assert client.session.close_code is None


async def test_a_dead_peer_is_found_while_its_handler_is_stuck_in_a_send(autojump_clock: MockClock) -> None:
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
        assert trio.current_time() == 8 + 3


async def test_without_a_limit_a_pong_may_take_for_ever(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(ping_interval=8, ping_timeout=math.inf)) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(500)
        assert client.session.close_code is None
        client.peer.resume()
        await trio.sleep(1)
        assert client.session.latency is not None


@pytest.mark.parametrize("how", ["closes", "is cut off"])
async def test_who_leaves_while_a_pong_is_waited_for_is_no_matter(autojump_clock: MockClock, how: str) -> None:
    async with open_house(limits=LIMITS) as house:
        client = await house.connect()
        client.peer.delay(1)
        await trio.sleep(8.5)
        if how == "closes":
            client.peer.close()
        else:
            client.peer.cut()
        await settle()
        assert client.session.close_code == (1000 if how == "closes" else 1006)
        assert trio.current_time() == 8.5
        await trio.sleep(50)


async def test_an_app_that_ends_waits_for_no_pong(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        client = await house.connect()
        client.peer.stall()
        await trio.sleep(8.5)
    assert trio.current_time() == 8.5


# --- while the server does not read ----------------------------------------------------------------------------------


async def test_who_is_held_back_is_not_pinged_and_not_cut_off(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(busy(25), limits=limits) as house:
        client, times = await watched(house, monkeypatch)
        await hold_back(client)
        client.peer.stall()  # as it looks to us: its pongs are behind what we do not read
        await trio.sleep(24)
        assert client.session.connection.holds_back
        assert times == []
        assert client.session.close_code is None
        client.peer.resume()
        await trio.sleep(100)
        assert not client.session.connection.holds_back
        assert times
        assert client.session.close_code is None


async def test_a_pong_that_is_late_because_the_server_stopped_reading_is_not_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(ping_interval=8, ping_timeout=3, max_waiting_batches=1)
    async with open_house(busy(5), limits=limits) as house:
        client, times = await watched(house, monkeypatch)
        client.peer.stall()
        await trio.sleep(9)
        assert times == [8]
        await hold_back(client)
        await trio.sleep(3)
        assert client.session.connection.holds_back
        assert client.session.close_code is None
        with trio.fail_after(100):  # once the server reads again, it counts
            await client.served.wait()
        assert times[1:]
        assert trio.current_time() == times[-1] + 3
        assert client.session.close_code == 1006


# --- a transport that fails ------------------------------------------------------------------------------------------


async def test_a_ping_that_fails_by_a_bug_ends_its_own_connection_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with open_house(limits=LIMITS) as house:
        broken, _ = await watched(house, monkeypatch, ping=bug)
        other, times = await watched(house, monkeypatch)
        with trio.fail_after(100):
            await broken.served.wait()
        assert trio.current_time() == 8
        assert (broken.session.close_code, broken.session.close_reason) == (1006, "a ping failed")
        assert house.logged() == [f"the ping of client {broken.client_id} failed"]
        await trio.sleep(20)
        assert times == [8, 16, 24]
        assert other.session.close_code is None


@pytest.mark.parametrize(("patience", "ends"), [(3, 11), (math.inf, None)])
async def test_a_link_that_says_it_is_closed_and_does_not_end_has_as_long_as_a_pong(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, patience: float, ends: float | None
) -> None:
    async def closed() -> None:
        await trio.lowlevel.checkpoint()
        raise ConnectionClosed(1006)

    async with open_house(limits=Limits(ping_interval=8, ping_timeout=patience)) as house:
        client, _ = await watched(house, monkeypatch, ping=closed)
        with trio.move_on_after(100):
            await client.served.wait()
        assert trio.current_time() == (ends or 100)
        assert client.session.close_code == (1006 if ends else None)
        assert client.session.latency is None
