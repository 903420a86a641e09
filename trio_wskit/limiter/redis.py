"""Rate limits that many processes share, on Redis 7 or Valkey: exact, atomic, and quick about it."""

from __future__ import annotations

import secrets
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Literal, TypeAlias, final

import attrs
import trio

from trio_wskit._core.bucket import Decision, Decisions, Policy, Spend, check_cost, merge_spends, refusal
from trio_wskit._core.reservations import Reservation
from trio_wskit._core.sharding import slot_of
from trio_wskit._coredis import as_raised
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.limiter._batch import Batcher, Question, StoreError
from trio_wskit.limiter._breaker import Breaker
from trio_wskit.limiter._denied import DenyCache
from trio_wskit.limiter._leases import Lease as Lease
from trio_wskit.limiter._leases import LeaseBook
from trio_wskit.limiter._queue import Queue
from trio_wskit.limiter._redis_link import Link, RedisClient, open_link
from trio_wskit.limiter._wire import TICKS_PER_SECOND, WirePolicy

__all__ = ["Lease", "OnStoreError", "RedisLimiterStatistics", "RedisRateLimiter", "open_redis_limiter"]

OnStoreError: TypeAlias = Literal["allow", "deny", "raise"]


@final
@attrs.frozen
class RedisLimiterStatistics:
    """What a `RedisRateLimiter` has done so far.

    Attributes:
        calls: to the store.
        questions: answered by the store; several fit in a call.
        refused_here: requests refused without asking, because the bucket was known to be empty.
        leased_here: requests paid from a lease.
        store_errors: requests that the store has not answered.
        breaker_openings: how often the store was left alone for a while.
        lost_settlements: reservations that could not be settled, and have paid all.
    """

    calls: int
    questions: int
    refused_here: int
    leased_here: int
    store_errors: int
    breaker_openings: int
    lost_settlements: int


@final
class _Script:
    """Makes of many questions the keys and words of one call, and of its reply their answers."""

    def __init__(self, link: Link, clock: Callable[[], float] | None) -> None:
        self._link = link
        self._clock = clock
        self.drop = link.drop

    async def call(self, questions: Sequence[Question]) -> None:
        if not self._link.is_cluster:
            await self._run(questions)
            return
        by_slot: defaultdict[int, list[Question]] = defaultdict(list)
        for question in questions:
            by_slot[slot_of(question.keys[0])].append(question)
        async with trio.open_nursery() as nursery:
            for some in by_slot.values():
                nursery.start_soon(self._run_or_fail, some)

    async def _run_or_fail(self, questions: Sequence[Question]) -> None:
        # One node that is down is no matter of the others.
        try:
            await self._run(questions)
        except StoreError as error:
            for question in questions:
                question.fail(error)

    async def _run(self, questions: Sequence[Question]) -> None:
        now = "" if self._clock is None else str(round(self._clock() * TICKS_PER_SECOND))
        keys = [key for question in questions for key in question.keys]
        reply: list[Any] = await self._link.call(keys, now, " ".join([question.words for question in questions]))
        shown, at = reply[0], 1
        for question in questions:
            answer = reply[at : at + question.width]
            at += question.width
            if answer and answer[0] < 0:
                question.fail(StoreError(f"the rate limit store refused: {reply[-1].decode()}"))
            else:
                question.answer([shown, *answer])


@final
class RedisRateLimiter:
    """A `trio_wskit.abc.RateLimiter` on Redis; made by `open_redis_limiter`, which says what it does."""

    def __init__(
        self,
        policy: Policy,
        wire: WirePolicy,
        *,
        is_cluster: bool,
        batcher: Batcher,
        breaker: Breaker,
        on_store_error: OnStoreError,
        max_wait: float,
        denied: DenyCache,
        leases: LeaseBook | None,
        clock: Callable[[], float],
    ) -> None:
        self._is_cluster = is_cluster
        self._policy = policy
        self._own = wire
        self._others = {policy: self._own}
        self._batcher = batcher
        self._breaker = breaker
        self._on_store_error: OnStoreError = on_store_error
        self._max_wait = max_wait
        self._denied = denied
        self._leases = leases
        self._now = clock
        self._queue = Queue()
        self._name = secrets.token_hex(6)
        self._numbers = count()
        self._questions = self._refused_here = self._leased_here = self._store_errors = 0

    @property
    def policy(self) -> Policy:
        """The policy of every bucket for which no other is named."""
        return self._policy

    def statistics(self) -> RedisLimiterStatistics:
        """What it has done so far."""
        return RedisLimiterStatistics(
            calls=self._batcher.calls,
            questions=self._questions,
            refused_here=self._refused_here,
            leased_here=self._leased_here,
            store_errors=self._store_errors,
            breaker_openings=self._breaker.openings,
            lost_settlements=self._batcher.lost,
        )

    async def consume(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` tokens of the bucket `key` if they are there. See `trio_wskit.abc.RateLimiter.consume`.

        Waits for the store, for a call of `max_wait` at most, and the one before it. Cancelled before it is sent:
        nothing is spent. Once sent it is not cancelled, and its answer is the truth.

        Raises:
            WsKitError: UNAVAILABLE: the store has not answered, and `on_store_error` is "raise".
        """
        self._batcher.check_open()
        if check_cost(cost) == 0 or self._leases is None:
            return await self._consume(key, cost, "t 1 ", None)
        name = self._own.key(key)
        while True:
            left = self._leases.take(name, cost, self._now())
            if left is not None:
                await trio.lowlevel.checkpoint()
                self._leased_here += 1
                return Decision(True, left, 0.0)
            if await self._leases.turn(name):
                break
        try:
            return await self._consume(key, cost, "", self._leases)
        finally:
            self._leases.done(name)

    async def consume_many(self, spends: Sequence[Spend]) -> Decisions:
        """Pay all requests or none. See `trio_wskit.abc.RateLimiter.consume_many`, and `consume`.

        Raises:
            WsKitError: INVALID_ARGUMENT: on a cluster, keys in different slots: put what they share in braces.
                UNAVAILABLE: the store has not answered, and `on_store_error` is "raise".

        Cancelled: as `consume`.
        """
        self._batcher.check_open()
        buckets = [
            (self._wire(policy), key, cost) for (policy, key), cost in merge_spends(spends, self._policy).items()
        ]
        if not buckets:
            await trio.lowlevel.checkpoint()
            return Decisions.of([])
        names = tuple(policy.key(key) for policy, key, _ in buckets)
        if self._is_cluster and len({slot_of(name) for name in names}) > 1:
            raise WsKitError(
                "INVALID_ARGUMENT",
                "On a cluster, keys that are paid together live in one slot: put what they share in braces, "
                "like {user:7}:read and {user:7}:write",
            )
        words = " ".join([f"t {len(buckets)}", *(policy.take(cost) for policy, _, cost in buckets)])
        try:
            shown, paid, *states = await self._ask(Question(names, words, 1 + 3 * len(buckets)))
        except StoreError as error:
            decisions = [self._decide_without(error, cost, policy.grid.capacity) for policy, _, cost in buckets]
        else:
            for name in names:
                self._denied.forget(name)
            decisions = [
                policy.decide(cost, bool(paid), shown, states[3 * place : 3 * place + 3])
                for place, (policy, _, cost) in enumerate(buckets)
            ]
        said = dict(zip(names, decisions, strict=True))
        return Decisions.of(
            [said[self._wire(spend[2] if len(spend) == 3 else self._policy).key(spend[0])] for spend in spends]
        )

    async def wait(self, key: str, cost: int = 1) -> Decision:
        """Sleep until `cost` tokens are there, and spend them. See `trio_wskit.abc.RateLimiter.wait`.

        First come, first served holds among the callers of this limiter; other processes do not queue with them.
        While the store does not answer, it goes on asking where `on_store_error` is "deny".

        Raises:
            WsKitError: FAILED_PRECONDITION: the cost is above the capacity. UNAVAILABLE: see `consume`.

        Cancelled: nothing is spent, and the next in line moves up. A request that was sent comes to its end first.
        """
        return await self._queue.wait(self.consume, key, check_cost(cost), self._policy)

    @asynccontextmanager
    async def reserve(self, key: str, cost: int = 1) -> AsyncGenerator[Reservation]:
        """Take `cost` tokens for work whose price is known later. See `trio_wskit.abc.RateLimiter.reserve`.

        What is given back is given back by the next call to the store, which the block's end does not wait for. If that
        fails, or the process dies, all is paid. So it is for the oldest of more than 64 that are open on one bucket.

        Raises:
            WsKitError: RESOURCE_EXHAUSTED, FAILED_PRECONDITION: it is refused. UNAVAILABLE: see `consume`.

        Cancelled, on entry or inside: nothing is spent, except what was settled.
        """
        self._batcher.check_open()
        check_cost(cost)
        number = f"{self._name}-{next(self._numbers)}"
        decision = await self._consume(key, cost, f"r {number} ", None)
        if not decision.allowed:
            raise refusal(decision, cost, self._policy)
        reservation = Reservation(cost, decision)
        failed = True
        try:
            yield reservation
            failed = False
        finally:
            owed = reservation.owed(failed=failed)
            if cost:
                # Also when all is paid: a reservation that is closed takes no place on the server.
                name = self._own.key(key)
                self._denied.forget(name)
                self._batcher.tell(Question((name,), self._own.settle(number, owed), 0))

    async def reset(self, key: str) -> None:
        """Make the bucket `key` full.

        Waits for the store, as `consume` does. Cancelled: before it is sent it is not done, and later it is.

        Raises:
            WsKitError: UNAVAILABLE: the store has not answered; it may be done.
        """
        self._batcher.check_open()
        name = self._own.key(key)
        self._denied.forget(name)
        if self._leases is not None:
            self._leases.forget(name)
        try:
            await self._ask(Question((name,), "d", 0))
        except StoreError as error:
            raise self._unavailable(error) from error

    async def aclose(self) -> None:
        """Let any later request raise `trio.ClosedResourceError`. Waits for nothing.

        The connection is closed at the end of `open_redis_limiter`'s block. Cancelled: it is closed.
        """
        self._batcher.close()
        await trio.lowlevel.checkpoint()

    def _wire(self, policy: Policy) -> WirePolicy:
        wire = self._others.get(policy)
        if wire is None:
            wire = self._others[policy] = WirePolicy(policy)
        return wire

    async def _ask(self, question: Question) -> Sequence[int]:
        try:
            answer = await self._batcher.ask(question)
        except StoreError:
            self._store_errors += 1
            raise
        self._questions += 1
        return answer

    async def _consume(self, key: str, cost: int, op: str, leases: LeaseBook | None) -> Decision:
        own, name = self._own, self._own.key(key)
        asked = self._now()
        if cost:
            refused = self._denied.refuse(name, cost, asked)
            if refused is not None:
                await trio.lowlevel.checkpoint()
                self._refused_here += 1
                return refused
        more = cost if leases is None else leases.worth(cost, self._policy.capacity)
        words = op + own.take(cost) if leases is None else own.lease(more, cost)
        try:
            shown, ended, *state = await self._ask(Question((name,), words, 4))
        except StoreError as error:
            return self._decide_without(error, cost, self._policy.capacity)
        decision = own.decide(cost, ended > 0, shown, state)
        if ended == 2 and leases is not None and more > cost:
            return decision._replace(remaining=leases.add(name, more - cost, asked))
        if decision.retry_after and not decision.allowed:
            self._denied.refused(name, own, own.full_at(state), state[0], asked=asked, answered=self._now())
        else:
            self._denied.forget(name)
        return decision

    def _decide_without(self, error: StoreError, cost: int, capacity: int) -> Decision:
        if self._on_store_error == "raise":
            raise self._unavailable(error) from error
        if cost > capacity:
            return Decision(False, 0, None)
        if cost == 0 or self._on_store_error == "allow":
            return Decision(True, 0, 0.0)
        return Decision(False, 0, error.retry_after or self._max_wait)

    def _unavailable(self, error: StoreError) -> WsKitError:
        return WsKitError("UNAVAILABLE", "The rate limit store is unavailable", retry_after=error.retry_after or None)


@asynccontextmanager
async def _running(batcher: Batcher) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(batcher.run)
        try:
            yield
        finally:
            batcher.close()
            with trio.CancelScope(shield=True):
                await batcher.drain()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_redis_limiter(
    target: str | RedisClient,
    policy: Policy,
    *,
    on_store_error: OnStoreError = "raise",
    max_wait: float = 0.5,
    breaker_failures: int = 3,
    breaker_seconds: float = 1.0,
    deny_cache: int = 10_000,
    deny_seconds: float = 1.0,
    lease: Lease | None = None,
    clock: Callable[[], float] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[RedisRateLimiter]:
    """A rate limiter that all processes share which name the same server, policy and key.

    One script on the server decides, by the server's time; all that is asked here at the same time goes in one call.
    A bucket that is full is forgotten by the server, and no other. A server that loses its memory has lost its
    buckets: all are full. Time there is wall-clock time: when it is set back, buckets stand still until it has caught
    up.

    It does not need the server to be there when it is opened.

    Args:
        target: the server's URL, such as ``redis://localhost:6379/0``; or a `coredis.Redis` or `coredis.RedisCluster`
            that is open (entered in a parent task) and was made with ``retry_policy=coredis.retry.NoRetryPolicy()``.
        policy: of every bucket for which no other is named.
        on_store_error: what a request is answered that the store has not: "allow" it (with 0 remaining), "deny" it
            (until the store is asked again; what costs nothing is allowed), or "raise" WsKitError UNAVAILABLE. The
            request may have been paid or not; later ones know.
        max_wait: seconds that one call to the store may take, above 0.
        breaker_failures: calls that fail in a row before the store is left alone, at least 1.
        breaker_seconds: for how many seconds, above 0. Then one call is let through, to see.
        deny_cache: how many refusals are remembered, to refuse again without asking while the bucket cannot have enough
            yet; 0 for none.
        deny_seconds: how long they are believed at most, at least 0: for as long, what another process gives back or
            resets may not be seen.
        lease: take tokens in advance; None asks for every request. Only for `consume` and `wait`.
        clock: for tests: gives the server its time, in seconds; None means its own.
        tls: for ``rediss://`` URLs; None means the system's certificates. Either way the host's name should be checked.

    Raises:
        ConfigError: an option is out of its bounds, the target is no URL, the policy's numbers are too large for Redis
            to count exactly, or the client would ask again by itself.
    """
    for name, value, least in (("max_wait", max_wait, 0.0), ("breaker_seconds", breaker_seconds, 0.0)):
        if not value > least:
            raise ConfigError(f"open_redis_limiter({name}=…) takes seconds above 0, not {value!r}")
    if on_store_error not in ("allow", "deny", "raise"):
        raise ConfigError(
            f"open_redis_limiter(on_store_error=…) takes 'allow', 'deny' or 'raise', not {on_store_error!r}"
        )
    if breaker_failures < 1 or deny_cache < 0 or deny_seconds < 0:
        raise ConfigError("open_redis_limiter takes breaker_failures above 0, deny_cache and deny_seconds not below 0")
    wire = WirePolicy(policy)
    breaker = Breaker(breaker_failures, breaker_seconds)
    async with open_link(target, max_wait, tls) as link:
        batcher = Batcher(_Script(link, clock), max_wait, breaker)
        async with as_raised(_running(batcher)):
            yield RedisRateLimiter(
                policy,
                wire,
                is_cluster=link.is_cluster,
                batcher=batcher,
                breaker=breaker,
                on_store_error=on_store_error,
                max_wait=max_wait,
                denied=DenyCache(deny_cache, deny_seconds),
                leases=None if lease is None else LeaseBook(lease),
                clock=trio.current_time if clock is None else clock,
            )
