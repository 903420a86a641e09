from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, Say, Total, error_of, open_house
from trio_wskit import Admission, Context, LimitExceeded, Request, Router, WsKitError
from trio_wskit.errors import ConfigError
from trio_wskit.limiter import Decision, Decisions, MemoryRateLimiter, Policy, Reservation, Spend
from trio_wskit.middleware import Budget, RateLimit, per_connection, per_user, rate_limit


class Slow:
    """A limiter whose store is far away: nothing but the seam, and every answer takes a second."""

    def __init__(self, policy: Policy) -> None:
        self.real = MemoryRateLimiter(policy)
        self.asked: list[str] = []

    @property
    def policy(self) -> Policy:
        return self.real.policy

    async def consume(self, key: str, cost: int = 1) -> Decision:
        self.asked.append(key)
        await trio.sleep(1)
        return await self.real.consume(key, cost)

    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        self.asked.append(f"{len(spends)} at once")
        await trio.sleep(1)
        return await self.real.consume_many(spends)

    async def wait(self, key: str, cost: int = 1) -> Decision:
        return await self.real.wait(key, cost)

    @asynccontextmanager
    async def reserve(self, key: str, cost: int = 1) -> AsyncGenerator[Reservation]:
        async with self.real.reserve(key, cost) as reservation:
            yield reservation

    async def reset(self, key: str) -> None:
        await self.real.reset(key)

    async def aclose(self) -> None:
        await self.real.aclose()


def router_with(*limits: RateLimit, told: list[LimitExceeded] | None = None) -> tuple[Router, list[str]]:
    router = Router()
    said: list[str] = []
    for limit in limits:
        router.use(limit)
    if told is not None:
        router.on_limit_exceeded(told.append)

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        said.append(ctx.payload.text)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        return Total(ctx.payload.n + 1)

    return router, said


async def payloads(client: Client) -> list[dict[str, Any]]:
    return [one["payload"] for one in await client.heard()]


async def test_the_third_of_two_is_refused_and_its_handler_not_called(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    limit = rate_limit(MemoryRateLimiter(Policy(2, 0.5)))
    router, said = router_with(limit, told=told)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b", "c")
        (refused,) = await client.heard()
        assert error_of(refused) == "RESOURCE_EXHAUSTED"
        assert refused["payload"] == {
            "code": "RESOURCE_EXHAUSTED",
            "message": "Rate limit exceeded",
            "details": {"cost": 1, "capacity": 2, "remaining": 0},
            "retryAfterMs": 2000,
        }
        assert said == ["a", "b"]
        assert told == [LimitExceeded("rate", 3, 2, client.client_id)]
        assert (limit.counts.passed, limit.counts.refused, limit.counts.spent) == (2, 1, 2)
        await trio.sleep(2)
        client.say("d")
        assert await client.heard() == []
        assert said == ["a", "b", "d"]


async def test_a_refused_call_is_answered_as_a_call(autojump_clock: MockClock) -> None:
    router, _ = router_with(rate_limit(MemoryRateLimiter(Policy(1, 3))))
    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1")
        client.send("ADD", {"n": 1}, call_id="2")
        answer, refused = await client.heard()
        assert answer["payload"] == {"n": 2}
        assert refused["type"] == "RPC_ERROR"
        assert refused["meta"]["correlationId"] == "2"
        assert refused["payload"]["retryAfterMs"] == 334


async def test_a_cost_above_the_capacity_can_never_be_paid(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    router, said = router_with(rate_limit(MemoryRateLimiter(Policy(5, 1)), cost=10), told=told)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        assert await payloads(client) == [
            {
                "code": "FAILED_PRECONDITION",
                "message": "Operation cost exceeds capacity",
                "details": {"cost": 10, "capacity": 5},
            }
        ]
        assert (said, told) == ([], [LimitExceeded("rate", 10, 5, client.client_id)])


@pytest.mark.parametrize("cost", [0.5, -1, True, "1", None])
async def test_a_function_that_gives_no_cost_is_an_invalid_argument(autojump_clock: MockClock, cost: Any) -> None:
    router, said = router_with(rate_limit(MemoryRateLimiter(Policy(5, 1)), cost=lambda _: cost))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        assert await payloads(client) == [
            {"code": "INVALID_ARGUMENT", "message": "Rate limit cost must be a non-negative integer"}
        ]
    assert said == []


async def test_what_costs_nothing_passes_and_no_key_is_asked_for(autojump_clock: MockClock) -> None:
    def key(_: Context[Any]) -> str:
        pytest.fail("the key was asked for")

    limit = rate_limit(MemoryRateLimiter(Policy(1, 1)), key, cost=lambda _: 0)
    router, said = router_with(limit)
    async with open_house(router) as house:
        (await house.connect()).say("a", "b", "c")
    assert said == ["a", "b", "c"]
    assert (limit.counts.passed, limit.counts.spent) == (3, 0)


async def test_types_have_budgets_of_their_own_by_default_and_one_together_by_user(
    autojump_clock: MockClock,
) -> None:
    for key, calls in ((None, ["TOTAL"]), (per_user, ["RPC_ERROR"])):
        limiter = MemoryRateLimiter(Policy(1, 0.001))
        router, said = router_with(rate_limit(limiter) if key is None else rate_limit(limiter, key))
        async with open_house(router) as house:
            client = await house.connect()
            client.say("a")
            client.send("ADD", {"n": 1}, call_id="1")
            assert [one["type"] for one in await client.heard()] == calls
        assert said == ["a"]


async def test_users_are_apart_and_a_user_s_connections_together(autojump_clock: MockClock) -> None:
    async def authenticate(request: Request) -> str:
        return request.target

    def identity(who: Admission) -> str | None:
        return None if who.data == "/nobody" else str(who.data)

    router, said = router_with(rate_limit(MemoryRateLimiter(Policy(1, 0.001))))
    async with open_house(router, authenticate=authenticate, identity=identity) as house:
        refused: list[str] = []
        for target in ("/ann", "/bob", "/ann", "/nobody", "/nobody"):
            client = await house.connect(Request(target=target))
            client.say(target)
            refused += [target for one in await client.heard() if error_of(one) == "RESOURCE_EXHAUSTED"]
    assert said == ["/ann", "/bob", "/nobody", "/nobody"]
    assert refused == ["/ann"]


async def test_a_cost_may_depend_on_the_message(autojump_clock: MockClock) -> None:
    limit = rate_limit(MemoryRateLimiter(Policy(10, 0.001)), cost=lambda ctx: len(ctx.payload.text), stage="message")
    router, said = router_with(limit)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "bbbbb", "ccccc", "dddd", "e")
        assert [one["details"] for one in await payloads(client)] == [
            {"cost": 5, "capacity": 10, "remaining": 4},
            {"cost": 1, "capacity": 10, "remaining": 0},
        ]
    assert said == ["a", "bbbbb", "dddd"]


@pytest.mark.parametrize(
    ("stage", "codes"), [("envelope", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"]), ("message", ["INVALID_ARGUMENT"])]
)
async def test_what_is_invalid_pays_before_validation_and_not_after(
    autojump_clock: MockClock, stage: Any, codes: list[str]
) -> None:
    router, _ = router_with(rate_limit(MemoryRateLimiter(Policy(1, 0.001)), stage=stage))
    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": 5})
        client.say("a")
        assert [error_of(one) for one in await client.heard()] == codes


async def test_stacked_limits_refuse_independently(autojump_clock: MockClock) -> None:
    wide = rate_limit(MemoryRateLimiter(Policy(100, 50)), per_connection)
    router, said = router_with(wide, rate_limit(MemoryRateLimiter(Policy(5, 1)), per_connection))
    async with open_house(router) as house:
        client = await house.connect()
        client.say(*"abcdef")
        assert [error_of(one) for one in await client.heard()] == ["RESOURCE_EXHAUSTED"]
    assert said == list("abcde")
    assert wide.counts.passed == 6


async def test_several_budgets_are_paid_together_or_not_at_all(autojump_clock: MockClock) -> None:
    told: list[LimitExceeded] = []
    limiter = MemoryRateLimiter(Policy(3, 1))
    hourly = Policy(2, 0.001, "hour:")
    limit = rate_limit(
        limiter, budgets=[Budget(per_user), Budget(per_user, policy=hourly), Budget(per_connection, cost=lambda _: 0)]
    )
    router, said = router_with(limit, told=told)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b", "c")
        assert [one["details"] for one in await payloads(client)] == [{"cost": 1, "capacity": 2, "remaining": 0}]
        key = f"connection:{{{client.client_id}}}"
        assert limiter.consume_nowait(key, 0).remaining == 1, "the budget that could have paid has not"
        assert told == [LimitExceeded("rate", 3, 2, client.client_id)]
    assert said == ["a", "b"]


async def test_the_refusal_that_lasts_longest_is_told(autojump_clock: MockClock) -> None:
    limiter = MemoryRateLimiter(Policy(1, 1))
    slow = Policy(1, 0.1, "slow:")
    limit = rate_limit(limiter, budgets=[Budget(per_user), Budget(per_user, policy=slow)])
    router, _ = router_with(limit)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        assert [one["retryAfterMs"] for one in await payloads(client)] == [10_000]


async def test_one_that_can_never_be_paid_goes_before_one_that_must_wait(autojump_clock: MockClock) -> None:
    limit = rate_limit(MemoryRateLimiter(Policy(1, 1)), budgets=[Budget(lambda _: "all"), Budget(per_user, 2)])
    router, _ = router_with(limit)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        assert [one["code"] for one in await payloads(client)] == ["FAILED_PRECONDITION"] * 2


async def test_a_budget_with_a_policy_of_its_own_may_stand_alone(autojump_clock: MockClock) -> None:
    limit = rate_limit(MemoryRateLimiter(Policy(100, 1)), budgets=[Budget(per_user, policy=Policy(1, 0.001))])
    router, said = router_with(limit)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        assert len(await client.heard()) == 1
    assert said == ["a"]


async def test_a_limiter_that_takes_its_time_keeps_the_order_of_events(autojump_clock: MockClock) -> None:
    limiter = Slow(Policy(2, 0.001))
    router, said = router_with(rate_limit(limiter, per_connection))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b", "c")
        await trio.sleep(10)
        assert [error_of(one) for one in await client.heard()] == ["RESOURCE_EXHAUSTED"]
        assert said == ["a", "b"]
        assert limiter.asked == [f"connection:{{{client.client_id}}}"] * 3


async def test_a_limiter_that_takes_its_time_is_asked_once_for_all_budgets(autojump_clock: MockClock) -> None:
    limiter = Slow(Policy(2, 0.001))
    router, said = router_with(rate_limit(limiter, budgets=[Budget(per_connection), Budget(per_user, 2)]))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        await trio.sleep(5)
        assert await payloads(client) != []
        assert limiter.asked == ["2 at once"]
    assert said == []


async def test_a_store_that_does_not_answer_is_unavailable_to_the_client(autojump_clock: MockClock) -> None:
    class Down(Slow):
        async def consume(self, key: str, cost: int = 1) -> Decision:
            raise WsKitError("UNAVAILABLE", "The rate limit store is unavailable", retry_after=0.5)

    router, said = router_with(rate_limit(Down(Policy(2, 1))))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        assert [(one["code"], one["retryAfterMs"]) for one in await payloads(client)] == [("UNAVAILABLE", 500)]
    assert said == []


async def test_every_message_is_counted_once(autojump_clock: MockClock) -> None:
    class Moody(Slow):
        async def consume(self, key: str, cost: int = 1) -> Decision:
            if cost == 13:
                raise WsKitError("UNAVAILABLE")
            return await super().consume(key, cost)

    limit = rate_limit(Moody(Policy(5, 0.001)), cost=lambda ctx: int(ctx.payload.text), stage="message")
    router, said = router_with(limit)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("0", "3", "2", "2", "6", "13", "-1", "no cost")
        await trio.sleep(20)
        await client.heard()
        # The last of them is a ValueError: a mistake of the function, and of nobody else.
        assert len(house.logged()) == 1
    counts = limit.counts
    assert (counts.passed, counts.refused, counts.impossible, counts.failed, counts.spent) == (3, 1, 1, 3, 5)
    assert said == ["0", "3", "2"]


async def test_all_budgets_of_a_message_count_as_spent(autojump_clock: MockClock) -> None:
    limit = rate_limit(MemoryRateLimiter(Policy(5, 1)), budgets=[Budget(per_connection, 2), Budget(per_user, 1)])
    router, _ = router_with(limit)
    async with open_house(router) as house:
        (await house.connect()).say("a")
    assert (limit.counts.passed, limit.counts.spent) == (1, 3)


async def test_a_hook_that_raises_changes_nothing(autojump_clock: MockClock) -> None:
    router, said = router_with(rate_limit(MemoryRateLimiter(Policy(1, 0.001))))

    @router.on_limit_exceeded
    def fail(info: LimitExceeded) -> None:
        raise ValueError("mine")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        assert [error_of(one) for one in await client.heard()] == ["RESOURCE_EXHAUSTED"]
        assert len(house.logged()) == 1
    assert said == ["a"]


@pytest.mark.parametrize("cost", [-1, 0.5, True, "1", None])
def test_a_cost_that_is_none_is_refused_when_it_is_given(cost: Any) -> None:
    with pytest.raises(ConfigError, match="non-negative integer"):
        rate_limit(MemoryRateLimiter(Policy(1, 1)), cost=cost)


def test_a_key_that_is_no_function_is_refused_when_it_is_given() -> None:
    key: Any = "user"
    with pytest.raises(ConfigError, match="must be a function"):
        rate_limit(MemoryRateLimiter(Policy(1, 1)), key)


def test_no_budget_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit nothing"):
        rate_limit(MemoryRateLimiter(Policy(1, 1)), budgets=[])


def test_a_stage_that_there_is_none_is_refused_when_it_is_used() -> None:
    stage: Any = "handshake"
    with pytest.raises(ConfigError, match="stage"):
        Router().use(rate_limit(MemoryRateLimiter(Policy(1, 1)), stage=stage))
