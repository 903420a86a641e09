"""Budgets on messages: refuses with RESOURCE_EXHAUSTED and says when to come back, and the handler is not called."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias, final

import attrs

from trio_wskit._context import Context
from trio_wskit._core.bucket import Decision, Policy, check_cost, refusal
from trio_wskit.abc import ImmediateRateLimiter, RateLimiter
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.middleware.counts import RateLimitCounts
from trio_wskit.middleware.keys import per_user_per_type

__all__ = ["Budget", "Cost", "Key", "RateLimit", "rate_limit"]

Key: TypeAlias = "Callable[[Context[Any]], str]"
Cost: TypeAlias = "int | Callable[[Context[Any]], int]"
_Spend: TypeAlias = "tuple[str, int, Policy]"


@final
@attrs.frozen
class Budget:
    """One of several budgets that a message is paid from.

    Attributes:
        key: gives the bucket's key for a message.
        cost: tokens, or a function that gives them. What costs nothing asks nobody.
        policy: of the bucket; None means the limiter's own.
    """

    key: Key
    cost: Cost = 1
    policy: Policy | None = None


@final
class RateLimit:
    """Middleware; see `rate_limit`.

    Attributes:
        stage: when it runs.
        counts: what it has done so far.
    """

    def __init__(self, limiter: RateLimiter, budgets: Sequence[Budget], stage: str) -> None:
        self._limiter = limiter
        self._immediate = limiter if isinstance(limiter, ImmediateRateLimiter) else None
        self._budgets = tuple(budgets)
        self.stage: str = stage
        self.counts: RateLimitCounts = RateLimitCounts()

    async def __call__(self, ctx: Context[Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
        """Pay, and go on; or raise."""
        try:
            refused = await self._refusal(ctx)
        except Exception:
            self.counts.failed += 1
            raise
        if refused is not None:
            (_, cost, policy), decision = refused
            self.counts.turned_away(decision)
            ctx.session.limit_exceeded("rate", policy.capacity - decision.remaining + cost, policy.capacity)
            raise refusal(decision, cost, policy)
        self.counts.passed += 1
        return await call_next()

    async def _refusal(self, ctx: Context[Any]) -> tuple[_Spend, Decision] | None:
        """Pay all; or nothing, and then say which of those who refuse does so for longest."""
        spends: list[_Spend] = []
        for budget in self._budgets:
            cost = check_cost(budget.cost(ctx) if callable(budget.cost) else budget.cost)
            if cost:
                spends.append((budget.key(ctx), cost, budget.policy or self._limiter.policy))
        if not spends:
            return None
        refused = [(spend, said) for spend, said in zip(spends, await self._pay(spends), strict=True) if not said]
        if refused:
            return max(refused, key=_wait)
        self.counts.spent += sum(cost for _, cost, _ in spends)
        return None

    async def _pay(self, spends: Sequence[_Spend]) -> Sequence[Decision]:
        key, cost, policy = spends[0]
        if len(spends) == 1 and policy == self._limiter.policy:
            if self._immediate is not None:
                return [self._immediate.consume_nowait(key, cost)]
            return [await self._limiter.consume(key, cost)]
        if self._immediate is not None:
            return self._immediate.consume_many_nowait(spends).each
        return (await self._limiter.consume_many(spends)).each


def _wait(refused: tuple[object, Decision]) -> float:
    wait = refused[1].retry_after
    return math.inf if wait is None else wait


def rate_limit(
    limiter: RateLimiter,
    key: Key = per_user_per_type,
    cost: Cost = 1,
    *,
    budgets: Sequence[Budget] | None = None,
    stage: Literal["envelope", "message"] = "envelope",
) -> RateLimit:
    """Let a message pass only if its budget pays for it: ``router.use(rate_limit(limiter))``.

    A message that comes too soon gets RESOURCE_EXHAUSTED with ``retryAfterMs`` and ``details`` of cost, capacity and
    remaining, and has cost nothing; one that costs more than a bucket holds gets FAILED_PRECONDITION. The
    `on_limit_exceeded` hooks are told of both: of type ``rate``, with the tokens that were wanted in all and those
    there are at most. What the limiter or a function raises is the answer.

    A limiter in memory decides without a wait, and so the handler of a message may still run at once.

    Args:
        limiter: who decides; see `trio_wskit.limiter`.
        key: gives the bucket's key for a message; see `trio_wskit.middleware.keys`. Not asked for what costs nothing.
        cost: tokens, or a function that gives them for a message, which must not wait.
        budgets: several, in the place of `key` and `cost`: all pay, or none does.
        stage: "envelope": before the payload is validated, which is cheapest; then no function may read
            ``ctx.payload``, and what is invalid has paid. "message": after it.

    Raises:
        ConfigError: an argument is of the wrong kind, or a cost is not a whole number of at least 0. (A function that
            gives such a cost: INVALID_ARGUMENT, for that message.)
    """
    every = [Budget(key, cost)] if budgets is None else list(budgets)
    if not every:
        raise ConfigError("rate_limit(budgets=[]) would limit nothing: give at least one Budget")
    for budget in every:
        if not callable(budget.key):
            raise ConfigError(f"the key of a budget must be a function of the context, not {budget.key!r}")
        if not callable(budget.cost):
            try:
                check_cost(budget.cost)
            except WsKitError as error:
                raise ConfigError(f"{error.message}, not {budget.cost!r}") from None
    return RateLimit(limiter, every, stage)
