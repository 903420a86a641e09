"""What must check, and what must not, of routers, contexts, hooks and apps; nothing here is run. See `schema.py`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

from trio_wskit import App, Context, PublishResult, Request, Router, Rpc, Session, message
from trio_wskit._services import LimitExceeded


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    user_id: str


@message("SAY")
class Say:
    text: str


router = Router()

# Events: the payload is typed, and the handler comes back as it was.


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    assert_type(ctx.payload, Say)
    assert_type(ctx.payload.text, str)
    assert_type(ctx.client_id, str)
    assert_type(ctx.correlation_id, str | None)
    assert_type(ctx.session, Session)
    assert_type(await ctx.publish("room:1", Say("a")), PublishResult)
    ctx.payload.name  # type: ignore[attr-defined]  # noqa: B018
    ctx.payload.text = "b"  # type: ignore[misc]
    await ctx.send(Say(5))  # type: ignore[arg-type]
    ctx.progress({"done": 1}, throttle=0.5)
    await ctx.send(Say("a"), meta={"more": 1}, inherit_correlation_id=True)


@router.on(Say)
def say_at_once(ctx: Context[Say]) -> None:
    ctx.send_nowait(Say(ctx.payload.text))


router.on(Say)(lambda ctx: ctx.send_nowait(Say(ctx.payload.text)))
router.route(Say).use(lambda ctx, call_next: call_next()).on(say)


@router.on(Say)  # type: ignore[arg-type]
async def of_another_message(ctx: Context[User]) -> None: ...


@router.on(Say)  # type: ignore[arg-type]
async def without_a_context() -> None: ...


# Calls: what the handler returns is the reply that its request names.


@router.rpc(GetUser)
async def get_user(ctx: Context[GetUser]) -> User:
    assert_type(ctx.payload, GetUser)
    assert_type(ctx.payload.user_id, str)
    if not ctx.payload.user_id:
        ctx.error("NOT_FOUND", "nobody", retry_after=1.5)
    await ctx.reply(User("a"))
    return User(ctx.payload.user_id)


@router.rpc(GetUser)
def get_user_at_once(ctx: Context[GetUser]) -> User:
    return User(ctx.payload.user_id)


@router.rpc(GetUser)  # type: ignore[arg-type]
async def another_reply(ctx: Context[GetUser]) -> Say:
    return Say("a")


@router.rpc(GetUser)  # type: ignore[arg-type]
async def no_reply(ctx: Context[GetUser]) -> None: ...


@router.rpc(Say)  # type: ignore[arg-type]
async def no_request(ctx: Context[Say]) -> Say:
    return ctx.payload


def lookup(ctx: Context[GetUser]) -> str:  # noqa: RET503 - the last line does not return: that is the test
    """`error` does not return, so there is no path without a result."""
    if ctx.payload.user_id:
        return ctx.payload.user_id
    ctx.error("NOT_FOUND")


# Middleware and hooks.


@router.use
async def through(ctx: Context[Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
    return await call_next()


@router.use  # type: ignore[arg-type]
async def takes_too_little(ctx: Context[Any]) -> Any: ...


@router.use  # type: ignore[arg-type]
def is_not_async(ctx: Context[Any], call_next: Callable[[], Awaitable[Any]]) -> int:
    return 1


@router.on_open
@router.on_close
async def hook(session: Session) -> None:
    await session.send(Say("welcome"))
    await session.close(1000, "bye")
    assert_type(session.close_code, int | None)


@router.on_open  # type: ignore[arg-type]
def plain_hook(session: Session) -> None: ...


@router.on_error
def told(error: Exception, ctx: Context[Any] | None) -> None: ...


@router.on_error  # type: ignore[arg-type]
def told_too_little(error: Exception) -> None: ...


@router.on_limit_exceeded
def limited(info: LimitExceeded) -> None:
    assert_type(info.observed, float)


opened: list[Session] = []
stop = router.observe(on_open=opened.append, on_error=told)
assert_type(stop, Callable[[], None])
router.observe(on_open=told)  # type: ignore[arg-type]

# Merging gives the router back.

assert_type(router.merge(Router()).mount("CHAT:", Router(), on_conflict="skip"), Router)
router.merge(Router(), on_conflict="overwrite")  # type: ignore[arg-type]

# Apps.


async def authenticate(request: Request) -> dict[str, str] | None:
    return {"token": request.query["token"]}


assert_type(App(router, authenticate=authenticate, origins={"*"}, overflow="drop_oldest"), App)
App(router, overflow=lambda topic: "drop_newest" if topic.startswith("news") else "disconnect")
App()  # type: ignore[call-arg]
App(router, overflow="drop_all")  # type: ignore[arg-type]
App(router, authenticate=lambda request: None)  # type: ignore[arg-type,return-value]
