"""Our server, doing what tests/peers/wskit_router.mjs does on ws-kit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from tests.interop.wskit_servers import (
    CloseMe,
    Count,
    Counted,
    GetUser,
    Greeting,
    Hello,
    Limited,
    Never,
    Passed,
    Said,
    Say,
    User,
)
from tests.serving import serving
from trio_wskit import App, Context, Reject, Request, Router, WsKitError
from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.middleware import rate_limit
from trio_wskit.pubsub.subscriptions import default_subscriptions

__all__ = ["our_app", "serve_ours"]


def our_app() -> App:
    """Make it anew: limits and topics are its own."""
    router = Router()
    default_subscriptions(router)
    limit = rate_limit(MemoryRateLimiter(Policy(capacity=2, tokens_per_second=1)))

    @router.on(Hello)
    async def hello(ctx: Context[Hello]) -> None:
        await ctx.send(Greeting(f"hello {ctx.payload.name}"))

    @router.on(CloseMe)
    async def close_me(ctx: Context[CloseMe]) -> None:
        await ctx.session.close(ctx.payload.code, "as you wish")

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.publish(f"room:{ctx.payload.room}", Said(ctx.payload.room, ctx.payload.text))

    @router.rpc(GetUser)
    async def get_user(ctx: Context[GetUser]) -> User:
        if ctx.payload.id == "none":
            raise WsKitError("NOT_FOUND", "no such user", {"id": "none"})
        if ctx.payload.id == "busy":
            raise WsKitError("UNAVAILABLE", "busy", retryable=True, retry_after=0.02)
        return User(f"user {ctx.payload.id}")

    @router.rpc(Count)
    async def count(ctx: Context[Count]) -> Counted:
        for n in range(1, ctx.payload.to + 1):
            ctx.progress(Counted(n))
        return Counted(ctx.payload.to)

    @router.route(Limited).use(limit).rpc
    async def limited(ctx: Context[Limited]) -> Passed:
        return Passed(1)

    @router.rpc(Never)
    async def never(ctx: Context[Never]) -> User:
        raise WsKitError("UNIMPLEMENTED")

    return App(router, authenticate=authenticate)


async def authenticate(request: Request) -> dict[str, Any]:
    """Whoever shows a token that is "expired", in whatever way, is not let in."""
    shown = [request.query.get("access_token"), request.headers.get("authorization"), *request.subprotocols]
    if any(one is not None and "expired" in one for one in shown):
        raise Reject(401)
    return {}


@asynccontextmanager
async def serve_ours() -> AsyncGenerator[str]:
    """Serve it, and give its URL."""
    async with serving(our_app()) as server:
        yield f"{server.urls[0]}/"
