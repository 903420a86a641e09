from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from tests.sessions import Add, Said, Say, Total, error_of, open_house
from trio_wskit import Context, Limits, Router


def detached_router(log: list[str], seconds: float = 5, **options: Any) -> Router:
    router = Router()

    @router.rpc(Add, detached=True, **options)
    async def add(ctx: Context[Add]) -> Total:
        log.append(f"begin {ctx.payload.n}")
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            log.append(f"cancelled {ctx.payload.n}")
            raise
        log.append(f"end {ctx.payload.n}")
        return Total(ctx.payload.n)

    @router.on(Say, detached=True)
    async def say(ctx: Context[Say]) -> None:
        log.append(f"begin {ctx.payload.text}")
        await trio.sleep(seconds)
        log.append(f"end {ctx.payload.text}")
        await ctx.send(Said(ctx.payload.text))

    return router


async def test_a_detached_handler_goes_on_when_its_client_leaves(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1")
        client.say("x")
        await trio.sleep(1)
        await client.leave()
        assert log == ["begin 1", "begin x"]
        await trio.sleep(5)
        assert sorted(log[2:]) == ["end 1", "end x"]


async def test_what_came_just_before_its_client_left_is_done_all_the_same(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log)) as house:
        client = await house.connect()
        client.say("x", "y")
        await client.leave()
        await trio.sleep(10)
    assert log[:2] == ["begin x", "begin y"]
    assert sorted(log[2:]) == ["end x", "end y"]


async def test_while_its_client_is_there_it_is_answered(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1")
        client.say("x")
        await trio.sleep(6)
        assert sorted(one["type"] for one in await client.heard()) == ["SAID", "TOTAL"]


async def test_detached_handlers_start_in_order_and_beside_one_another(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log)) as house:
        client = await house.connect()
        for n in range(20):
            client.send("ADD", {"n": n}, call_id=str(n))
        await trio.sleep(1)
        assert log == [f"begin {n}" for n in range(20)]
        await trio.sleep(5)
        assert len(await client.heard()) == 20


async def test_an_abort_and_a_deadline_still_cancel_it(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1")
        client.send("ADD", {"n": 2}, call_id="2", timeoutMs=2_000)
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="1")
        await trio.sleep(2)
        answers = {one["meta"]["correlationId"]: error_of(one) for one in await client.heard()}
        assert answers == {"1": "CANCELLED", "2": "DEADLINE_EXCEEDED"}
        assert log == ["begin 1", "begin 2", "cancelled 1", "cancelled 2"]


async def test_an_id_that_runs_detached_is_taken(autojump_clock: MockClock) -> None:
    async with open_house(detached_router([])) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1")
        client.send("ADD", {}, call_id="1")
        (refused,) = await client.heard()
        assert (refused["type"], error_of(refused)) == ("ERROR", "ALREADY_EXISTS")


async def test_there_is_room_for_so_many_in_an_app_and_in_a_connection(autojump_clock: MockClock) -> None:
    log: list[str] = []
    limits = Limits(max_detached=3, max_in_flight=2, ping_interval=1e9)
    async with open_house(detached_router(log), limits=limits) as house:
        one, other = await house.connect(), await house.connect()
        for client in (one, other):
            for n in range(3):
                client.send("ADD", {"n": n}, call_id=str(n))
            await trio.sleep(0.1)
        for client, refused in ((one, ["2"]), (other, ["1", "2"])):
            heard = await client.heard()
            assert [one["meta"]["correlationId"] for one in heard] == refused
            assert {error_of(one) for one in heard} == {"RESOURCE_EXHAUSTED"}
        await trio.sleep(6)
        other.send("ADD", {"n": 3}, call_id="3")
        await trio.sleep(6)
        assert [answer["type"] for answer in await other.heard()] == ["TOTAL", "TOTAL"]


async def test_one_that_fails_harms_nobody(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say, detached=True)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(1)
        raise KeyError("secret")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        await trio.sleep(2)
        assert [error_of(one) for one in await client.heard()] == ["INTERNAL"] * 2
        assert len(house.logged()) == 2


async def test_the_end_of_the_app_cancels_it(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(detached_router(log, seconds=1e6, timeout=1e9)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1")
        await trio.sleep(1)
        await client.leave()
    assert log == ["begin 1", "cancelled 1"]


async def test_children_that_fail_over_being_cancelled_end_no_app(autojump_clock: MockClock) -> None:
    router = Router()

    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("secret")

    @router.rpc(Add, detached=True)
    async def add(ctx: Context[Add]) -> Total:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError("never")

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1")
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="1")
        await trio.sleep(1)
        assert [error_of(one) for one in await client.heard()] == ["CANCELLED"]
        assert len(house.logged()) == 1
