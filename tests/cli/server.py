"""A server for the command line to talk to."""

from __future__ import annotations

import trio

from trio_wskit import App, Context, Router, Rpc, Session, message
from trio_wskit.client import Subscribe, Subscribed, Unsubscribe, Unsubscribed

__all__ = ["app"]


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("TOTAL")
class Total:
    n: int


@message("ADD")
class Add(Rpc[Total]):
    n: int


@message("COUNT")
class Count(Rpc[Total]):
    to: int


@message("BYE")
class Bye:
    code: int


def app(topics: list[str] | None = None, closes: list[int | None] | None = None) -> App:
    """What it is asked to subscribe to goes into `topics`, and what it is closed with into `closes`."""
    router = Router()

    @router.on_close
    async def closed(session: Session) -> None:
        if closes is not None:
            closes.append(session.close_code)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        if ctx.payload.text == "later":
            await trio.sleep(0.7)
        await ctx.send(Said(ctx.payload.text))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        return Total(ctx.payload.n + 1)

    @router.rpc(Count)
    async def count(ctx: Context[Count]) -> Total:
        for n in range(ctx.payload.to):
            ctx.progress({"n": n})
        if ctx.payload.to > 3:
            ctx.error("INVALID_ARGUMENT", "at most 3", {"most": 3})
        return Total(ctx.payload.to)

    @router.on(Bye)
    async def bye(ctx: Context[Bye]) -> None:
        await ctx.close(ctx.payload.code, "as asked")

    @router.rpc(Subscribe)
    async def subscribe(ctx: Context[Subscribe]) -> Subscribed:
        await ctx.topics.subscribe(ctx.payload.topic)
        if topics is not None:
            topics.append(ctx.payload.topic)
        return Subscribed(ctx.payload.topic)

    @router.rpc(Unsubscribe)
    async def unsubscribe(ctx: Context[Unsubscribe]) -> Unsubscribed:
        await ctx.topics.unsubscribe(ctx.payload.topic)
        return Unsubscribed(ctx.payload.topic)

    return App(router)
