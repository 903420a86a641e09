from __future__ import annotations

import gc
import time
import tracemalloc
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit.abc import RateLimiter
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.limiter import Decision, MemoryRateLimiter, Policy
from trio_wskit.limiter._buckets import Buckets
from trio_wskit.testing import ManualClock, ModelRateLimiter, check_rate_limiter

SECOND = 10**9


@asynccontextmanager
async def open_memory(policy: Policy, clock: Callable[[], float] | None) -> AsyncGenerator[RateLimiter]:
    yield MemoryRateLimiter(policy, clock=clock)


async def test_the_memory_limiter_keeps_every_promise(autojump_clock: trio.testing.MockClock) -> None:
    await check_rate_limiter(open_memory)


# --- what ws-kit's own tests say -----------------------------------------------------------------------------------


def test_ten_tokens_minus_six_and_two_seconds_later_one_leave_seven() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 2), clock=clock)
    limiter.consume_nowait("k", 6)
    clock.advance(2)
    assert limiter.consume_nowait("k") == Decision(True, 7, 0.0)


def test_three_of_five_at_two_a_second_are_there_in_exactly_one_and_a_half_seconds() -> None:
    limiter = MemoryRateLimiter(Policy(5, 2), clock=ManualClock())
    limiter.consume_nowait("k", 5)
    assert limiter.consume_nowait("k", 3).retry_after == 1.5


def test_one_of_three_a_second_is_there_in_a_third_rounded_up_to_the_nanosecond() -> None:
    limiter = MemoryRateLimiter(Policy(1, 3), clock=ManualClock())
    limiter.consume_nowait("k")
    assert limiter.consume_nowait("k").retry_after == 0.333333334


def test_ten_steps_of_a_tenth_of_a_second_are_a_second() -> None:
    now = 0.0
    limiter = MemoryRateLimiter(Policy(10, 1), clock=lambda: now)
    limiter.consume_nowait("k", 5)
    for _ in range(10):
        now += 0.1  # 0.9999999999999999 in the end
    assert limiter.consume_nowait("k") == Decision(True, 5, 0.0)


async def test_ten_callers_at_once_get_the_five_tokens_that_there_are(autojump_clock: trio.testing.MockClock) -> None:
    limiter = MemoryRateLimiter(Policy(5, 0.001))
    allowed: list[bool] = []

    async def call() -> None:
        allowed.append((await limiter.consume("k")).allowed)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(call)
    assert sorted(allowed) == [False] * 5 + [True] * 5


async def test_closing_forgets_every_bucket_and_refuses_more() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1))
    await limiter.consume("k", 5)
    await limiter.consume_many([("k", 1, Policy(2, 1))])
    await limiter.aclose()
    assert limiter.keys_held() == 0
    with pytest.raises(trio.ClosedResourceError):
        limiter.consume_nowait("k")
    with pytest.raises(trio.ClosedResourceError):
        await limiter.consume_many([("k", 1)])


# --- exactness -----------------------------------------------------------------------------------------------------

rates = st.one_of(
    st.integers(1, 10**10), st.fractions(min_value=Fraction(1, 1000), max_value=10**6), st.floats(0.001, 1e6)
)
schedules = st.lists(
    st.tuples(
        st.one_of(st.integers(-SECOND, 10 * SECOND), st.integers(0, 50)), st.sampled_from("ab"), st.integers(0, 6)
    ),
    max_size=30,
)


@given(st.builds(Policy, st.integers(1, 2000), rates), schedules)
def test_the_quick_path_answers_as_the_definition_does(policy: Policy, schedule: list[tuple[int, str, int]]) -> None:
    clock = ManualClock()
    clock.ticks = 10 * SECOND
    limiter = MemoryRateLimiter(policy, clock=clock)
    model = ModelRateLimiter(policy, clock)
    for gap, key, cost in schedule:
        if gap < 0:
            # Buckets in memory see one time; ask for all, so that those of the model do too.
            for other in "ab":
                assert limiter.consume_nowait(other, 0) == model.consume(other, 0)
        clock.ticks += gap
        assert limiter.consume_nowait(key, cost) == model.consume(key, cost)


@given(st.integers(1, 10**6), rates, st.floats(0, 2e9), st.integers(1, 10))
def test_after_the_wait_it_is_told_a_caller_with_a_real_clock_succeeds(
    capacity: int, rate: Any, start: float, cost: int
) -> None:
    now = start
    limiter = MemoryRateLimiter(Policy(capacity, rate), clock=lambda: now)
    limiter.consume_nowait("k", capacity)
    refused = limiter.consume_nowait("k", min(cost, capacity))
    assert refused.retry_after is not None
    now = start + refused.retry_after
    assert limiter.consume_nowait("k", min(cost, capacity)).allowed


def test_a_thousand_million_tokens_a_second_are_counted_one_by_one() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10**9, 10**9), clock=clock)
    assert limiter.consume_nowait("k", 10**9).remaining == 0
    clock.ticks += 1
    assert limiter.consume_nowait("k", 0).remaining == 1
    clock.ticks += 365 * 24 * 3600 * SECOND
    assert limiter.consume_nowait("k", 0).remaining == 10**9


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_keys", [0, -1, 1.5, True, None])
def test_a_bound_on_keys_that_is_no_count_is_refused(max_keys: Any) -> None:
    with pytest.raises(ConfigError, match="max_keys"):
        MemoryRateLimiter(Policy(1, 1), max_keys=max_keys)


def test_a_free_or_impossible_request_takes_no_memory() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1), clock=ManualClock())
    limiter.consume_nowait("a", 0)
    limiter.consume_nowait("b", 6)
    limiter.consume_many_nowait([("c", 0), ("d", 6)])
    assert limiter.keys_held() == 0


def test_buckets_that_are_full_again_are_forgotten_while_others_are_used() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 10), clock=clock)
    for number in range(20_000):
        limiter.consume_nowait(f"k{number}")
    assert limiter.keys_held() == 20_000
    # Nothing but one busy key for a while: 256 shards, one every 20 ms.
    for _ in range(300):
        clock.advance(0.02)
        limiter.consume_nowait("busy")
    assert limiter.keys_held() == 1


def test_new_keys_make_room_for_themselves_when_old_ones_are_full_again() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 10), clock=clock, max_keys=1000)
    for number in range(50_000):
        clock.advance(0.0002)  # 500 buckets at a time are not full
        assert limiter.consume_nowait(f"k{number}").allowed
    assert limiter.keys_held() <= 1000


def test_a_new_key_is_refused_when_all_places_are_in_use_until_the_first_is_free() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 1), clock=clock, max_keys=3)
    for key, cost in (("a", 3), ("b", 2), ("c", 5)):
        assert limiter.consume_nowait(key, cost).allowed
    for _ in range(2):
        assert limiter.consume_nowait("d") == Decision(False, 0, 2.0)
    assert limiter.consume_nowait("d", 11) == Decision(False, 10, None)
    assert limiter.consume_nowait("d", 0) == Decision(True, 10, 0.0)
    assert limiter.consume_nowait("a").allowed, "old keys are served as ever"
    clock.ticks += 2 * SECOND - 1
    assert not limiter.consume_nowait("d").allowed
    clock.ticks += 1
    assert limiter.consume_nowait("d") == Decision(True, 9, 0.0)
    assert limiter.keys_held() == 3


def test_a_refused_newcomer_is_served_when_a_place_was_reset() -> None:
    limiter = MemoryRateLimiter(Policy(10, 1), clock=ManualClock(), max_keys=1)
    limiter.consume_nowait("a")
    assert not limiter.consume_nowait("b").allowed
    limiter.reset_nowait("a")
    assert limiter.consume_nowait("b").allowed


def test_several_requests_at_once_may_pass_the_bound_by_their_number() -> None:
    limiter = MemoryRateLimiter(Policy(10, 1), clock=ManualClock(), max_keys=1)
    assert limiter.consume_many_nowait([("a", 1), ("b", 1)]).allowed
    assert limiter.keys_held() == 2
    assert not limiter.consume_many_nowait([("a", 1), ("c", 1)])
    assert limiter.consume_nowait("a", 0).remaining == 9


async def test_a_settled_bucket_comes_back_to_a_crowd_and_leaves_it_when_full() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 1), clock=clock, max_keys=1)
    async with limiter.reserve("a", 5) as reservation:
        assert limiter.consume_nowait("b", 9).allowed
        assert not limiter.consume_nowait("c").allowed
        reservation.settle(1)
    assert limiter.consume_nowait("c") == Decision(False, 0, 1.0)
    clock.advance(1)
    # Two held, one allowed: "a" is full now and goes, and "b" keeps the only place.
    assert limiter.consume_nowait("c") == Decision(False, 0, 8.0)
    assert limiter.keys_held() == 1


def test_sweeping_everything_says_how_much_went() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 10), clock=clock)
    for number in range(1000):
        limiter.consume_nowait(f"k{number}", 1 + number % 2)
    assert limiter.sweep_nowait() == 0
    clock.advance(0.1)
    assert limiter.sweep_nowait() == 500
    clock.advance(0.1)
    assert limiter.sweep_nowait() == 500
    assert limiter.keys_held() == 0


def test_an_active_key_takes_less_than_250_bytes_with_its_text() -> None:
    limiter = MemoryRateLimiter(Policy(10, 0.001), clock=ManualClock())
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50_000):
            limiter.consume_nowait(f"tenant:user:{number:09d}")
        assert (tracemalloc.get_traced_memory()[0] - before) / 50_000 < 250
    finally:
        tracemalloc.stop()


class Counted(Buckets):
    """Notes the size of every sweep."""

    sizes: list[int]

    def _sweep(self, place: int) -> None:
        self.sizes.append(len(self._shards[place]))
        super()._sweep(place)


def test_no_request_does_more_than_two_small_sweeps() -> None:
    # The bar of 5 ms, in counted work: one shard because it is full, one because its turn has come, 4096 keys at most.
    clock = ManualClock()
    buckets = Counted(Policy(10, 0.001), clock, 1_000_000)
    buckets.sizes = []
    before = 0
    for number in range(100_000):
        clock.advance(0.001)
        buckets.consume_nowait(f"k{number}")
        assert len(buckets.sizes) - before <= 2
        before = len(buckets.sizes)
    assert max(buckets.sizes) <= 4096
    assert sum(buckets.sizes) <= 3 * 100_000, "a new key pays for looking at a few old ones"


# --- waiting, reserving --------------------------------------------------------------------------------------------


async def test_a_wait_sleeps_exactly_as_long_as_the_tokens_take(autojump_clock: trio.testing.MockClock) -> None:
    limiter = MemoryRateLimiter(Policy(5, 2))
    await limiter.consume("k", 5)
    start = trio.current_time()
    assert await limiter.wait("k", 3) == Decision(True, 0, 0.0)
    assert trio.current_time() == start + 1.5


async def test_a_wait_with_tokens_there_does_not_sleep(autojump_clock: trio.testing.MockClock) -> None:
    limiter = MemoryRateLimiter(Policy(5, 2))
    assert await limiter.wait("k", 3) == Decision(True, 2, 0.0)
    assert trio.current_time() == 0.0


async def test_those_who_wait_for_different_keys_do_not_wait_for_each_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limiter = MemoryRateLimiter(Policy(1, 1))
    done: list[tuple[str, float]] = []

    async def wait(key: str) -> None:
        await limiter.wait(key)
        done.append((key, trio.current_time()))

    async with trio.open_nursery() as nursery:
        for key in "aabab":
            nursery.start_soon(wait, key)
    assert sorted(done) == [("a", 0.0), ("a", 1.0), ("a", 2.0), ("b", 0.0), ("b", 1.0)]


async def test_a_cancelled_waiter_leaves_its_turn_to_the_next(autojump_clock: trio.testing.MockClock) -> None:
    limiter = MemoryRateLimiter(Policy(10, 1))
    await limiter.consume("k", 10)
    served: list[tuple[int, float]] = []

    async def wait(cost: int) -> None:
        await limiter.wait("k", cost)
        served.append((cost, trio.current_time()))

    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def greedy() -> None:
            with first:
                await wait(9)

        nursery.start_soon(greedy)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, 1)
        await trio.sleep(1)
        first.cancel()
    assert served == [(2, 2.0), (1, 3.0)]


async def test_a_wait_on_a_clock_that_stands_still_asks_again_and_does_not_spin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(1, 1), clock=clock)
    await limiter.consume("k")
    with trio.move_on_after(10.5) as scope:
        await limiter.wait("k")
    assert scope.cancelled_caught
    clock.advance(1)
    assert await limiter.wait("k")


async def test_a_wait_that_cannot_end_says_so_at_once() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1))
    with pytest.raises(WsKitError) as caught:
        await limiter.wait("k", 6)
    assert (caught.value.code, caught.value.details) == ("FAILED_PRECONDITION", {"cost": 6, "capacity": 5})


async def test_a_refused_reservation_says_when_to_come_back() -> None:
    limiter = MemoryRateLimiter(Policy(5, 2), clock=ManualClock())
    limiter.consume_nowait("k", 4)
    with pytest.raises(WsKitError) as caught:
        async with limiter.reserve("k", 3):
            pass
    error = caught.value
    assert (error.code, error.message, error.retry_after) == ("RESOURCE_EXHAUSTED", "Rate limit exceeded", 1.0)
    assert error.details == {"cost": 3, "capacity": 5, "remaining": 1}


async def test_overlapping_reservations_settle_in_any_order() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(Policy(10, 1), clock=clock)
    first, second = limiter.reserve("k", 4), limiter.reserve("k", 4)
    a = await first.__aenter__()
    b = await second.__aenter__()
    assert limiter.consume_nowait("k", 0).remaining == 2
    a.settle(1)
    await first.__aexit__(None, None, None)
    assert limiter.consume_nowait("k", 0).remaining == 5
    b.settle(0)
    await second.__aexit__(None, None, None)
    assert limiter.consume_nowait("k", 0).remaining == 9
    clock.advance(1)
    limiter.sweep_nowait()
    assert limiter.keys_held() == 0


async def test_consume_cancelled_before_it_begins_spends_nothing() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1), clock=ManualClock())
    with trio.CancelScope() as scope:
        scope.cancel()
        await limiter.consume("k", 5)
    with trio.CancelScope() as scope:
        scope.cancel()
        await limiter.consume_many([("k", 5)])
    with trio.CancelScope() as scope:
        scope.cancel()
        async with limiter.reserve("k", 5):
            pytest.fail("it was entered")
    assert limiter.consume_nowait("k", 0).remaining == 5


async def test_every_async_call_is_a_checkpoint() -> None:
    limiter = MemoryRateLimiter(Policy(50, 1))
    with trio.testing.assert_checkpoints():
        await limiter.consume("k")
    with trio.testing.assert_checkpoints():
        await limiter.consume_many([("k", 1)])
    with trio.testing.assert_checkpoints():
        await limiter.wait("k")
    with trio.testing.assert_checkpoints():
        await limiter.reset("k")
    with trio.testing.assert_checkpoints():
        async with limiter.reserve("k"):
            pass
    with trio.testing.assert_checkpoints():
        await limiter.aclose()


def test_in_a_new_run_of_trio_all_buckets_are_full() -> None:
    """A limiter at the top of a module meets many runs in a test suite, and each has its own time."""
    limiter = MemoryRateLimiter(Policy(2, 0.5))
    other = Policy(1, 0.001)

    async def use(wait: float) -> list[bool]:
        await trio.sleep(wait)
        answers = [limiter.consume_nowait("k").allowed for _ in range(3)]
        return answers + [limiter.consume_many_nowait([("k", 1, other)]).allowed for _ in range(2)]

    for wait in (1000.0, 0.0, 5.0):
        clock = trio.testing.MockClock(autojump_threshold=0)
        assert trio.run(use, wait, clock=clock) == [True, True, False, True, False]
    for _ in range(2):
        assert trio.run(use, 0.0) == [True, True, False, True, False]


def test_without_a_clock_of_its_own_it_is_for_trio_only() -> None:
    with pytest.raises(RuntimeError):
        MemoryRateLimiter(Policy(5, 1)).consume_nowait("k")


def test_after_its_run_it_reads_that_run_s_clock_no_more() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1))
    other = Policy(3, 1)

    async def use() -> None:
        for _ in range(3):
            assert limiter.consume_nowait("k").allowed
            assert limiter.consume_many_nowait([("k", 1, other)]).allowed

    trio.run(use)
    with pytest.raises(RuntimeError):
        limiter.consume_nowait("k")
    trio.run(use)


def test_what_was_closed_in_a_run_is_closed_after_it() -> None:
    limiter = MemoryRateLimiter(Policy(5, 1))

    async def use() -> None:
        assert limiter.consume_nowait("k").allowed
        await limiter.aclose()

    trio.run(use)
    with pytest.raises(trio.ClosedResourceError):
        limiter.consume_nowait("k")


async def test_many_limiters_cost_their_run_one_instrument_and_are_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    added: list[trio.abc.Instrument] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trio.lowlevel, "add_instrument", added.append)
        limiters = [MemoryRateLimiter(Policy(5, 1)) for _ in range(10)]
        assert all(one.consume_nowait("k") for one in limiters)
    (instrument,) = added
    last = weakref.ref(limiters[-1])
    limiters.clear()
    gc.collect()
    assert last() is None
    instrument.after_run()  # nobody is left to be told


def test_any_monotonic_clock_will_do() -> None:
    limiter = MemoryRateLimiter(Policy(2, 0.001), clock=time.monotonic)
    assert [limiter.consume_nowait("k").allowed for _ in range(3)] == [True, True, False]
