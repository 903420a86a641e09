from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Said, Say, Total, error_of, open_house, settle
from trio_wskit import App, ConfigError, Context, Limits, Router, Rpc, Session, message, open_app
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._services import LimitExceeded

Next = Callable[[], Awaitable[Any]]


@message("OTHER")
class Other:
    text: str = ""


async def nothing(ctx: Context[Any]) -> None: ...


async def session_hook(session: Session) -> None: ...


async def through(ctx: Context[Any], call_next: Next) -> Any:
    return await call_next()


def types(router: Router) -> list[str]:
    return [route.spec.type for route in router.routes]


# --- registering -----------------------------------------------------------------------------------------------------


def test_registering_gives_the_function_back() -> None:
    router = Router()
    total: Any = functools.partial(Total, 1)
    event: Any = nothing
    watch: Any = print
    hook: Any = session_hook
    assert router.on(Say)(event) == event
    assert router.route(Other).use(through).on(event) == event
    assert router.rpc(Add)(total) == total
    assert router.use(through) == through
    assert router.on_open(hook) == router.on_close(hook) == hook
    assert router.on_error(watch) == watch
    assert router.on_limit_exceeded(watch) == watch
    assert types(router) == ["SAY", "OTHER", "ADD"]
    assert repr(router) == "<Router of 3 routes>"


def test_a_type_has_one_handler() -> None:
    router = Router()
    router.on(Say)(nothing)
    with pytest.raises(ConfigError, match="'SAY' is registered already"):
        router.on(Say)(nothing)
    with pytest.raises(ConfigError, match="'SAY' is registered already"):
        router.route(Say).use(through).on(nothing)


def test_what_is_no_message_has_no_handler() -> None:
    class Plain: ...

    with pytest.raises(ConfigError, match="Plain is not a message"):
        Router().on(Plain)(nothing)


def test_a_request_wants_rpc_and_an_event_wants_on() -> None:
    router = Router()
    with pytest.raises(ConfigError, match=r"'ADD' wants a reply of type 'TOTAL': register it with rpc\(\)"):
        router.on(Add)(nothing)
    event: Any = Say
    with pytest.raises(ConfigError, match="'SAY' declares no reply"):
        router.rpc(event)(nothing)
    with pytest.raises(ConfigError, match="'SAY' declares no reply"):
        router.route(Say).rpc(nothing)
    assert types(router) == []


async def _yields(ctx: Context[Any]) -> Any:
    yield Total(1)


def _generates(ctx: Context[Any]) -> Any:
    yield Total(1)


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [(5, "must be a function, not 5"), (_yields, "yields; return the reply"), (_generates, "yields")],
)
def test_a_handler_is_a_function_that_returns(handler: Any, complaint: str) -> None:
    router = Router()
    with pytest.raises(ConfigError, match=complaint):
        router.on(Say)(handler)
    with pytest.raises(ConfigError, match=complaint):
        router.rpc(Add)(handler)


class _AsyncCallable:
    async def __call__(self, *args: Any) -> None: ...


@pytest.mark.parametrize("plain", [print, Router, 5])
def test_middleware_and_session_hooks_are_async(plain: Any) -> None:
    router = Router()
    for register in (router.use, router.route(Say).use, router.on_open, router.on_close):
        with pytest.raises(ConfigError, match="must be an async function"):
            register(plain)


@pytest.mark.parametrize("asynchronous", [through, functools.partial(through), _AsyncCallable(), 5])
def test_error_hooks_limit_hooks_and_observers_are_plain(asynchronous: Any) -> None:
    router = Router()
    for register in (router.on_error, router.on_limit_exceeded):
        with pytest.raises(ConfigError, match="must be a plain function"):
            register(asynchronous)
    for kind in ("on_open", "on_close", "on_error", "on_publish"):
        with pytest.raises(ConfigError, match="an observer must be a plain function"):
            router.observe(**{kind: asynchronous})


@pytest.mark.parametrize("asynchronous", [through, functools.partial(through), _AsyncCallable()])
def test_whatever_is_async_may_be_middleware(asynchronous: Any) -> None:
    router = Router()
    router.use(asynchronous)
    assert router.middleware == (asynchronous,)


def test_a_stage_that_nobody_knows_is_refused() -> None:
    class Early(_AsyncCallable):
        stage = "envelop"

    with pytest.raises(ConfigError, match="stage of middleware is 'envelope' or 'message', not 'envelop'"):
        Router().use(Early())
    with pytest.raises(ConfigError, match="stage"):
        Router().route(Say).use(Early())


async def test_a_builder_can_be_used_twice_and_keeps_its_own(autojump_clock: MockClock) -> None:
    log: list[str] = []

    def named(name: str) -> Any:
        async def middleware(ctx: Context[Any], call_next: Next) -> Any:
            log.append(name)
            return await call_next()

        return middleware

    router = Router()
    common = router.route(Say).use(named("common"))
    common.use(named("more")).on(nothing)
    other = Router()
    other.route(Say).use(named("alone")).on(nothing)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await settle()
    assert log == ["common", "more"]


async def test_a_builder_registers_calls(autojump_clock: MockClock) -> None:
    router = Router()

    @router.route(Add).use(through).rpc
    async def add(ctx: Context[Add]) -> Total:
        return Total(ctx.payload.n)

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {"n": 3}, call_id="1")
        assert [one["payload"] for one in await client.heard()] == [{"n": 3}]


# --- merging and mounting --------------------------------------------------------------------------------------------


def said_by(name: str) -> Callable[[Context[Any]], None]:
    return lambda ctx: ctx.send_nowait(Said(name))


def one_route(cls: type[Any], name: str) -> Router:
    router = Router()
    router.on(cls)(said_by(name))
    return router


async def ask(router: Router, *kinds: str) -> list[str]:
    async with open_house(router) as house:
        client = await house.connect()
        for kind in kinds:
            client.send(kind, {})
        return [one["payload"]["text"] if one["type"] == "SAID" else error_of(one) for one in await client.heard()]


async def test_a_merged_router_serves_its_routes(autojump_clock: MockClock) -> None:
    router = one_route(Say, "say").merge(one_route(Other, "other"))
    assert await ask(router, "SAY", "OTHER") == ["say", "other"]


@pytest.mark.parametrize(("on_conflict", "winner"), [("skip", "old"), ("replace", "new")])
async def test_a_conflict_is_decided_as_asked(autojump_clock: MockClock, on_conflict: Any, winner: str) -> None:
    router = one_route(Say, "old")
    router.merge(one_route(Say, "new"), on_conflict=on_conflict)
    assert await ask(router, "SAY") == [winner]


async def test_a_conflict_is_an_error_by_default_and_nothing_was_taken_over(autojump_clock: MockClock) -> None:
    router = one_route(Say, "old")
    other = one_route(Other, "other")
    other.on(Say)(said_by("new"))
    other.on_open(session_hook)
    other.observe(on_open=print)
    with pytest.raises(ConfigError, match="'SAY' is registered already"):
        router.merge(other)
    assert types(router) == ["SAY"]
    assert router.hooks.on_open == []
    assert router.hooks.observers == []
    assert await ask(router, "SAY", "OTHER") == ["old", "UNIMPLEMENTED"]


def test_an_unknown_policy_or_oneself_is_refused() -> None:
    router = one_route(Say, "say")
    unknown: Any = "overwrite"
    with pytest.raises(ConfigError, match="on_conflict takes"):
        router.merge(one_route(Other, "other"), on_conflict=unknown)
    with pytest.raises(ConfigError, match="cannot be merged into itself"):
        router.merge(router, on_conflict="replace")
    with pytest.raises(ConfigError, match="cannot be merged into itself"):
        router.mount("A:", router)


async def test_a_mounted_router_serves_its_types_behind_the_prefix(autojump_clock: MockClock) -> None:
    inner = one_route(Say, "inner")
    router = one_route(Say, "outer").mount("CHAT:", inner).mount("A:", Router().mount("B:", inner))
    assert types(router) == ["SAY", "CHAT:SAY", "A:B:SAY"]
    assert types(inner) == ["SAY"]
    assert await ask(router, "SAY", "CHAT:SAY", "A:B:SAY", "B:SAY") == ["outer", "inner", "inner", "UNIMPLEMENTED"]


async def test_a_mounted_call_is_answered_with_its_own_reply_type(autojump_clock: MockClock) -> None:
    inner = Router()
    seen: list[str] = []

    @inner.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        seen.append(ctx.type)
        return Total(ctx.payload.n)

    async with open_house(Router().mount("MATH:", inner)) as house:
        client = await house.connect()
        client.send("MATH:ADD", {"n": 2}, call_id="c1")
        (total,) = await client.heard()
        assert (total["type"], total["payload"]) == ("TOTAL", {"n": 2})
        assert seen == ["MATH:ADD"]


def test_a_prefix_that_makes_a_reserved_type_is_refused_and_nothing_was_taken_over() -> None:
    router = Router()
    for prefix in ("__", "$ws:"):
        with pytest.raises(ConfigError, match="reserved"):
            router.mount(prefix, one_route(Say, "say"))
    assert types(router) == []


async def test_middleware_stays_with_its_router(autojump_clock: MockClock) -> None:
    log: list[str] = []

    def named(name: str) -> Any:
        async def middleware(ctx: Context[Any], call_next: Next) -> Any:
            log.append(f"{name} {ctx.type}")
            return await call_next()

        return middleware

    inner = one_route(Other, "other")
    inner.use(named("inner"))
    router = one_route(Say, "say")
    router.use(named("outer"))
    router.merge(inner)
    inner.use(named("too late"))
    assert await ask(router, "SAY", "OTHER") == ["say", "other"]
    assert log == ["outer SAY", "outer OTHER", "inner OTHER"]


async def test_hooks_are_taken_over_behind_ones_own(autojump_clock: MockClock) -> None:
    log: list[str] = []

    def hooks(name: str) -> Router:
        router = Router()

        @router.on_open
        async def opened(session: Session) -> None:
            log.append(f"{name} open")

        @router.on_close
        async def closed(session: Session) -> None:
            log.append(f"{name} close")

        router.on_error(lambda error, ctx: log.append(f"{name} error"))
        router.on_limit_exceeded(lambda info: log.append(f"{name} {info.type}"))
        router.observe(on_open=lambda _: log.append(f"{name} observed"))
        return router

    router = hooks("a").merge(hooks("b"))

    @router.on(Say)
    def fail(ctx: Context[Say]) -> None:
        raise KeyError

    async with open_house(router, limits=Limits(max_payload_bytes=100)) as house:
        client = await house.connect()
        client.say("", "x" * 100)
        await settle()
        await client.leave()
        house.logged()
    per_kind = [[line for line in log if line.endswith(end)] for end in ("open", "observed", "error", "load", "close")]
    assert [[line[0] for line in lines] for lines in per_kind] == [["a", "b"]] * 5


async def test_a_router_serves_several_apps_and_holds_nothing_of_their_run(autojump_clock: MockClock) -> None:
    router = one_route(Say, "say")
    for _ in range(2):
        async with open_house(router) as one:
            first = await one.connect()
            async with open_house(router) as two:
                for client in (first, await two.connect()):
                    client.say("")
                    assert await client.texts() == ["say"]


async def test_what_is_registered_after_the_app_was_opened_is_for_the_next_time(autojump_clock: MockClock) -> None:
    router = one_route(Say, "say")
    app = App(router)
    async with open_app(app):
        router.on(Other)(said_by("other"))
    assert await ask(router, "OTHER") == ["other"]


# --- observers -------------------------------------------------------------------------------------------------------


async def test_observers_see_sessions_errors_and_publishes(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []
    published: list[tuple[PublishEnvelope, PublishResult]] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.publish("room:1", Said(ctx.payload.text))
        ctx.error("NOT_FOUND")

    router.observe(
        on_open=lambda session: log.append(f"open {session.client_id}"),
        on_close=lambda session: log.append(f"close {session.close_code}"),
        on_error=lambda error, ctx: log.append(f"error {ctx and ctx.type}"),
        on_publish=lambda envelope, result: published.append((envelope, result)),
    )
    router.observe()  # sees nothing, and harms nobody
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        await client.heard()
        await client.leave()
        assert log == [f"open {client.client_id}", "error SAY", "close 1000"]
        ((envelope, result),) = published
        assert (envelope.topic, envelope.type, envelope.exclude) == ("room:1", "SAID", None)
        assert result.ok


async def test_a_stopped_observer_sees_nothing_more_in_no_router_and_stopping_twice_is_no_matter(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    inner = Router()
    stop = inner.observe(on_open=lambda _: log.append("stopped"))
    inner.observe(on_open=lambda _: log.append("stays"))
    router = Router().merge(inner)
    async with open_house(router) as house:
        await house.connect()
        stop()
        stop()
        await house.connect()
    assert log == ["stopped", "stays", "stays"]
    assert len(inner.hooks.observers) == 1


async def test_observers_may_come_and_go_while_they_are_told(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []
    stops: list[Callable[[], None]] = []

    def first(session: Session) -> None:
        log.append("first")
        stops[0]()
        stops[1]()
        router.observe(on_open=lambda _: log.append("third"))

    stops.append(router.observe(on_open=first))
    stops.append(router.observe(on_open=lambda _: log.append("second")))
    async with open_house(router) as house:
        await house.connect()
        assert log == ["first"]
        await house.connect()
        assert log == ["first", "third"]


async def test_an_observer_that_raises_stops_no_other(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    def broken(*_: object) -> None:
        raise KeyError

    router.observe(on_open=broken, on_close=broken, on_error=broken, on_publish=broken)
    router.observe(on_open=lambda _: log.append("open"), on_publish=lambda envelope, result: log.append("publish"))

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.publish("room:1", Said())
        await trio.lowlevel.checkpoint()

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await settle()
        await client.leave()
        assert log == ["open", "publish"]
        assert house.logged() == ["an observer failed"] * 3


# --- errors of one's own ---------------------------------------------------------------------------------------------


async def test_ones_own_exceptions_have_the_code_that_was_registered(autojump_clock: MockClock) -> None:
    class SoldOutError(Exception): ...

    inner = Router()
    inner.errors.register(SoldOutError, "FAILED_PRECONDITION", "sold out")

    @inner.on(Say)
    def say(ctx: Context[Say]) -> None:
        raise SoldOutError

    router = Router().merge(inner)
    assert len(router.errors) == 1
    assert await ask(router, "SAY") == ["FAILED_PRECONDITION"]


def test_the_types_of_the_example_are_what_they_say() -> None:
    assert issubclass(Add, Rpc)
    assert LimitExceeded("payload", 1, 2, None) == LimitExceeded("payload", 1, 2, None)


@pytest.mark.parametrize("register", ["on", "rpc", "route"])
def test_a_forgotten_message_class_is_refused_at_once(register: str) -> None:
    def handler(ctx: Context[Any]) -> None: ...

    with pytest.raises(ConfigError, match="is not a message"):
        getattr(Router(), register)(handler)
