from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, House, Say, Total, error_of, open_house
from trio_wskit import AuthLease, ConfigError, Context, Request, Router, Session, WsKitError
from trio_wskit.middleware import require_authenticated, require_permission

START = 1_700_000_000


def leased(seconds: float | None, **options: Any) -> dict[str, Any]:
    """The options of an app whose wall clock and leases go with Trio's clock."""
    offset = START - trio.current_time()
    return {
        "wall_clock": lambda: trio.current_time() + offset,
        "lease": AuthLease(
            expires_at=lambda who: None if seconds is None else trio.current_time() + offset + seconds, **options
        ),
    }


async def lives(client: Client) -> float:
    """How long until it is closed because its lease is over."""
    start = trio.current_time()
    assert await client.closed() == (4401, "authentication expired")
    return trio.current_time() - start


async def connect(house: House) -> Client:
    return await house.connect(Request())


async def test_a_connection_lives_as_long_as_its_lease(autojump_clock: MockClock) -> None:
    async with open_house(Router(), **leased(100)) as house:
        assert await lives(await connect(house)) == pytest.approx(100)


async def test_a_lease_of_the_past_lets_nobody_stay_and_no_lease_anybody(autojump_clock: MockClock) -> None:
    async with open_house(Router(), **leased(-1)) as house:
        assert await lives(await connect(house)) == 0
    async with open_house(Router(), **leased(None)) as house:
        client = await connect(house)
        assert client.session.auth.expires_at == math.inf
        await trio.sleep(500)
        assert client.session.close_code is None


async def test_its_end_cancels_what_runs(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    async with open_house(router, **leased(10)) as house:
        client = await connect(house)
        client.send("ADD", {}, call_id="1", timeoutMs=1e9)
        await lives(client)
        await client.served.wait()
    assert log == ["cancelled"]


async def test_a_handler_renews_it(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    def renew(ctx: Context[Say]) -> None:
        ctx.auth.expires_at += float(ctx.payload.text)

    async with open_house(router, **leased(10)) as house:
        client = await connect(house)
        client.say("5")
        await trio.sleep(14)
        client.say("20")
        assert await lives(client) == pytest.approx(21)
        other = await connect(house)
        other.say("-8")
        assert await lives(other) == pytest.approx(2)


async def test_a_login_may_begin_a_lease_where_there_was_none(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    def login(ctx: Context[Say]) -> None:
        ctx.auth.expires_at = START + 10

    options = leased(None)
    del options["lease"]
    async with open_house(router, **options) as house:
        client = await connect(house)
        client.say("x")
        assert await lives(client) == pytest.approx(10)


async def test_the_hook_is_asked_once_before_the_end_of_each_lease(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    async def renew(session: Session) -> float | None:
        asked.append(session.auth.expires_at - START)
        await trio.sleep(1)
        return session.auth.expires_at + 50 if len(asked) < 3 else None

    start = trio.current_time()
    async with open_house(Router(), **leased(100, renew=renew, before=20)) as house:
        client = await connect(house)
        assert await lives(client) == pytest.approx(200)
    assert asked == [pytest.approx(100), pytest.approx(150), pytest.approx(200)]
    assert trio.current_time() - start >= 200


async def _raises(session: Session) -> float | None:
    await trio.lowlevel.checkpoint()
    raise KeyError(session.client_id)


async def _hangs(session: Session) -> float | None:
    await trio.sleep_forever()


@pytest.mark.parametrize("renew", [_raises, _hangs])
async def test_a_hook_that_fails_or_hangs_renews_nothing(
    autojump_clock: MockClock, renew: Callable[[Session], Awaitable[float | None]]
) -> None:
    async with open_house(Router(), **leased(10, renew=renew, before=5)) as house:
        assert await lives(await connect(house)) == pytest.approx(10)
        assert len(house.logged()) == (renew is _raises)


async def test_those_who_left_long_ago_are_forgotten(autojump_clock: MockClock) -> None:
    async with open_house(Router(), **leased(1e6)) as house:
        for _ in range(200):
            await (await connect(house)).leave()
        app: Any = house.app
        assert len(app._services.leases._heap) <= 70


@pytest.mark.parametrize("before", [-1, math.inf, True, "5"])
def test_before_is_a_number_of_seconds(before: object) -> None:
    with pytest.raises(ConfigError, match="AuthLease"):
        AuthLease(expires_at=lambda who: None, before=cast("float", before))


# --- middleware and the strict flags ---------------------------------------------------------------------------------


def guarded(served: list[str]) -> Router:
    router = Router()
    router.use(require_authenticated())
    router.use(require_permission(lambda ctx: ctx.data["role"] == "admin"))

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        served.append(ctx.payload.text)

    return router


@pytest.mark.parametrize(
    ("data", "code"), [(None, "UNAUTHENTICATED"), ({"role": "guest"}, "PERMISSION_DENIED"), ({"role": "admin"}, None)]
)
@pytest.mark.parametrize("strict", ["", "close_on_unauthenticated", "close_on_permission_denied"])
async def test_who_may_not_is_refused_and_closed_where_that_is_asked_for(
    autojump_clock: MockClock, data: dict[str, str] | None, code: str | None, strict: str
) -> None:
    served: list[str] = []

    async def authenticate(request: Request) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return data or {}

    options: dict[str, Any] = {strict: True} if strict else {}
    async with open_house(guarded(served), authenticate=authenticate, **options) as house:
        client = await house.connect()
        client.say("a")
        heard = await client.heard()
        assert [error_of(one) for one in heard] == ([] if code is None else [code])
        assert served == (["a"] if code is None else [])
        if code is not None and strict == f"close_on_{code.lower()}":
            assert await client.closed() == (1008, code)
        else:
            assert client.session.close_code is None


async def test_authentication_is_asked_before_validation_and_permission_after(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def may(ctx: Context[Any]) -> bool:
        await trio.sleep(1)
        return bool(ctx.payload.text == "please")

    router = Router()
    router.use(require_authenticated(lambda ctx: "token" in ctx.meta, message="log in"))
    router.use(require_permission(may, message="not you"))
    router.on(Say)(lambda ctx: seen.append(ctx.payload.text))
    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": 5})
        client.send("SAY", {"text": 5}, token="t")
        client.send("SAY", {"text": "x"}, token="t")
        client.send("SAY", {"text": "please"}, token="t")
        await trio.sleep(5)
        heard = [(error_of(one), one["payload"]["message"]) for one in await client.heard()]
        assert [code for code, _ in heard] == ["UNAUTHENTICATED", "INVALID_ARGUMENT", "PERMISSION_DENIED"]
        assert (heard[0][1], heard[2][1]) == ("log in", "not you")
    assert seen == ["please"]


async def test_a_check_that_returns_something_else_lets_nobody_in_and_one_that_raises_is_answered(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    checks: list[Any] = []

    def check(ctx: Context[Any]) -> bool:
        answer = checks.pop()
        if isinstance(answer, Exception):
            raise answer
        result: bool = answer
        return result

    router.use(require_permission(check))
    router.on(Say)(lambda ctx: None)
    async with open_house(router) as house:
        client = await house.connect()
        for answer in ("yes", 1, WsKitError("UNAVAILABLE")):
            checks.append(answer)
            client.say("a")
            await trio.sleep(0.1)
        codes = [error_of(one) for one in await client.heard()]
        assert codes == ["PERMISSION_DENIED", "PERMISSION_DENIED", "UNAVAILABLE"]


def test_a_check_is_a_function() -> None:
    with pytest.raises(ConfigError, match="must be a function"):
        require_permission(cast("Any", True))
