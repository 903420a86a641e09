from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.bucket import take
from trio_wskit.limiter import Decision, Policy
from trio_wskit.limiter._denied import DenyCache
from trio_wskit.limiter._wire import WirePolicy

POLICY = WirePolicy(Policy(5, 1))
SECOND = 10**6


def seen(cache: DenyCache, key: str = "k", *, full_at: int = 1005 * SECOND, now: int = 1000 * SECOND) -> DenyCache:
    cache.refused(key, POLICY, full_at, now, asked=10.0, answered=10.0)
    return cache


def test_a_bucket_that_was_seen_empty_refuses_until_it_can_have_enough() -> None:
    cache = seen(DenyCache(10, 100.0))
    decision = cache.refuse("k", 1, 10.5)
    assert decision == Decision(False, 0, 0.5)
    assert cache.refuse("k", 1, 11.0) is None
    assert len(cache) == 0


def test_a_dearer_request_is_refused_for_longer_and_a_cheaper_one_asked_for_sooner() -> None:
    cache = seen(DenyCache(10, 100.0))
    assert cache.refuse("k", 3, 12.5) is not None
    assert cache.refuse("k", 2, 12.5) is None


def test_a_request_that_can_never_succeed_is_refused_for_good() -> None:
    assert seen(DenyCache(10, 100.0)).refuse("k", 6, 10.5) == Decision(False, 0, None)


def test_other_keys_are_not_refused() -> None:
    assert seen(DenyCache(10, 100.0)).refuse("other", 1, 10.0) is None


def test_a_refusal_is_not_believed_for_longer_than_was_said() -> None:
    cache = seen(DenyCache(10, 0.25))
    assert cache.refuse("k", 5, 10.25) is not None
    assert cache.refuse("k", 5, 10.26) is None


def test_the_oldest_refusal_is_forgotten_first() -> None:
    cache = DenyCache(2, 100.0)
    for key in ("a", "b", "a", "c"):
        seen(cache, key)
    assert [cache.refuse(key, 1, 10.0) is None for key in "abc"] == [False, True, False]


def test_a_cache_of_no_size_remembers_nothing() -> None:
    assert seen(DenyCache(0, 100.0)).refuse("k", 1, 10.0) is None


def test_what_may_have_been_given_back_is_asked_again() -> None:
    cache = seen(DenyCache(10, 100.0))
    cache.forget("k")
    cache.forget("k")
    assert cache.refuse("k", 1, 10.0) is None


@given(
    st.builds(Policy, st.integers(1, 100), st.fractions(min_value=1, max_value=10**5, max_denominator=10**6)),
    st.integers(1, 10**8),
    st.integers(1, 100),
    st.integers(0, 10**8),
    st.integers(0, 10**5),
    st.integers(0, 10**5),
)
def test_nothing_is_refused_that_is_there_and_what_is_waited_for_is_there_then(
    policy: Policy, owed: int, cost: int, passed: int, there: int, back: int
) -> None:
    """Asked at 0, decided `there` microseconds later, answered `back` later; asked again `passed` after that."""
    wire, tick = WirePolicy(policy), 10**12
    grid = wire.grid
    full_at = tick * grid.grains_per_tick + min(owed, grid.burst)
    cache = DenyCache(10, 1e9)
    cache.refused("k", wire, full_at, tick, asked=0.0, answered=(there + back) / SECOND)
    refused = cache.refuse("k", cost, (there + back + passed) / SECOND)
    if refused is not None:
        now = tick + back + passed
        assert not take(grid, full_at, now, cost)[1].allowed
        if refused.retry_after is not None:
            assert take(grid, full_at, now + round(refused.retry_after * SECOND), cost)[1].allowed
