from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Say, Total, error_of, open_house
from trio_wskit import Context, Limits, Router


@pytest.mark.parametrize(
    ("asked", "own", "seconds"), [(None, None, 30), (5_000, None, 5), (90_000, None, 30), (None, 60, 60), (9_000, 4, 4)]
)
async def test_a_call_knows_its_time_before_and_after_it_waited(
    autojump_clock: MockClock, asked: int | None, own: float | None, seconds: float
) -> None:
    router = Router()
    seen: list[float] = []

    @router.rpc(Add, timeout=own)
    async def add(ctx: Context[Add]) -> Total:
        start = trio.current_time()
        seen.extend((ctx.deadline - start, ctx.time_remaining()))
        await trio.sleep(1)
        seen.extend((ctx.deadline - start, ctx.time_remaining() + 1, trio.current_effective_deadline() - start))
        return Total(0)

    async with open_house(router, limits=Limits(call_timeout=30, ping_interval=math.inf)) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1", **({} if asked is None else {"timeoutMs": asked}))
        await trio.sleep(2)
    assert seen == [pytest.approx(seconds)] * 5


async def test_what_a_call_awaits_inherits_what_is_left_of_its_time(autojump_clock: MockClock) -> None:
    router = Router()
    left: list[float] = []

    async def nested() -> None:
        await trio.lowlevel.checkpoint()
        left.append(trio.current_effective_deadline() - trio.current_time())
        with trio.move_on_after(100):  # asking for more gives no more
            await trio.sleep_forever()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nested)
        return Total(0)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1", timeoutMs=5_000)
        await trio.sleep(5.5)
        assert left == [pytest.approx(3)]
        assert [error_of(one) for one in await client.heard()] == ["DEADLINE_EXCEEDED"]


async def test_time_remaining_is_never_below_0(autojump_clock: MockClock) -> None:
    router = Router()
    left: list[float] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
            left.append(ctx.time_remaining())
        return Total(0)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1", timeoutMs=1_000)
        await trio.sleep(6)
    assert left == [0.0]


async def test_an_event_without_a_limit_has_no_deadline(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[float] = []

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        seen.extend((ctx.deadline, ctx.time_remaining()))

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        await client.heard()
    assert seen == [math.inf, math.inf]


async def test_a_shield_lets_a_piece_finish_and_then_the_handler_is_cancelled(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with ctx.shield(5):
            await trio.sleep(3)
            log.append("saved")
        await trio.sleep(1)
        log.append("never")
        return Total(0)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1")
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="1")
        await trio.sleep(5)
        assert [error_of(one) for one in await client.heard()] == ["CANCELLED"]
    assert log == ["saved"]


async def test_a_shield_holds_no_longer_than_it_says(autojump_clock: MockClock) -> None:
    router = Router()
    ended: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            with ctx.shield(5):
                await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with open_house(router) as house:
        client = await house.connect()
        start = trio.current_time()
        client.say("a")
        await trio.sleep(1)
        await client.leave()
    assert ended == [pytest.approx(start + 5)]


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
async def test_a_shield_is_bounded(autojump_clock: MockClock, seconds: float) -> None:
    router = Router()
    raised: list[str] = []

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        with pytest.raises(ValueError, match="finite number of seconds above 0") as error:
            ctx.shield(seconds)
        raised.append(str(error.value))

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        await client.heard()
    assert len(raised) == 1
