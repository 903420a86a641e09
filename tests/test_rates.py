from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, Say, Total, error_of, open_house, raw
from trio_wskit import Admission, Context, LimitExceeded, Limits, Request, Router
from trio_wskit.limiter import Policy


def listening(told: list[LimitExceeded], said: list[str]) -> Router:
    router = Router()
    router.on_limit_exceeded(told.append)

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        said.append(ctx.payload.text)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(ctx.payload.n)
        return Total(0)

    return router


def user_of(who: Admission) -> str | None:
    user: str = who.data["user"]
    return None if user == "/nobody" else user


def limits(**options: Any) -> Limits:
    return Limits(ping_interval=math.inf, **options)


async def test_messages_over_the_rate_are_refused_and_the_wait_is_exact(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    said: list[str] = []
    async with open_house(listening(told, said), limits=limits(message_rate=Policy(3, 2))) as house:
        client = await house.connect()
        client.say("a", "b", "c", "d")
        client.send("ADD", {"n": 0}, call_id="1")
        event, call = await client.heard()
        assert (event["type"], error_of(event)) == ("ERROR", "RESOURCE_EXHAUSTED")
        assert event["payload"]["retryAfterMs"] == 500
        assert call["meta"]["correlationId"] == "1"
        assert said == ["a", "b", "c"]
        assert told == [LimitExceeded("rate", 4, 3, client.client_id)] * 2
        await trio.sleep(0.5)
        client.say("e")
        assert await client.heard() == []
        assert said[3:] == ["e"]


async def test_bytes_count_like_messages(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    said: list[str] = []
    size = len(raw("SAY", {"text": "a"}))
    async with open_house(listening(told, said), limits=limits(byte_rate=Policy(2 * size, size))) as house:
        client = await house.connect()
        client.say("a", "b", "c")
        (refused,) = await client.heard()
        assert error_of(refused) == "RESOURCE_EXHAUSTED"
        assert refused["payload"]["retryAfterMs"] == 1000
        assert said == ["a", "b"]
        assert (told[0].type, told[0].observed, told[0].limit) == ("rate", 3 * size, 2 * size)
        await trio.sleep(2)
        client.say("x" * 5 * size)  # more than a full bucket costs all of it
        await trio.sleep(0.5)
        client.say("y")
        assert [error_of(one) for one in await client.heard()] == ["RESOURCE_EXHAUSTED"]
        assert said[2:] == ["x" * 5 * size]


async def test_what_one_bucket_refuses_the_other_is_not_charged_for(autojump_clock: MockClock) -> None:
    said: list[str] = []
    size = len(raw("SAY", {"text": "a"}))
    both = limits(message_rate=Policy(3, 0.001), byte_rate=Policy(size, size))
    async with open_house(listening([], said), limits=both) as house:
        client = await house.connect()
        for text in "abc":
            client.say(text, "refused")
            await trio.sleep(1)
        assert said == ["a", "b", "c"]
        await client.heard()


@pytest.mark.parametrize(("mode", "code"), [("send", None), ("close", 1013), ("custom", None)])
async def test_what_is_over_the_rate_gets_what_the_limits_say(
    autojump_clock: MockClock, mode: Any, code: int | None
) -> None:
    told: list[LimitExceeded] = []
    options = limits(message_rate=Policy(1, 1), on_exceeded=mode)
    async with open_house(listening(told, []), limits=options) as house:
        client = await house.connect()
        client.say("a", "b")
        if code is not None:
            assert await client.closed() == (code, "too many messages")
        else:
            assert [error_of(one) for one in await client.heard()] == (["RESOURCE_EXHAUSTED"] if mode == "send" else [])
            assert client.session.close_code is None
        assert len(told) == 1


async def test_an_abort_is_obeyed_whatever_the_rate_and_garbage_is_refused_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with open_house(listening([], []), limits=limits(message_rate=Policy(1, 0.001))) as house:
        client = await house.connect()
        client.send("ADD", {"n": 50}, call_id="1")
        client.send("$ws:abort", correlationId="1")
        client.peer.send_nowait("garbage")
        await trio.sleep(1)
        assert sorted(error_of(one) for one in await client.heard()) == ["CANCELLED", "RESOURCE_EXHAUSTED"]


async def test_too_many_that_wait_are_refused(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    router = listening(told, [])
    begun: list[str] = []
    inner = Router()

    @inner.on(Say)
    async def slow(ctx: Context[Say]) -> None:
        begun.append(ctx.payload.text)
        await trio.sleep(1)

    router.merge(inner, on_conflict="replace")
    async with open_house(router, limits=limits(max_pending=2)) as house:
        client = await house.connect()
        client.say("a")
        await trio.sleep(0.1)
        client.say("b", "c", "d")
        (refused,) = await client.heard()
        assert (error_of(refused), refused["payload"]["details"]) == ("RESOURCE_EXHAUSTED", {"limit": 2})
        assert told == [LimitExceeded("backpressure", 3, 2, client.client_id)]
        await trio.sleep(5)
        client.say("e", "f")
        await trio.sleep(5)
        assert begun == ["a", "b", "c", "e", "f"]


async def test_a_hook_that_raises_changes_nothing(autojump_clock: MockClock) -> None:
    said: list[str] = []
    router = listening([], said)

    @router.on_limit_exceeded
    def raises(info: LimitExceeded) -> None:
        raise KeyError(info.type)

    async with open_house(router, limits=limits(message_rate=Policy(1, 1))) as house:
        client = await house.connect()
        client.say("a", "b")
        assert [error_of(one) for one in await client.heard()] == ["RESOURCE_EXHAUSTED"]
        assert len(house.logged()) == 1


async def test_calls_beyond_those_in_flight_are_told_of(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    async with open_house(listening(told, []), limits=limits(max_in_flight=1)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 5}, call_id="1")
        client.send("ADD", {"n": 5}, call_id="2")
        await client.heard()
        assert told == [LimitExceeded("backpressure", 2, 1, client.client_id)]


async def test_connections_of_one_identity_are_bounded(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []

    async def authenticate(request: Request) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"user": request.path}

    options: dict[str, Any] = {
        "authenticate": authenticate,
        "identity": user_of,
        "limits": limits(max_connections_per_identity=2),
    }
    async with open_house(listening(told, []), **options) as house:
        ann = [await house.connect(Request(target="/ann")) for _ in range(3)]
        assert [client.refused and client.refused.status for client in ann] == [None, None, 429]
        assert ann[0].session.identity == "/ann"
        bob = await house.connect(Request(target="/bob"))
        nobody = [await house.connect(Request(target="/nobody")) for _ in range(3)]
        assert [client.refused for client in (bob, *nobody)] == [None] * 4
        assert nobody[0].session.identity == nobody[0].client_id
        await ann[0].leave()
        assert (await house.connect(Request(target="/ann"))).refused is None
        assert told == [LimitExceeded("connections", 3, 2, None)]
    app: Any = house.app
    assert app.door._places_by_identity == {}


async def test_an_identity_that_fails_is_500_and_holds_no_place(autojump_clock: MockClock) -> None:
    async with open_house(Router(), identity=user_of) as house:
        client: Client = await house.connect()
        assert client.refused is not None
        assert client.refused.status == 500
        assert len(house.logged()) == 1
