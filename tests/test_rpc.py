from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import NOW, Add, Said, Say, Total, error_of, open_house, settle
from trio_wskit import Context, Limits, Router
from trio_wskit._rpc import Call
from trio_wskit.errors import PayloadInvalid


def test_a_call_begins_without_an_answer() -> None:
    call = Call("c1")
    assert (call.correlation_id, call.answered, call.answer) == ("c1", False, None)
    assert call.next_progress == float("-inf")


# --- one answer ------------------------------------------------------------------------------------------------------


async def test_a_reply_may_come_before_the_handler_ends_and_is_the_only_one(autojump_clock: MockClock) -> None:
    router = Router()
    ended: list[float] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await ctx.reply(Total(1), meta={"more": 1, "type": "X", "correlationId": "forged"})
        await trio.sleep(5)
        ended.append(trio.current_time())
        return Total(2)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        expected = {"type": "TOTAL", "meta": {"timestamp": NOW, "correlationId": "c1", "more": 1}, "payload": {"n": 1}}
        assert await client.heard() == [expected]
        await trio.sleep(6)
        assert await client.heard() == []
        assert ended == [5]


@pytest.mark.parametrize("second", ["reply", "progress", "error", "exception"])
async def test_after_the_answer_nothing_is_sent(autojump_clock: MockClock, second: str) -> None:
    router = Router()
    errors: list[Exception] = []
    router.on_error(lambda error, ctx: errors.append(error))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await ctx.reply(Total(1))
        if second == "reply":
            await ctx.reply(Total(2))
        elif second == "progress":
            ctx.progress(1)
        elif second == "error":
            ctx.error("NOT_FOUND")
        raise KeyError

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        assert [one["type"] for one in await client.heard()] == ["TOTAL"]
        assert len(errors) == 1
        if second in ("reply", "progress"):
            assert isinstance(errors[0], RuntimeError)
            assert f"{second}() after the answer: the call 'ADD'" in str(errors[0])
        assert len(house.logged()) == (second != "error")


async def test_reply_and_progress_belong_to_calls(autojump_clock: MockClock) -> None:
    router = Router()
    caught: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for attempt in (lambda: ctx.progress(1), lambda: ctx.reply(Total(1))):
            try:
                result: Any = attempt()
                await result
            except RuntimeError as error:
                caught.append(str(error))

    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": ""}, call_id="c1")
        assert await client.heard() == []
        assert caught == [
            f"{what}() belongs to handlers registered with rpc(); 'SAY' is an event" for what in ("progress", "reply")
        ]


@pytest.mark.parametrize("wrong", [Said("a"), None, Total("x")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def test_a_reply_that_is_refused_leaves_the_call_unanswered(autojump_clock: MockClock, wrong: object) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with pytest.raises((TypeError, PayloadInvalid)):
            await ctx.reply(wrong)
        return Total(2)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        assert [one["payload"] for one in await client.heard()] == [{"n": 2}]


async def test_a_reply_that_is_cancelled_while_it_waits_leaves_the_call_unanswered(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        for _ in range(3):
            await ctx.send(Said())
        with trio.move_on_after(1) as scope:
            await ctx.reply(Total(1))
        assert scope.cancelled_caught
        return Total(2)

    async with open_house(router, limits=Limits(outbox_messages=2)) as house:
        client = await house.connect(capacity=10)
        client.peer.stall()
        client.send("ADD", {}, call_id="c1")
        await trio.sleep(3)
        client.peer.resume()
        heard = [*await client.heard(), *await client.heard()]
        assert [one["payload"].get("n") for one in heard] == [None, None, None, 2]


async def test_a_reply_that_is_cancelled_from_the_start_sends_nothing(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with trio.CancelScope() as scope:
            scope.cancel()
            await ctx.reply(Total(1))
        return Total(2)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        assert [one["payload"] for one in await client.heard()] == [{"n": 2}]


async def test_an_abort_while_the_reply_waits_for_room_is_answered_cancelled(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        for _ in range(3):
            await ctx.send(Said())
        return Total(1)

    async with open_house(router, limits=Limits(outbox_messages=1)) as house:
        client = await house.connect(capacity=10)
        client.peer.stall()
        client.send("ADD", {}, call_id="c1")
        await settle()
        client.send("$ws:abort", call_id="c1")
        await settle()
        client.peer.resume()
        heard = [*await client.heard(), *await client.heard()]
        assert error_of(heard[-1]) == "CANCELLED"


# --- progress --------------------------------------------------------------------------------------------------------


async def test_progress_comes_in_order_before_the_answer_under_both_keys(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        assert ctx.progress({"done": 1})
        assert ctx.progress(Said("half"))
        await trio.sleep(1)
        assert ctx.progress(None)
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        await trio.sleep(2)
        *progress, total = await client.heard()
        meta = {"timestamp": NOW, "correlationId": "c1"}
        assert progress == [
            {"type": "$ws:rpc-progress", "meta": meta, "payload": value, "data": value}
            for value in ({"done": 1}, {"text": "half"}, None)
        ]
        assert total["type"] == "TOTAL"


async def test_progress_is_throttled_from_the_last_one_sent(autojump_clock: MockClock) -> None:
    router = Router()
    sent: list[float] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        for _ in range(25):
            if ctx.progress(trio.current_time(), throttle=1.0):
                sent.append(trio.current_time())
            await trio.sleep(0.25)
        assert ctx.progress("always")
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        await trio.sleep(10)
        assert sent == [0, 1, 2, 3, 4, 5, 6]
        assert len(await client.heard()) == 9


async def test_progress_of_a_call_without_an_id_reaches_nobody(autojump_clock: MockClock) -> None:
    router = Router()
    results: list[bool] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        results.append(ctx.progress(1))
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {})
        assert [one["type"] for one in await client.heard()] == ["TOTAL"]
        assert results == [False]


async def test_progress_is_dropped_for_a_client_that_does_not_read_and_the_answer_is_not(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    results: list[bool] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        for n in range(10):
            results.append(ctx.progress(n))
            await trio.sleep(0.1)
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect(capacity=50)
        client.peer.stall()
        client.send("ADD", {}, call_id="c1")
        await trio.sleep(2)
        assert results[0]
        assert not results[-1]
        client.peer.resume()
        heard = await client.heard()
        assert len(heard) == results.count(True) + 1
        assert heard[-1]["type"] == "TOTAL"


async def test_progress_that_finds_no_room_in_a_batch_is_dropped(autojump_clock: MockClock) -> None:
    router = Router()
    results: list[bool] = []

    @router.rpc(Add)
    def add(ctx: Context[Add]) -> Total:
        results.extend(ctx.progress(n) for n in range(5))
        return Total(1)

    async with open_house(router, limits=Limits(outbox_messages=3)) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        assert len(await client.heard()) == 4
        assert results == [True, True, True, False, False]


async def test_progress_that_is_not_json_is_an_error(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with pytest.raises(PayloadInvalid):
            ctx.progress(object())
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        assert len(await client.heard()) == 1
