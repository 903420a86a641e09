from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, Say, Total, error_of, open_house
from trio_wskit import ConfigError, Context, Lane, Limits, Router, concurrent, keyed, serial


def logging_router(log: list[str], lane: Lane | None, **options: Any) -> Router:
    """ADD takes n seconds; SAY takes one."""
    router = Router()

    @router.rpc(Add, lane=lane, **options)
    async def add(ctx: Context[Add]) -> Total:
        log.append(f"begin {ctx.correlation_id}")
        try:
            await trio.sleep(ctx.payload.n)
        except trio.Cancelled:
            log.append(f"cancelled {ctx.correlation_id}")
            raise
        log.append(f"end {ctx.correlation_id}")
        return Total(ctx.payload.n)

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        log.append(f"say {ctx.payload.text}")

    return router


def ask(client: Client, *calls: tuple[str, int], **meta: object) -> None:
    for call_id, seconds in calls:
        client.send("ADD", {"n": seconds}, call_id=call_id, **meta)


async def test_a_serial_call_holds_up_everything_behind_it(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, serial)) as house:
        client = await house.connect()
        ask(client, ("a", 2), ("b", 1))
        client.say("x")
        await trio.sleep(4)
        assert log == ["begin a", "end a", "begin b", "end b", "say x"]
        assert [one["meta"]["correlationId"] for one in await client.heard()] == ["a", "b"]


async def test_a_serial_call_can_be_aborted_and_what_is_behind_goes_on(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, serial)) as house:
        client = await house.connect()
        ask(client, ("a", 20), ("b", 1))
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="a")
        await trio.sleep(2)
        assert log == ["begin a", "cancelled a", "begin b", "end b"]
        first, second = await client.heard()
        assert (error_of(first), second["type"]) == ("CANCELLED", "TOTAL")


async def test_the_deadline_of_a_serial_call_is_not_that_of_what_comes_behind(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, serial)) as house:
        client = await house.connect()
        ask(client, ("a", 1), timeoutMs=2_000)
        ask(client, ("b", 5), ("c", 1))
        await trio.sleep(10)
        assert [one["type"] for one in await client.heard()] == ["TOTAL"] * 3


async def test_so_many_run_as_there_are_places_and_the_others_in_order(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, concurrent(2))) as house:
        client = await house.connect()
        ask(client, ("a", 2), ("b", 5), ("c", 1), ("d", 1))
        client.say("x")
        await trio.sleep(0.5)
        assert log == ["begin a", "begin b", "say x"]  # who waits for a place holds up nobody of another route
        await trio.sleep(5)
        assert log[3:] == ["end a", "begin c", "end c", "begin d", "end d", "end b"]
        assert len(await client.heard()) == 4


async def test_who_waits_for_a_place_is_in_flight_can_be_aborted_and_its_time_runs(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, concurrent(1)), limits=Limits(max_in_flight=3)) as house:
        client = await house.connect()
        ask(client, ("a", 5))
        ask(client, ("b", 1), timeoutMs=2_000)
        ask(client, ("c", 1), ("d", 1))
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="c")
        await trio.sleep(6)
        heard = {one["meta"]["correlationId"]: one for one in await client.heard()}
        assert error_of(heard["d"]) == "RESOURCE_EXHAUSTED"
        assert heard["d"]["payload"]["retryAfterMs"] > 0
        assert error_of(heard["b"]) == "DEADLINE_EXCEEDED"
        assert error_of(heard["c"]) == "CANCELLED"
        assert log == ["begin a", "end a"]


async def test_one_at_a_time_of_each_key_in_order_and_the_keys_beside_one_another(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say, lane=keyed(lambda ctx: ctx.payload.text[0]))
    async def say(ctx: Context[Say]) -> None:
        log.append(f"begin {ctx.payload.text}")
        await trio.sleep(2 if ctx.payload.text[0] == "a" else 1)
        log.append(f"end {ctx.payload.text}")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a1", "b1", "a2", "b2")
        await trio.sleep(0.5)
        assert log == ["begin a1", "begin b1"]
        await trio.sleep(1)
        assert log[2:] == ["end b1", "begin b2"]
        await trio.sleep(4)
        assert log[-2:] == ["begin a2", "end a2"]
        inside: Any = client.session
        assert len(inside._dispatcher.lanes) == 0


async def test_a_key_that_fails_is_the_servers_fault_and_a_payload_that_does_not_fit_the_clients(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    def no_key(ctx: Context[Any]) -> str:
        raise LookupError("secret")

    @router.on(Say, lane=keyed(no_key))
    async def say(ctx: Context[Say]) -> None:
        raise AssertionError("never")

    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": 5})
        client.say("a")
        assert [error_of(one) for one in await client.heard()] == ["INVALID_ARGUMENT", "INTERNAL"]
        assert len(house.logged()) == 1


async def test_before_validation_there_is_no_payload_in_a_keyed_lane_either(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[bool] = []

    class Before:
        stage = "envelope"

        async def __call__(self, ctx: Context[Any], call_next: Any) -> Any:
            seen.append(hasattr(ctx, "payload"))
            return await call_next()

    router.use(Before())

    @router.on(Say, lane=keyed(lambda ctx: ctx.payload.text))
    async def say(ctx: Context[Say]) -> None:
        seen.append(hasattr(ctx, "payload"))

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        await client.heard()
    assert seen == [False, True]


async def test_concurrent_events_start_in_order_are_bounded_and_end_with_their_client(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say, lane=concurrent())
    async def say(ctx: Context[Say]) -> None:
        log.append(ctx.payload.text)
        try:
            await trio.sleep_forever()
        finally:
            log.append(f"end {ctx.payload.text}")

    async with open_house(router, limits=Limits(max_in_flight=3, ping_interval=1e9)) as house:
        client = await house.connect()
        client.say("a", "b", "c", "d")
        (refused,) = await client.heard()
        assert (refused["type"], error_of(refused)) == ("ERROR", "RESOURCE_EXHAUSTED")
        assert log == ["a", "b", "c"]
        await client.leave()
        assert sorted(log[3:]) == ["end a", "end b", "end c"]


async def test_a_waiting_place_is_not_lost_with_who_leaves_first(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, concurrent(1))) as house:
        client = await house.connect()
        ask(client, ("a", 5), ("b", 1), ("c", 1))
        await trio.sleep(1)
        client.send("$ws:abort", correlationId="a")
        client.send("$ws:abort", correlationId="b")
        await trio.sleep(2)
        assert log[-2:] == ["begin c", "end c"]


@pytest.mark.parametrize("limit", [0.5, 50])
async def test_the_routes_own_time_limit_replaces_that_of_the_app(autojump_clock: MockClock, limit: float) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, None, timeout=limit), limits=Limits(call_timeout=30)) as house:
        client = await house.connect()
        ask(client, ("a", 40))
        await trio.sleep(45)
        (answer,) = await client.heard()
        if limit == 50:
            assert answer["type"] == "TOTAL"
        else:
            assert error_of(answer) == "DEADLINE_EXCEEDED"
            assert log == ["begin a", "cancelled a"]


async def test_an_event_over_its_time_is_cancelled_told_so_and_holds_up_no_more(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say, timeout=2)
    async def say(ctx: Context[Say]) -> None:
        log.append(ctx.payload.text)
        await trio.sleep(3 if ctx.payload.text == "slow" else 1)
        log.append(f"end {ctx.payload.text}")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("slow", "quick", "slow")
        await trio.sleep(10)
        assert log == ["slow", "quick", "end quick", "slow"]
        heard = await client.heard()
        assert [(one["type"], error_of(one)) for one in heard] == [("ERROR", "DEADLINE_EXCEEDED")] * 2


async def test_the_calls_of_all_connections_together_are_bounded(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(logging_router(log, None), limits=Limits(max_calls=2, ping_interval=1e9)) as house:
        one, other = await house.connect(), await house.connect()
        ask(one, ("a", 5))
        ask(other, ("b", 5))
        await trio.sleep(1)
        ask(one, ("c", 1))
        (refused,) = await one.heard()
        assert error_of(refused) == "RESOURCE_EXHAUSTED"
        assert refused["payload"]["retryAfterMs"] > 0
        await trio.sleep(5)
        ask(one, ("c", 1))
        await trio.sleep(2)
        assert [answer["type"] for answer in await one.heard()] == ["TOTAL", "TOTAL"]
        inside: Any = house.app
        assert inside._services.work.calls == 0


async def test_options_stay_with_a_route_that_is_merged_mounted_or_built(autojump_clock: MockClock) -> None:
    inner, outer = Router(), Router()
    inner.route(Say, lane=concurrent(3), timeout=5).on(lambda ctx: None)
    outer.merge(inner)
    outer.mount("x:", inner)
    assert [(route.options.lane, route.options.timeout) for route in outer.routes] == [(concurrent(3), 5)] * 2


@pytest.mark.parametrize("options", [{"lane": 4}, {"timeout": 0}, {"detached": True, "lane": serial}])
def test_wrong_options_are_refused_at_registration(options: dict[str, Any]) -> None:
    for register in (Router().on, Router().route):
        with pytest.raises(ConfigError):
            register(Say, **options)
    with pytest.raises(ConfigError):
        Router().rpc(Add, **options)
