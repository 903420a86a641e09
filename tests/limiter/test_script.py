"""token_bucket.lua against the arithmetic of Python, to the last unit, at the ends of what it can count."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import attrs
import pytest
import trio
from coredis import Redis
from coredis.retry import NoRetryPolicy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit._core.bucket import take
from trio_wskit._core.reservations import Ledger
from trio_wskit._coredis import Script
from trio_wskit.limiter import Policy
from trio_wskit.limiter._redis_link import Link
from trio_wskit.limiter._wire import TICKS_PER_SECOND, WirePolicy

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

MOST_TIME = 2**51


@st.composite
def wide_policies(draw: st.DrawFn) -> Policy:
    """Policies at both ends of what the script can count, and between."""
    parts = draw(st.one_of(st.integers(1, 10), st.integers(2**52 - 9, 2**52)))
    capacity = draw(st.one_of(st.integers(1, 20), st.integers(1, 10**9)))
    most = (2**51 * parts - 1) // capacity
    grains = draw(st.one_of(st.integers(1, min(10**8, most)), st.integers(max(1, most - 9), most)))
    return Policy(capacity, Fraction(TICKS_PER_SECOND * parts, grains))


@attrs.define
class Bucket:
    """What the script keeps, kept in Python."""

    wire: WirePolicy
    latest: int = 0
    ledger: Ledger = attrs.field(factory=lambda: Ledger(0))
    # The reservations that are open: name, number in the ledger, cost.
    held: list[tuple[str, int, int]] = attrs.field(factory=list[tuple[str, int, int]])

    def now(self, shown: int) -> int:
        return max(shown, self.latest)

    def forget(self) -> None:
        self.latest, self.ledger, self.held = 0, Ledger(0), []

    def forget_if_full(self, shown: int) -> None:
        if self.ledger.full_at <= self.now(shown) * self.wire.grid.grains_per_tick:
            self.forget()

    def take(self, shown: int, cost: int, name: str | None) -> list[int]:
        grid, now = self.wire.grid, self.now(shown)
        allowed = take(grid, self.ledger.full_at, now, cost)[1].allowed
        instant, grains = now * grid.grains_per_tick, cost * grid.grains_per_token
        if allowed and name is not None:
            self.held.append((name, self.ledger.reserve(instant, grains), cost))
        elif allowed and cost:
            self.ledger.spend(instant, grains)
        full_at = max(self.ledger.full_at, instant)
        self.latest = now
        self.forget_if_full(shown)
        return [shown, int(allowed), now, *divmod(full_at, grid.grains_per_tick)]

    def settle(self, shown: int, pick: int, share: int) -> tuple[str, int]:
        name, number, reserved = self.held.pop(pick % len(self.held))
        cost = share * reserved // 100
        self.latest = self.now(shown)
        self.ledger.settle(number, cost * self.wire.grid.grains_per_token)
        self.forget_if_full(shown)
        return name, cost


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "reserve", "settle", "reset"]),
        st.one_of(st.integers(0, 100), st.integers(-(2**40), 2**49)),
        st.integers(0, 2),
        st.integers(0, 100),
        st.integers(0, 100),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(st.lists(wide_policies(), min_size=3, max_size=3), steps)
def test_the_script_counts_as_python_does(
    shared_server: Server, policies: list[Policy], steps: list[tuple[str, int, int, int, int]]
) -> None:
    buckets = {str(place): Bucket(WirePolicy(policy)) for place, policy in enumerate(policies)}

    async def compare() -> None:
        shown = 2**48
        async with Redis.from_url(shared_server.url, retry_policy=NoRetryPolicy()) as client:
            await client.flushall()
            link = Link(Script(client, "trio_wskit.limiter", "token_bucket.lua"))

            async def call(key: str, words: str) -> list[Any]:
                return await link.call([key], str(shown), words)

            for number, (kind, ticks, place, share, pick) in enumerate(steps):
                shown = min(max(0, shown + ticks), MOST_TIME)
                key, bucket = str(place), buckets[str(place)]
                cost = share * bucket.wire.grid.capacity // 100
                if kind == "reset":
                    assert await call(key, "d") == [shown]
                    bucket.forget()
                elif kind == "settle" and bucket.held:
                    name, actual = bucket.settle(shown, pick, share)
                    assert await call(key, bucket.wire.settle(name, actual)) == [shown]
                elif kind == "reserve":
                    name = f"r-{number}"
                    answer = await call(key, f"r {name} {bucket.wire.take(cost)}")
                    assert answer == bucket.take(shown, cost, name)
                else:
                    assert await call(key, f"t 1 {bucket.wire.take(cost)}") == bucket.take(shown, cost, None)

    trio.run(compare)
