"""What must check, and what must not, of policies, quorums and throttling; nothing here is run. See `schema.py`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import math
from typing import assert_type

from trio_wskit import App, ByteBudget, Context, PublishResult, Router, TopicPattern, message
from trio_wskit.pubsub import BackpressureCounts, Block, Conflate, Overflow, ThrottledPublisher, block, conflate
from trio_wskit.pubsub import open_throttled as throttled


@message("PRICE")
class Price:
    symbol: str
    cents: int


# Policies.

assert_type(conflate(), Conflate)
assert_type(conflate(lambda m: (m.type, m.meta.get("by"), m.payload["symbol"])), Conflate)
assert_type(conflate("all"), Conflate)
assert_type(block(0.5), Block)
assert_type(block(0.5, "disconnect"), Block)
block("1")  # type: ignore[arg-type]
block(1, "drop_oldest")  # type: ignore[arg-type]


def overflow(topic: str) -> Overflow:
    return block(1) if topic == "a" else "drop_oldest"


def wrong(topic: str) -> str:
    return topic


app = App(Router(), overflow=overflow, budget=ByteBudget(10**9))
App(Router(), overflow="drop_newest", budget=ByteBudget(math.inf))
App(Router(), overflow=conflate(lambda m: m.payload["symbol"]))
App(Router(), overflow=wrong)  # type: ignore[arg-type]
App(Router(), overflow="drop_all")  # type: ignore[arg-type]
App(Router(), budget=10**9)  # type: ignore[arg-type]
assert_type(app.backpressure, BackpressureCounts)
assert_type(app.backpressure.evicted, int)
assert_type(app.budget.used, int)


async def handler(ctx: Context[Price]) -> None:
    await ctx.topics.subscribe("a", overflow="drop_newest", gaps=True)
    await ctx.topics.subscribe(TopicPattern("a:*"), overflow=conflate())
    await ctx.topics.subscribe("a", overflow="drop_all")  # type: ignore[arg-type]
    await ctx.topics.subscribe("a", "drop_oldest")  # type: ignore[arg-type, call-arg]
    result = await ctx.publish("a", ctx.payload, quorum=0.95, within=0.1)
    assert_type(result, PublishResult)
    assert_type(result.written, int | None)
    assert_type(result.blocked, int)
    await ctx.session.publish("a", ctx.payload, quorum=1, within=1)
    await app.publish("a", ctx.payload, quorum="most", within=1)  # type: ignore[arg-type]


# Throttling.


async def publish(topic: str, price: Price) -> PublishResult:
    return await app.publish(topic, price)


async def throttle() -> None:
    async with app.throttled(0.1) as any_message:
        await any_message.publish("a", Price("ACME", 1))
    async with throttled(ThrottledPublisher(publish, 0.1, "batch", join=lambda prices: prices[-1])) as prices:
        assert_type(prices, ThrottledPublisher[Price])
        prices.publish_nowait("a", Price("ACME", 1))
        await prices.publish("a", "ACME")  # type: ignore[arg-type]
    ThrottledPublisher(publish, 0.1, "first")  # type: ignore[arg-type]
    app.throttled("0.1")  # type: ignore[arg-type]
