"""Apps that do what the recorded ws-kit servers did: the same messages, the same handlers, in our words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import trio

from trio_wskit import (
    App,
    Context,
    Limits,
    PublishResult,
    Request,
    Router,
    Rpc,
    Session,
    WsKitError,
    message,
)
from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.middleware import Cost, rate_limit

__all__ = ["app_for"]


@message("PONG")
class Pong:
    reply: str


@message("PING")
class Ping:
    text: str


@message("ME")
class Me:
    ctx_client_id: str
    data_client_id: str
    keys: list[str]
    received_at: str
    meta: dict[str, Any]
    handshake_same: bool


@message("WHOAMI")
class WhoAmI:
    pass


@message("META_MSG")
class MetaMessage:
    t: str


@message("LOGOUT")
class Logout:
    pass


@message("BOOM")
class Boom:
    pass


@message("BOOM_ASYNC")
class BoomAsync:
    pass


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@message("NUMBER")
class Number:
    n: int


@message("NEVER")
class Never(Rpc[Number]):
    pass


@message("BAD_REPLY_OK")
class BadReplyOk:
    n: int


@message("BAD_REPLY")
class BadReply(Rpc[BadReplyOk]):
    pass


@message("NO_PAYLOAD_RPC_OK")
class NoPayloadOk:
    pass


@message("NO_PAYLOAD_RPC")
class NoPayload(Rpc[NoPayloadOk]):
    pass


@message("PROGRESS_THROTTLED_OK")
class ProgressOk:
    n: int


@message("PROGRESS_THROTTLED")
class Progress(Rpc[ProgressOk]):
    pass


@message("DOUBLE_OK")
class DoubleOk:
    n: int


@message("DOUBLE")
class Double(Rpc[DoubleOk]):
    pass


@message("ERROR_THEN_REPLY")
class ErrorThenReply(Rpc[Number]):
    pass


@message("SLOW_RPC_OK")
class SlowOk:
    done: bool


@message("SLOW_RPC")
class Slow(Rpc[SlowOk]):
    ms: int


@message("ERR_RPC")
class ErrRpc(Rpc[Number]):
    code: str
    message: str | None = None
    details: dict[str, Any] | None = None
    opts: dict[str, Any] | None = None


@message("ERR_EVENT")
class ErrEvent:
    code: str
    message: str | None = None


@message("BIGINT")
class BigInt:
    pass


@message("ECHO_OK")
class EchoOk:
    pass


@message("ECHO")
class Echo:
    pass


@message("CLOSE_ME")
class CloseMe:
    code: int
    reason: str


@message("DONE")
class Done:
    result: dict[str, Any]


@message("SUB")
class Sub:
    topic: str


@message("UNSUB")
class Unsub:
    topic: str


@message("NEWS")
class News:
    text: str


@message("PUB")
class Pub:
    topic: str
    text: str
    meta: dict[str, Any] | None = None


@message("LOOSE", forbid_extra=False)
class Loose:
    a: str


@message("LOOSE_PASS", forbid_extra=False)
class LoosePass:
    a: str


@message("DEFAULTS")
class Defaults:
    n: int
    d: str = "dflt"


def _shown(**values: object) -> Pong:
    return Pong(json.dumps(values, separators=(",", ":"), ensure_ascii=False))


router: Final = Router()


@router.on(Ping)
async def ping(ctx: Context[Ping]) -> None:
    await ctx.send(Pong("echo:" + ctx.payload.text))


@router.on(WhoAmI)
async def whoami(ctx: Context[WhoAmI]) -> None:
    await ctx.send(
        Me(
            ctx_client_id=ctx.client_id,
            data_client_id=ctx.session.client_id,
            keys=sorted(ctx.data),
            received_at="number",
            meta={key: value for key, value in ctx.meta.items() if key != "timestamp"},
            handshake_same=ctx.client_id == ctx.session.client_id,
        )
    )


@router.on(MetaMessage)
async def meta_message(ctx: Context[MetaMessage]) -> None:
    meta = {"custom": 1, "timestamp": 5, "type": "evil", "correlationId": "evil"}
    await ctx.send(_shown(**ctx.meta), meta=meta)


@router.on(Logout)
async def logout(ctx: Context[Logout]) -> None:
    await ctx.send(Pong("never: the message came with a payload"))


@router.on(Boom)
def boom(ctx: Context[Boom]) -> None:
    raise RuntimeError("kaboom")


@router.on(BoomAsync)
async def boom_async(ctx: Context[BoomAsync]) -> None:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("kaboom async")


@router.rpc(GetUser)
async def get_user(ctx: Context[GetUser]) -> User:
    return User(f"user-{ctx.payload.id}")


def _nothing(_: Context[Any]) -> Any:
    return None


router.route(Never).rpc(_nothing)


@router.rpc(BadReply)
async def bad_reply(ctx: Context[BadReply]) -> BadReplyOk:
    wrong: Any = "not a number"
    return BadReplyOk(n=wrong)


@router.rpc(NoPayload)
async def no_payload(ctx: Context[NoPayload]) -> NoPayloadOk:
    return NoPayloadOk()


@router.rpc(Progress)
async def progress(ctx: Context[Progress]) -> ProgressOk:
    for n in range(5):
        ctx.progress({"n": n}, throttle=10.0)
    return ProgressOk(99)


@router.rpc(Double)
async def double(ctx: Context[Double]) -> DoubleOk:
    await ctx.reply(DoubleOk(1))
    return DoubleOk(2)


@router.rpc(ErrorThenReply)
async def error_then_reply(ctx: Context[ErrorThenReply]) -> Number:
    ctx.error("NOT_FOUND", "first")


@router.rpc(Slow)
async def slow(ctx: Context[Slow]) -> SlowOk:
    await trio.sleep(ctx.payload.ms / 1000)
    return SlowOk(done=True)


@router.rpc(ErrRpc)
async def err_rpc(ctx: Context[ErrRpc]) -> Number:
    asked = ctx.payload
    options = asked.opts or {}
    after = options.get("retryAfterMs")
    raise WsKitError(
        asked.code,
        asked.message,
        asked.details,
        retryable=options.get("retryable"),
        retry_after=None if after is None else after / 1000,
    )


@router.on(ErrEvent)
async def err_event(ctx: Context[ErrEvent]) -> None:
    ctx.error(ctx.payload.code, ctx.payload.message)


@router.on(BigInt)
async def bigint(ctx: Context[BigInt]) -> None:
    ctx.error("INTERNAL", "has bigint", {"value": object()})


@router.on(Echo)
async def echo(ctx: Context[Echo]) -> None:
    await ctx.send(EchoOk())


@router.on(CloseMe)
async def close_me(ctx: Context[CloseMe]) -> None:
    await ctx.close(ctx.payload.code, ctx.payload.reason)


@router.on(Sub)
async def sub(ctx: Context[Sub]) -> None:
    await ctx.topics.subscribe(ctx.payload.topic)
    await ctx.send(Done({"sub": ctx.payload.topic, "has": ctx.topics.has(ctx.payload.topic)}))


@router.on(Unsub)
async def unsub(ctx: Context[Unsub]) -> None:
    await ctx.topics.unsubscribe(ctx.payload.topic)
    await ctx.send(Done({"unsub": ctx.payload.topic}))


@router.on(Pub)
async def pub(ctx: Context[Pub]) -> None:
    result: PublishResult = await ctx.publish(ctx.payload.topic, News(ctx.payload.text), meta=ctx.payload.meta)
    await ctx.send(Done({"ok": result.ok, "capability": result.capability, "matched": result.matched_local}))


@router.on(Loose)
async def loose(ctx: Context[Loose]) -> None:
    await ctx.send(_shown(a=ctx.payload.a))


@router.on(LoosePass)
async def loose_pass(ctx: Context[LoosePass]) -> None:
    await ctx.send(_shown(a=ctx.payload.a))


@router.on(Defaults)
async def defaults(ctx: Context[Defaults]) -> None:
    await ctx.send(_shown(n=ctx.payload.n, d=ctx.payload.d))


async def _authenticate(request: Request) -> dict[str, str] | None:
    match request.query.get("access_token"):
        case "good":
            return {"userId": "u1"}
        case "boom":
            raise RuntimeError("boom")
        case _:
            return None


def _guarded() -> App:
    guarded = Router().merge(router)

    @guarded.use
    async def refuse(ctx: Context[Any], call_next: Callable[[], Any]) -> Any:
        raise WsKitError("UNAUTHENTICATED", "Not authenticated")

    return App(guarded)


def _limited(policy: Policy, cost: Cost = 1) -> App:
    limited = Router().merge(router)
    # The clock stands still: how long to wait does not depend on how quick the test is.
    limited.use(rate_limit(MemoryRateLimiter(policy, clock=lambda: 0.0), cost=cost))
    return App(limited)


def _half(_: Context[Any]) -> Any:
    return 0.5


def _failing_to_open() -> App:
    failing = Router()

    @failing.on_open
    async def fail(session: Session) -> None:
        raise RuntimeError("open failed")

    return App(failing)


def _telling_who_left() -> App:
    telling = Router().merge(router)

    @telling.on_open
    async def subscribe(session: Session) -> None:
        await session.topics.subscribe("lobby")

    @telling.on_close
    async def tell(session: Session) -> None:
        text = f"left code={session.close_code} reason={session.close_reason}"
        await session.publish("lobby", News(text), exclude_self=True)

    return App(telling)


_APPS: Final[dict[int, Callable[[], App]]] = {
    82: lambda: App(router, limits=Limits(max_payload_bytes=64)),
    84: lambda: App(router, limits=Limits(max_payload_bytes=64, on_exceeded="custom")),
    86: lambda: App(router, limits=Limits(max_payload_bytes=16)),  # a frame may have four times as much
    88: lambda: App(router, limits=Limits(max_calls=1)),
    90: lambda: _limited(Policy(2, 1)),
    92: lambda: _limited(Policy(2, 1), _half),
    94: lambda: _limited(Policy(1, 3)),
    96: lambda: App(router, authenticate=_authenticate),
    98: lambda: App(router, authenticate=_authenticate),
    100: lambda: App(router, authenticate=_authenticate),
    104: _guarded,
    106: _failing_to_open,
    118: _telling_who_left,
}


def app_for(number: int) -> App:
    """A new app for the transcript of this number."""
    return _APPS.get(number, lambda: App(router))()
