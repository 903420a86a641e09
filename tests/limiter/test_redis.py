"""The limiter on real servers, while they work. See test_redis_faults.py for when they do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from coredis import Redis, RedisCluster
from coredis.retry import NoRetryPolicy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit._core.sharding import slot_of
from trio_wskit.abc import RateLimiter
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.limiter import Decision, Policy
from trio_wskit.limiter._wire import WirePolicy
from trio_wskit.limiter.redis import Lease, RedisRateLimiter, open_redis_limiter
from trio_wskit.testing import ManualClock, RateLimiterHistory, check_rate_limiter
from trio_wskit.testing.limiter_machine import RateLimiterStateMachine

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

MICROSECONDS = 10**6
SLOW = Fraction(1, 1000)


def fresh(store: Server) -> Callable[[Policy, Callable[[], float] | None], AbstractAsyncContextManager[RateLimiter]]:
    @asynccontextmanager
    async def open_limiter(policy: Policy, clock: Callable[[], float] | None) -> AsyncGenerator[RateLimiter]:
        store.command("FLUSHALL")
        async with open_redis_limiter(store.url, policy, clock=clock) as limiter:
            yield limiter

    return open_limiter


class RedisMachine(RateLimiterStateMachine):
    ticks_per_second = MICROSECONDS
    store: ClassVar[Server]

    def open(self, policy: Policy, clock: Callable[[], float]) -> AbstractAsyncContextManager[RateLimiter]:
        return fresh(self.store)(policy, clock)


async def test_the_redis_limiter_keeps_every_promise(store: Server) -> None:
    await check_rate_limiter(fresh(store), ticks_per_second=MICROSECONDS)


def test_the_redis_limiter_is_the_model_step_by_step(store: Server) -> None:
    RedisMachine.store = store
    run_state_machine_as_test(
        RedisMachine, settings=settings(max_examples=15, stateful_step_count=25, report_multiple_bugs=False)
    )


async def test_limiters_on_one_server_share_their_buckets_and_one_token_has_one_owner(store: Server) -> None:
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    policy = Policy(30, SLOW)
    history = RateLimiterHistory(policy, clock, ticks_per_second=MICROSECONDS)
    async with AsyncExitStack() as stack:
        limiters = [
            await stack.enter_async_context(open_redis_limiter(store.url, policy, clock=clock, deny_cache=0))
            for _ in range(3)
        ]

        async def call(number: int) -> None:
            for turn in range(5):
                await history.consume(limiters[number % 3], "k", 1 + (number + turn) % 3)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(call, number)
    answers = history.explain()
    assert len(answers) == 60
    assert any(answers)
    assert not all(answers)


async def test_concurrent_callers_share_a_call(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(1000, 1)) as limiter:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(limiter.consume, f"k{number % 7}")
        statistics = limiter.statistics()
        assert (statistics.calls, statistics.questions) == (1, 100)


async def test_prefix_and_policy_keep_buckets_apart(store: Server) -> None:
    policies = [Policy(2, SLOW), Policy(2, SLOW, "api:"), Policy(3, SLOW), Policy(2, SLOW / 2)]
    for policy in policies:
        async with open_redis_limiter(store.url, policy) as limiter:
            assert (await limiter.consume("k", 2)).allowed
    async with open_redis_limiter(store.url, Policy(2, 0.001)) as limiter:
        assert not await limiter.consume("k", 1), "the same policy, said otherwise"


async def test_time_is_the_server_s(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(2, 20)) as limiter:
        assert await limiter.consume("k", 2) == Decision(True, 0, 0.0)
        refused = await limiter.consume("k", 2)
        assert not refused.allowed
        assert refused.retry_after is not None
        assert 0.0 < refused.retry_after <= 0.1
        start = trio.current_time()
        assert (await limiter.wait("k", 2)).allowed
        assert 0.0 < trio.current_time() - start < 5.0


# --- memory on the server ---


async def test_the_server_forgets_a_bucket_when_it_is_full_and_not_before(store: Server) -> None:
    policy = Policy(10, 7)
    async with (
        open_redis_limiter(store.url, policy) as limiter,
        Redis.from_url(store.url, decode_responses=True) as client,
    ):
        await limiter.consume("k", 3)
        name = WirePolicy(policy).key("k")
        now, full_us, parts = str(await client.get(name)).split()
        assert int(full_us) - int(now) == 428_571
        assert parts == "3"
        forgotten = await client.pexpiretime(name)
        assert forgotten.timestamp() * 1000 == -(-(int(full_us) + 1) // 1000)
        await trio.sleep(0.5)
        assert await client.exists([name]) == 0
        assert await limiter.consume("k", 0) == Decision(True, 10, 0.0)


async def test_a_full_bucket_is_not_kept(store: Server) -> None:
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    async with (
        open_redis_limiter(store.url, Policy(10, 1), clock=clock) as limiter,
        Redis.from_url(store.url) as client,
    ):
        await limiter.consume("a", 0)
        await limiter.consume("a", 11)
        assert await client.dbsize() == 0
        await limiter.consume("a", 2)
        async with limiter.reserve("b", 2) as reservation:
            assert await client.dbsize() == 2
            reservation.settle(0)
        await limiter.consume("b", 0)
        assert await client.dbsize() == 1
        clock.advance(2)
        await limiter.consume("a", 0)
        assert await client.dbsize() == 0


async def test_reservations_that_nobody_settles_take_no_more_than_their_place(store: Server) -> None:
    """A process that dies leaves its reservations open: they have paid, and the oldest makes room for the newest."""
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    policy = Policy(1000, 1)
    async with (
        open_redis_limiter(store.url, policy, clock=clock) as limiter,
        Redis.from_url(store.url, decode_responses=True) as client,
        AsyncExitStack() as stack,
    ):
        held = [await stack.enter_async_context(limiter.reserve("k", 2)) for _ in range(70)]
        text = str(await client.get(WirePolicy(policy).key("k")))
        assert len(text.split()) == 5 + 8 * 64
        for reservation in held:
            reservation.settle(0)
        await stack.aclose()
        assert (await limiter.consume("k", 0)).remaining == 1000 - 6 * 2
        assert len(str(await client.get(WirePolicy(policy).key("k"))).split()) == 3


async def test_a_script_that_the_server_has_forgotten_is_sent_again(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(5, SLOW)) as limiter:
        await limiter.consume("k")
        store.command("SCRIPT", "FLUSH")
        assert await limiter.consume("k") == Decision(True, 3, 0.0)
        assert limiter.statistics().store_errors == 0


async def test_a_key_that_is_no_bucket_spoils_no_other_request(store: Server) -> None:
    policy = Policy(5, SLOW)
    store.command("RPUSH", WirePolicy(policy).key("list"), "x")
    store.command("SET", WirePolicy(policy).key("text"), "hello")
    codes: dict[str, str | int] = {}

    async def call(limiter: RateLimiter, key: str) -> None:
        try:
            codes[key] = (await limiter.consume(key)).remaining
        except WsKitError as error:
            codes[key] = error.code

    async with open_redis_limiter(store.url, policy) as limiter:
        async with trio.open_nursery() as nursery:
            for key in ("a", "list", "b", "text", "c"):
                nursery.start_soon(call, limiter, key)
        assert limiter.statistics().calls == 1
        with pytest.raises(WsKitError, match="UNAVAILABLE") as caught:
            await limiter.consume_many([("a", 1), ("list", 1)])
        assert "WRONGTYPE" in str(caught.value.__cause__)
        assert (await limiter.consume("a", 0)).remaining == 4
    assert codes == {"a": 4, "list": "UNAVAILABLE", "b": 4, "text": "UNAVAILABLE", "c": 4}


# --- not asking ---


async def test_a_bucket_known_to_be_empty_is_not_asked_again_before_its_time(store: Server) -> None:
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    async with open_redis_limiter(store.url, Policy(5, 2), clock=clock, deny_seconds=100) as limiter:
        await limiter.consume("k", 5)
        first = await limiter.consume("k", 2)
        calls = limiter.statistics().calls
        clock.advance(0.5)
        assert first == Decision(False, 0, 1.0)
        assert await limiter.consume("k", 2) == Decision(False, 1, 0.5)
        assert (limiter.statistics().calls, limiter.statistics().refused_here) == (calls, 1)
        clock.advance(0.5)
        assert await limiter.consume("k", 2) == Decision(True, 0, 0.0)


async def test_a_reset_and_what_is_given_back_here_are_seen_at_once(store: Server) -> None:
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    async with open_redis_limiter(store.url, Policy(5, 2), clock=clock, deny_seconds=100) as limiter:
        async with limiter.reserve("k", 5) as reservation:
            assert not await limiter.consume("k")
            reservation.settle(1)
        assert await limiter.consume("k", 4)
        assert not await limiter.consume("k")
        await limiter.reset("k")
        assert await limiter.consume("k", 5)


async def test_a_reset_by_another_process_is_seen_after_the_time_that_was_said(store: Server) -> None:
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    async with (
        open_redis_limiter(store.url, Policy(5, SLOW), clock=clock, deny_seconds=2) as one,
        open_redis_limiter(store.url, Policy(5, SLOW), clock=clock) as other,
    ):
        await one.consume("k", 5)
        assert not await one.consume("k")
        await other.reset("k")
        clock.advance(2)
        assert not await one.consume("k")
        clock.advance(0.1)
        assert await one.consume("k")


async def test_leases_answer_without_asking(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(100, SLOW), lease=Lease(10, 60)) as limiter:
        answers = [await limiter.consume("k") for _ in range(10)]
        assert [answer.remaining for answer in answers] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert (limiter.statistics().calls, limiter.statistics().leased_here) == (1, 9)
        assert await limiter.consume("k", 25) == Decision(True, 65, 0.0), "more than a lease is asked for as it is"
        await limiter.reset("k")
        assert (await limiter.consume("k", 0)).remaining == 100


async def test_where_a_lease_is_not_there_only_what_is_needed_is_taken(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(12, SLOW), lease=Lease(10, 60)) as limiter:
        assert [(await limiter.consume("k")).allowed for _ in range(13)] == [True] * 12 + [False]
        assert not await limiter.consume("k", 2)


async def test_many_callers_get_one_lease_together(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(100, SLOW), lease=Lease(50, 60)) as limiter:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(limiter.consume, "k")
        assert (limiter.statistics().calls, limiter.statistics().leased_here) == (1, 49)
        assert (await limiter.consume("k", 0)).remaining == 50


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(2, 6),
)
def test_leases_overspend_by_no_more_than_they_say(
    shared_server: Server, schedule: list[tuple[int, int, int]], tokens: int
) -> None:
    """Three processes: no window gets more than capacity + rate * t, and what they held when it began."""
    clock = ManualClock(MICROSECONDS)
    clock.ticks = 10**9
    policy = Policy(8, 10)
    grants: list[tuple[int, int]] = []

    async def run() -> None:
        shared_server.command("FLUSHALL")
        async with AsyncExitStack() as stack:
            limiters = [
                await stack.enter_async_context(
                    open_redis_limiter(shared_server.url, policy, clock=clock, lease=Lease(tokens, 0.5))
                )
                for _ in range(3)
            ]
            for gap, process, cost in schedule:
                clock.ticks += gap
                if await limiters[process].consume("k", cost):
                    grants.append((clock.ticks, cost))

    trio.run(run)
    for first, (start, _) in enumerate(grants):
        total = 0
        for end, cost in grants[first:]:
            total += cost
            seconds = Fraction(end - start, MICROSECONDS)
            assert total <= policy.capacity + policy.rate * seconds + 3 * (tokens - 1)
            assert total <= policy.capacity + policy.rate * (seconds + Fraction(1, 2))


# --- the end of it ---


async def test_what_is_given_back_at_the_end_is_given_back(store: Server) -> None:
    policy = Policy(5, SLOW)
    async with open_redis_limiter(store.url, policy) as limiter:
        with trio.CancelScope() as scope:
            async with limiter.reserve("k", 5):
                scope.cancel()
                await trio.sleep_forever()
    async with open_redis_limiter(store.url, policy) as limiter:
        assert (await limiter.consume("k", 0)).remaining == 5


async def test_after_the_block_it_is_closed(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(5, 1)) as limiter:
        await limiter.consume("k")
    calls: list[Callable[[], Any]] = [
        lambda: limiter.consume("k"),
        lambda: limiter.consume_many([("k", 1)]),
        lambda: limiter.wait("k"),
        lambda: limiter.reset("k"),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        async with limiter.reserve("k"):
            pytest.fail("it was entered")


async def test_every_call_is_a_checkpoint(store: Server) -> None:
    async with open_redis_limiter(store.url, Policy(2, SLOW), lease=Lease(2, 60)) as limiter:
        for call in (
            lambda: limiter.consume("k"),
            lambda: limiter.consume("k"),
            lambda: limiter.consume("k"),
            lambda: limiter.consume("k"),
            lambda: limiter.consume_many([]),
            limiter.aclose,
        ):
            with trio.testing.assert_checkpoints():
                await call()


async def test_what_the_block_raises_leaves_it_as_it_was_raised(store: Server) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_redis_limiter(store.url, Policy(5, 1)):
            raise ValueError("mine")
    with pytest.RaisesGroup(ValueError, KeyError):
        async with open_redis_limiter(store.url, Policy(5, 1)):
            raise ExceptionGroup("mine", [ValueError(), KeyError()])


# --- clients and clusters ---


async def test_a_client_that_asks_again_by_itself_is_refused(store: Server) -> None:
    async with Redis.from_url(store.url) as client:
        with pytest.raises(ConfigError, match="NoRetryPolicy"):
            async with open_redis_limiter(client, Policy(5, 1)):
                pytest.fail("it was opened")


async def test_a_client_of_one_s_own_is_used_and_left_open(store: Server) -> None:
    async with Redis.from_url(store.url, retry_policy=NoRetryPolicy()) as client:
        async with open_redis_limiter(client, Policy(5, SLOW)) as limiter:
            assert (await limiter.consume("k")).remaining == 4
        assert await client.dbsize() == 1


@pytest.mark.parametrize("key", ["foo", "{user}:a", "a{user}b{c}", "{}x", "x{y", "}{", "ключ", ""])
def test_slots_are_those_of_the_server(cluster: Server, key: str) -> None:
    assert cluster.command("CLUSTER", "KEYSLOT", key) == f":{slot_of(key)}\r\n".encode()


async def test_a_cluster_is_asked_slot_by_slot(cluster: Server) -> None:
    async with (
        RedisCluster("127.0.0.1", cluster.port, retry_policy=NoRetryPolicy()) as client,
        open_redis_limiter(client, Policy(5, SLOW, "rl:")) as limiter,
    ):
        answers: dict[str, Decision] = {}

        async def call(key: str) -> None:
            answers[key] = await limiter.consume(key)

        async with trio.open_nursery() as nursery:
            for key in "abcdefg":
                nursery.start_soon(call, key)
        assert answers == {key: Decision(True, 4, 0.0) for key in "abcdefg"}
        assert limiter.statistics().calls == 1
        many = await limiter.consume_many([("{u}:a", 1), ("{u}:b", 2), ("{u}:a", 3, Policy(9, SLOW, "other:"))])
        assert [one.remaining for one in many.each] == [4, 3, 6]
        with pytest.raises(WsKitError, match="put what they share in braces") as caught:
            await limiter.consume_many([("a", 1), ("b", 1)])
        assert caught.value.code == "INVALID_ARGUMENT"
        async with limiter.reserve("{u}:a", 4) as reservation:
            reservation.settle(0)
        assert (await limiter.consume("{u}:a", 0)).remaining == 4
        await limiter.reset("{u}:a")
        assert (await limiter.consume("{u}:a", 0)).remaining == 5


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"max_wait": 0},
        {"max_wait": float("nan")},
        {"breaker_seconds": -1},
        {"breaker_failures": 0},
        {"deny_cache": -1},
        {"deny_seconds": -0.1},
        {"on_store_error": "ignore"},
    ],
    ids=str,
)
async def test_an_option_out_of_bounds_is_refused_when_it_is_given(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        async with open_redis_limiter("redis://127.0.0.1:1", Policy(5, 1), **options):
            pytest.fail("it was opened")


async def test_a_policy_that_redis_cannot_count_is_refused_when_it_is_given() -> None:
    with pytest.raises(ConfigError, match="71 years"):
        async with open_redis_limiter("redis://127.0.0.1:1", Policy(10**9, Fraction(1, 10**9))):
            pytest.fail("it was opened")


def test_without_coredis_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['coredis'] = None; import trio_wskit.limiter; import trio_wskit.limiter.redis"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith(
        "ImportError: What is shared over Redis needs coredis: pip install 'trio-wskit[redis]'"
    )


def test_it_is_a_rate_limiter(store: Server) -> None:
    def takes(limiter: RateLimiter) -> None: ...

    def gives(limiter: RedisRateLimiter) -> None:
        takes(limiter)

    assert callable(gives)
