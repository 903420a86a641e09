"""A hypothesis state machine that holds a rate limiter against the model, step by step.

::

    class MyLimiterMachine(RateLimiterStateMachine):
        def open(self, policy, clock):
            return open_my_limiter(policy, clock=clock)

    TestMyLimiter = MyLimiterMachine.TestCase

Needs hypothesis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from fractions import Fraction
from typing import ClassVar, TypeAlias, final

import attrs

from trio_wskit._core.bucket import Decision, Decisions, Policy, Spend
from trio_wskit.abc import RateLimiter
from trio_wskit.errors import WsKitError
from trio_wskit.testing.limiter_model import ManualClock, ModelRateLimiter
from trio_wskit.testing.limiter_thread import HeldReservation, LimiterThread

try:
    from hypothesis import assume
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
except ImportError as _missing:
    raise ImportError("the rate limiter's state machine needs hypothesis: pip install hypothesis") from _missing

__all__ = ["RateLimiterStateMachine", "clock_jumps", "policies", "rates", "schedules"]

_Bucket: TypeAlias = tuple[str, Policy]


def rates() -> st.SearchStrategy[int | float | Fraction]:
    """Tokens a second: whole and broken, from one in eleven days to a million million."""
    return st.one_of(
        st.integers(1, 10**12),
        st.fractions(min_value=Fraction(1, 10**6), max_value=10**6, max_denominator=10**6),
        st.sampled_from([0.1, 0.3, 1.1, 2.5, 1e-6]),
    )


def policies(*, max_capacity: int = 1000, prefixes: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Policy]:
    """Policies of every kind of rate."""
    return st.builds(Policy, st.integers(1, max_capacity), rates(), st.none() if prefixes is None else prefixes)


def clock_jumps() -> st.SearchStrategy[int]:
    """By how many ticks a clock moves: not at all, a little, by far."""
    return st.one_of(st.just(0), st.integers(1, 10), st.integers(1, 10**6), st.integers(1, 10**12))


def schedules(
    *, max_size: int = 50, keys: str = "ab", max_cost: int = 10
) -> st.SearchStrategy[list[tuple[int, str, int]]]:
    """Requests, as ``(ticks since the last one, key, cost)``."""
    request = st.tuples(clock_jumps(), st.sampled_from(keys), st.integers(0, max_cost))
    return st.lists(request, max_size=max_size)


@final
@attrs.define
class _Held:
    """A reservation that is open: in the limiter, in the model, and among the grants."""

    cost: int
    real: HeldReservation
    settle_model: Callable[[int], None]
    grant: list[int]


class RateLimiterStateMachine(RuleBasedStateMachine):
    """Random requests, pauses, clocks that jump, reservations and resets; every answer is compared with the model's.

    Override `open`. The limiter lives in a Trio run of its own, in a thread, with a clock that is set by hand.

    Attributes:
        ticks_per_second: the unit of the limiter's time.
        max_capacity: of the policies that are tried.
    """

    ticks_per_second: ClassVar[int] = 10**9
    max_capacity: ClassVar[int] = 1000

    def open(self, policy: Policy, clock: Callable[[], float]) -> AbstractAsyncContextManager[RateLimiter]:
        """Open a limiter whose buckets are all full."""
        raise TypeError("override open(policy, clock) in your subclass of RateLimiterStateMachine")

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Open the limiter and its model."""
        self.own: Policy = data.draw(policies(max_capacity=self.max_capacity), label="policy")
        self.other: Policy = data.draw(
            policies(max_capacity=self.max_capacity, prefixes=st.just("other:")), label="other policy"
        )
        self.clock: ManualClock = ManualClock(self.ticks_per_second)
        self.clock.ticks = 10**13
        self.model: ModelRateLimiter = ModelRateLimiter(self.own, self.clock, ticks_per_second=self.ticks_per_second)
        self.held: list[_Held] = []
        self.refused: tuple[str, int] | None = None
        self.asked: set[_Bucket] = set()
        # What each bucket was granted since it was last reset: when (in time that never goes back), and how much.
        self.grants: defaultdict[_Bucket, list[list[int]]] = defaultdict(list)
        self.latest: int = self.clock.ticks
        self.limiter: LimiterThread = LimiterThread(self.open(self.own, self.clock))

    @rule(key=st.sampled_from("ab"), cost=st.one_of(st.integers(0, 5), st.integers(0, 1100)))
    def spend(self, key: str, cost: int) -> None:
        """One request."""
        answer = self.limiter.consume(key, cost)
        self._same(answer, self.model.consume(key, cost))
        self.asked.add((key, self.own))
        if answer.allowed and cost:
            self._grant((key, self.own), cost)
        if answer.retry_after:
            self.refused = (key, cost)

    @rule(key=st.sampled_from("ab"))
    def spend_all(self, key: str) -> None:
        """What remains can be spent, and no more than that."""
        left = self.limiter.consume(key, 0).remaining
        self.spend(key, left + 1)
        self.spend(key, left)

    @rule(first=st.integers(0, 4), second=st.integers(0, 4), third=st.integers(0, 1100))
    def spend_many(self, first: int, second: int, third: int) -> None:
        """Several requests that are paid together, of two policies."""
        spends: list[Spend] = [("a", first), ("b", second), ("a", third, self.other), ("a", second)]
        answer = self.limiter.consume_many(spends)
        self._all_same(answer, self.model.consume_many(spends))
        costs = {("a", self.own): first + second, ("b", self.own): second, ("a", self.other): third}
        self.asked.update(costs)
        if answer.allowed:
            for bucket, cost in costs.items():
                self._grant(bucket, cost)

    @rule(ticks=clock_jumps())
    def pass_time(self, ticks: int) -> None:
        """Move the clock on, or leave it where it is."""
        self.clock.ticks += ticks

    @rule(ticks=clock_jumps(), cost=st.integers(0, 10))
    def clock_goes_back_for_a_while(self, ticks: int, cost: int) -> None:
        """Move the clock back: buckets hold what they held, can be spent from, and refill when it has caught up.

        Only buckets that are not full: a store may have forgotten the others, and with them what time it was.
        """
        before = {bucket: self._look(bucket) for bucket in self.asked}
        now = self.clock.ticks
        self.latest = max(self.latest, now)
        self.clock.ticks = max(0, now - ticks)
        for bucket, look in before.items():
            key, policy = bucket
            if look.remaining < policy.capacity:
                assert self._look(bucket) == look, f"a clock that went back changed {bucket}"
                spends = [(key, cost, policy)]
                answer = self.limiter.consume_many(spends)
                self._all_same(answer, self.model.consume_many(spends))
                if answer.allowed:
                    self._grant(bucket, cost)
        self.clock.ticks = now

    @precondition(lambda self: self.refused is not None)
    @rule()
    def retry(self) -> None:
        """A refused request succeeds when it was told to come back, and not one tick earlier."""
        assert self.refused is not None
        key, cost = self.refused
        self.refused = None
        answer = self.limiter.consume(key, cost)
        self._same(answer, self.model.consume(key, cost))
        if answer.allowed:
            self._grant((key, self.own), cost)
            return
        assert answer.retry_after is not None
        ticks = round(answer.retry_after * self.ticks_per_second)
        assume(self.clock.ticks + ticks < 2**50)
        self.clock.ticks += ticks - 1
        answer = self.limiter.consume(key, cost)
        self._same(answer, self.model.consume(key, cost))
        assert not answer.allowed, f"{ticks - 1} of {ticks} ticks were enough for {cost}"
        self.clock.ticks += 1
        answer = self.limiter.consume(key, cost)
        self._same(answer, self.model.consume(key, cost))
        assert answer.allowed, f"{ticks} ticks were not enough for {cost}"
        self._grant((key, self.own), cost)

    @rule(key=st.sampled_from("ab"), cost=st.integers(0, 20))
    def reserve(self, key: str, cost: int) -> None:
        """Take tokens on approval, if they are there."""
        right, settle = self.model.reserve(key, cost)
        self.asked.add((key, self.own))
        real = self.limiter.reserve(key, cost)
        if settle is None:
            code = "FAILED_PRECONDITION" if right.retry_after is None else "RESOURCE_EXHAUSTED"
            assert isinstance(real, WsKitError), f"{cost} tokens were reserved of {right.remaining}"
            assert real.code == code, f"{real} is not {code}"
            return
        assert isinstance(real, HeldReservation), f"{cost} tokens were refused: {real}; the model says {right}"
        self._same(real.decision, right)
        self.held.append(_Held(cost, real, settle, self._grant((key, self.own), cost)))

    @precondition(lambda self: bool(self.held))
    @rule(pick=st.integers(0, 100), share=st.none() | st.integers(0, 100), failed=st.booleans())
    def release(self, pick: int, share: int | None, failed: bool) -> None:
        """End a reservation, settled or not, well or not."""
        held = self.held.pop(pick % len(self.held))
        actual = None if share is None else held.cost * share // 100
        self.limiter.end(held.real, actual, failed=failed)
        paid = actual if actual is not None else (0 if failed else held.cost)
        held.settle_model(paid)
        held.grant[1] = paid

    @rule(key=st.sampled_from("ab"))
    def reset(self, key: str) -> None:
        """Make a bucket full."""
        self.limiter.reset(key)
        self.model.reset(key)
        self.grants.pop((key, self.own), None)

    @rule(key=st.sampled_from("ab"), cost=st.integers(1, 1100), patience=st.sampled_from([0.0, 0.001]))
    def give_up_waiting(self, key: str, cost: int, patience: float) -> None:
        """A wait that is cancelled spends nothing. One that has nothing to wait for is not cancelled."""
        assume(cost <= self.own.capacity)
        self.asked.add((key, self.own))
        right = self.model.consume(key, cost)
        if right.allowed:
            self._same(self.limiter.wait(key, cost, 10), right)
            self._grant((key, self.own), cost)
        else:
            # The clock stands still, so the tokens do not come.
            answer = self.limiter.wait(key, cost, patience)
            assert answer is None, f"a wait ended that has nothing to end with: {answer}"

    @invariant()
    def remaining_never_lies(self) -> None:
        """Whatever happened, every bucket holds what the model's holds."""
        for bucket in getattr(self, "asked", ()):
            self._look(bucket)

    def teardown(self) -> None:
        """Close the limiter, and look at all that it granted: no window may have got more than its policy allows."""
        if not hasattr(self, "limiter"):
            return
        try:
            while self.held:
                self.release(0, None, False)
        finally:
            self.limiter.close()
        for (_, policy), grants in self.grants.items():
            self._check_windows(policy, grants)

    def _check_windows(self, policy: Policy, grants: list[list[int]]) -> None:
        # In whole numbers: a tick is worth so many parts, and a token is so many of them.
        per_tick, per_token = policy.rate.numerator, policy.rate.denominator * self.ticks_per_second
        granted = 0
        least_before: int | None = None
        for tick, cost in grants:
            before = granted - per_tick * tick
            least_before = before if least_before is None else min(least_before, before)
            granted += cost * per_token
            most = granted - per_tick * tick - least_before
            assert most <= policy.capacity * per_token, f"a window got {most / per_token} tokens more than its time's"

    def _look(self, bucket: _Bucket) -> Decision:
        spends = [(bucket[0], 0, bucket[1])]
        answer = self.limiter.consume_many(spends)
        self._all_same(answer, self.model.consume_many(spends))
        return answer.each[0]

    def _grant(self, bucket: _Bucket, cost: int) -> list[int]:
        self.latest = max(self.latest, self.clock.ticks)
        grant = [self.latest, cost]
        self.grants[bucket].append(grant)
        return grant

    def _same(self, answer: Decision | None, right: Decision) -> None:
        assert answer is not None
        same = answer[:2] == right[:2] and _is_close(answer.retry_after, right.retry_after)
        assert same, f"the limiter says {answer}, the model says {right}"

    def _all_same(self, answer: Decisions, right: Decisions) -> None:
        assert answer.allowed == right.allowed, f"the limiter says {answer}, the model says {right}"
        assert _is_close(answer.retry_after, right.retry_after), f"the limiter says {answer}, the model says {right}"
        for one, other in zip(answer.each, right.each, strict=True):
            self._same(one, other)


def _is_close(wait: float | None, right: float | None) -> bool:
    # A wait of months in nanoseconds is more than a float can tell apart.
    return wait == right or (wait is not None and right is not None and abs(wait - right) <= 2 * math.ulp(right))
