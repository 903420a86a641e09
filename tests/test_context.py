from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import NOW, Add, Client, Said, Say, Total, error_of, open_house, raw, settle
from trio_wskit import Context, Limits, Request, Router, WsKitError
from trio_wskit.errors import PayloadInvalid


async def test_a_context_is_what_came_and_from_whom(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[Context[Say]] = []
    router.on(Say)(seen.append)

    async def authenticate(request: Request) -> str:
        return f"somebody at {request.path}"

    async with open_house(router, authenticate=authenticate) as house:
        client = await house.connect(Request(target="/chat"))
        client.send("SAY", {"text": "a"}, call_id="c1", mine=5, clientId="forged", receivedAt=1)
        client.say("b")
        await settle()
        first, second = seen
        assert first.type == "SAY"
        assert first.payload == Say("a")
        assert first.meta == {"correlationId": "c1", "mine": 5}
        assert first.correlation_id == "c1"
        assert first.client_id == client.client_id == first.session.client_id
        assert first.data == "somebody at /chat"
        assert first.topics is first.session.topics
        assert not first.is_rpc
        assert first.latency is None
        assert second.meta == {}
        assert second.correlation_id is None
        assert second.data is first.data
        assert second.auth is first.auth


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_a_message_carries_the_time_and_further_meta_but_no_meta_of_the_protocols(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said("1"))
        await ctx.send(Said("2"), meta={"more": 1, "type": "X", "correlationId": "forged"})
        await ctx.send(Said("3"), inherit_correlation_id=True)
        ctx.send_nowait(Said("4"), meta={"correlationId": "forged"}, inherit_correlation_id=True)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": ""}, call_id="c1")
        assert [one["meta"] for one in await client.heard()] == [
            {"timestamp": NOW},
            {"timestamp": NOW, "more": 1},
            {"timestamp": NOW, "correlationId": "c1"},
            {"timestamp": NOW, "correlationId": "c1"},
        ]
        client.say("")  # without an id there is none to inherit
        assert [one["meta"].get("correlationId") for one in await client.heard()] == [None] * 4


@pytest.mark.parametrize("limits", [Limits(outbox_messages=3), Limits(outbox_bytes=250)], ids=["messages", "bytes"])
async def test_send_waits_while_the_outbox_is_full(autojump_clock: MockClock, limits: Limits) -> None:
    router = Router()
    accepted: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for n in range(20):
            await ctx.send(Said(str(n)))
            accepted.append(trio.current_time())

    async with open_house(router, limits=limits) as house:
        client = await house.connect(capacity=100)
        client.peer.stall()
        client.say("")
        await trio.sleep(5)
        assert 1 < len(accepted) < 8
        assert set(accepted) == {0}
        client.peer.resume()
        texts: list[str] = []
        while len(texts) < 20:
            texts += await client.texts()
        assert texts == list(map(str, range(20)))
        assert set(accepted) == {0, 5}


async def test_send_nowait_would_block_where_send_waits(autojump_clock: MockClock) -> None:
    router = Router()
    sent: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        with suppress(trio.WouldBlock):
            while True:
                ctx.send_nowait(Said())
                sent.append(1)

    async with open_house(router, limits=Limits(outbox_messages=3)) as house:
        client = await house.connect(capacity=10)
        client.peer.stall()
        client.say("")
        await settle()
        assert 3 <= len(sent) <= 5


async def test_a_send_that_is_cancelled_while_it_waits_has_sent_nothing_and_the_next_one_works(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    given_up: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for n in range(6):
            with trio.move_on_after(1) as scope:
                await ctx.send(Said(str(n)))
            if scope.cancelled_caught:
                given_up.append(n)
        ctx.session.data["done"] = True

    async with open_house(router, limits=Limits(outbox_messages=2)) as house:
        client = await house.connect(capacity=10)
        client.peer.stall()
        client.say("")
        await trio.sleep(10)
        assert given_up
        client.peer.resume()
        assert await client.texts() == [str(n) for n in range(6) if n not in given_up]
        client.say("")
        assert len(await client.texts()) == 6


async def test_senders_that_wait_are_served_in_order(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(ctx.payload.n)
        await ctx.send(Said(str(ctx.payload.n)))
        return Total(0)

    async with open_house(router, limits=Limits(outbox_messages=1, max_in_flight=100)) as house:
        client = await house.connect(capacity=10)
        client.peer.stall()
        for n in range(20):
            await client.peer.send(raw("ADD", {"n": n}, call_id=str(n)))
        await trio.sleep(25)
        client.peer.resume()
        heard: list[dict[str, Any]] = []
        while len(heard) < 40:
            heard += await client.heard()
        said = [int(one["payload"]["text"]) for one in heard if one["type"] == "SAID"]
        assert said == list(range(20))


async def test_a_handler_that_only_sends_lets_others_run(autojump_clock: MockClock) -> None:
    router = Router()
    turns: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for n in range(1000):
            await ctx.send(Said(str(n)))
            turns.append(n)

    async def other() -> None:
        while len(turns) < 1000:
            seen.append(len(turns))
            await trio.lowlevel.checkpoint()

    seen: list[int] = []
    async with open_house(router) as house:
        client = await house.connect(capacity=10**6)
        client.say("")
        house.nursery.start_soon(other)
        assert len(await client.texts()) == 1000
        assert len(set(seen)) >= 8


async def test_a_handler_that_only_publishes_lets_others_run(autojump_clock: MockClock) -> None:
    router = Router()
    turns: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for n in range(1000):
            await ctx.publish("nobody", Said(str(n)))
            turns.append(n)

    async def other() -> None:
        while len(turns) < 1000:
            seen.append(len(turns))
            await trio.lowlevel.checkpoint()

    seen: list[int] = []
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await other()
        assert len(set(seen)) >= 8
        await client.heard()


async def test_what_does_not_fit_its_own_schema_is_not_sent(autojump_clock: MockClock) -> None:
    router = Router()
    caught: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for wrong in (Said(5), Said("a")):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            try:
                await ctx.send(wrong)
            except PayloadInvalid as error:
                caught.append(error.issues[0]["path"])

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        assert await client.texts() == ["a"]
        assert caught == ["text"]


async def test_a_publish_may_leave_its_publisher_out(autojump_clock: MockClock) -> None:
    router = Router()
    results: list[tuple[int, int]] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.topics.subscribe("room:1")
        for exclude_self in (False, True):
            result = await ctx.publish(
                "room:1", Said(f"{ctx.payload.text} {exclude_self}"), exclude_self=exclude_self, meta={"more": 1}
            )
            results.append((result.matched_local, result.delivered))

    async with open_house(router) as house:
        one, two = await house.connect(), await house.connect()
        one.say("a")
        await settle()
        two.say("b")
        assert await one.texts() == ["a False", "b False", "b True"]
        (said,) = await two.heard()
        assert said == {"type": "SAID", "meta": {"timestamp": NOW, "more": 1}, "payload": {"text": "b False"}}
        assert results == [(1, 1), (0, 0), (2, 2), (1, 1)]


async def test_error_raises_with_all_that_it_was_given() -> None:
    ctx = Context[Any](cast("Any", None), cast("Any", None), None)
    with pytest.raises(WsKitError) as caught:
        ctx.error("ABORTED", "again", {"a": 1}, retryable=False, retry_after=2)
    error = caught.value
    assert (error.code, error.message, error.details) == ("ABORTED", "again", {"a": 1})
    assert (error.retryable, error.retry_after) == (False, 2)


# --- deadlines -------------------------------------------------------------------------------------------------------


async def test_a_call_knows_its_deadline_and_an_event_has_none(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[tuple[float, float]] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        seen.append((ctx.deadline, ctx.time_remaining()))
        await trio.sleep(1)
        assert trio.current_effective_deadline() == ctx.deadline
        seen.append((ctx.deadline, ctx.time_remaining()))
        return Total(1)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        seen.append((ctx.deadline, ctx.time_remaining()))

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1", timeoutMs=5000)
        client.send("SAY", {}, timeoutMs=5000)
        await trio.sleep(3)
        assert seen == [(5, 5), (math.inf, math.inf), (5, 4)]
        assert len(await client.heard()) == 1


async def test_a_shield_lets_a_piece_finish_for_so_long(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        with ctx.shield(5):
            await trio.sleep(ctx.payload.n)
            log.append("saved")
        await trio.sleep_forever()
        raise AssertionError

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {"n": 3}, call_id="1", timeoutMs=1000)
        client.send("ADD", {"n": 9}, call_id="2", timeoutMs=1000)
        await trio.sleep(6)
        assert log == ["saved"]
        assert {error_of(one) for one in await client.heard()} == {"DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
async def test_a_shield_is_finite(seconds: float) -> None:
    ctx = Context[Any](cast("Any", None), cast("Any", None), None)
    with pytest.raises(ValueError, match="finite number of seconds above 0"):
        ctx.shield(seconds)


# --- closing ---------------------------------------------------------------------------------------------------------


async def test_close_closes_with_the_code_and_what_was_said_before(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said("bye"))
        await ctx.close(4000, "that is all")

    async with open_house(router) as house:
        client: Client = await house.connect()
        client.say("")
        assert await client.texts() == ["bye"]
        assert await client.closed() == (4000, "that is all")
