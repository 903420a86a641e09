from __future__ import annotations

import uuid
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import NOW, Add, Client, Said, Say, Total, open_house, settle
from trio_wskit import App, ConfigError, Context, Limits, Reject, Request, Router, Session, open_app
from trio_wskit._core.handshake import Headers
from trio_wskit._services import LimitExceeded
from trio_wskit.errors import LocalProtocolError
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.transports.memory import memory_link

SLEEPY = Limits(ping_interval=float("inf"), close_timeout=3)


make_app: Any = App


def refused_with(client: Client) -> tuple[int, str]:
    assert client.refused is not None
    return client.refused.status, client.refused.body


# --- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"router": 5}, "App takes a Router, not 5"),
        ({"origins": "https://example.org"}, "origins takes a set of origins"),
        ({"budget": 5}, "budget takes a ByteBudget, not 5"),
        ({"overflow": "drop_all"}, "overflow takes 'disconnect', 'drop_oldest', 'drop_newest', conflate"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_app(**{"router": Router(), **arguments})


async def test_a_constructor_starts_nothing(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    app = App(Router())
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert (app.is_open, app.ready, app.sessions) == (False, False, ())
    assert repr(app) == "<App of <Router of 0 routes>, 0 sessions>"


async def test_what_needs_an_open_app_says_so() -> None:
    app = App(Router())
    transport, _ = memory_link()
    with pytest.raises(RuntimeError, match="the app is not open"):
        await app.serve_session(transport, Request())
    with pytest.raises(RuntimeError, match="the app is not open"):
        app.admit(Request())


# --- opening and closing ---------------------------------------------------------------------------------------------


async def test_an_app_is_open_and_ready_inside_its_block_and_may_be_opened_again(autojump_clock: MockClock) -> None:
    app = App(Router())
    for _ in range(2):
        async with open_app(app) as opened:
            assert opened is app
            assert (opened.is_open, opened.ready) == (True, True)
            with pytest.raises(RuntimeError, match="open already"):
                async with open_app(app):
                    raise AssertionError
        assert (app.is_open, app.ready) == (False, False)


@pytest.mark.parametrize("code", [1000, 1011, 4000])
async def test_a_shutdown_code_is_going_away_or_restart(code: int) -> None:
    with pytest.raises(ConfigError, match="shutdown_code takes 1001 or 1012"):
        async with open_app(App(Router()), shutdown_code=code):
            raise AssertionError


@pytest.mark.parametrize("error", [KeyError("x"), ExceptionGroup("several", [KeyError()]), StopAsyncIteration()])
async def test_what_the_block_raises_comes_out_as_it_is(autojump_clock: MockClock, error: Exception) -> None:
    caught: list[BaseException] = []
    try:
        async with open_app(App(Router())):
            await trio.sleep(1)
            raise error
    except Exception as came:
        caught.append(came)
    assert caught == [error]


async def test_two_apps_one_inside_the_other_give_the_error_on(autojump_clock: MockClock) -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as caught:
        async with open_app(App(Router())), open_app(App(Router())):
            raise error
    assert caught.value is error


async def test_a_nursery_of_ones_own_inside_keeps_its_group(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        raise KeyError

    with pytest.raises(ExceptionGroup) as caught:
        async with open_app(App(Router())), trio.open_nursery() as nursery:
            nursery.start_soon(fail)
    assert isinstance(caught.value.exceptions[0], KeyError)


@pytest.mark.parametrize("code", [1001, 1012])
async def test_leaving_closes_every_session_and_waits_for_them(autojump_clock: MockClock, code: int) -> None:
    router = Router()
    ended: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep_forever()

    @router.on_close
    async def slow(session: Session) -> None:
        await trio.sleep(2)
        ended.append(trio.current_time())

    app = App(router, limits=SLEEPY)
    peers = [memory_link() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        async with open_app(app, shutdown_code=code):
            for transport, _ in peers:
                nursery.start_soon(app.serve_session, transport, Request())
            await settle()
            assert len(app.sessions) == 5
            peers[0][1].send_nowait('{"type": "SAY", "payload": {"text": ""}}')
            await settle()
        assert app.sessions == ()
        assert ended == [2] * 5
    for _, peer in peers:
        assert await Client(_, peer).closed() == (code, "going away")


async def test_leaving_waits_no_longer_than_the_close_timeout(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_close
    async def slow(session: Session) -> None:
        await trio.sleep(5)

    app = App(router, limits=SLEEPY)
    transport, peer = memory_link()
    peer.stall()
    async with trio.open_nursery() as nursery:
        async with open_app(app):
            nursery.start_soon(app.serve_session, transport, Request())
            await settle()
        assert trio.current_time() == 3
        assert len(app.sessions) == 1
    assert app.sessions == ()


async def test_cancelled_from_outside_every_client_is_told(autojump_clock: MockClock) -> None:
    app = App(Router(), limits=SLEEPY)
    peers = [memory_link() for _ in range(3)]
    with trio.CancelScope() as scope:
        async with open_app(app, shutdown_code=1012), trio.open_nursery() as nursery:
            for transport, _ in peers:
                nursery.start_soon(app.serve_session, transport, Request())
            await settle()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 0
    for transport, peer in peers:
        assert await Client(transport, peer).closed() == (1012, "going away")


async def test_close_sessions_closes_all_at_the_same_time(autojump_clock: MockClock) -> None:
    async with open_house(limits=SLEEPY) as house:
        quick, slow, slower = [await house.connect() for _ in range(3)]
        slow.peer.stall()
        slower.peer.stall()
        await house.app.close_sessions(4000, "all")
        assert trio.current_time() == 3
        assert await quick.closed() == (4000, "all")
        assert house.app.is_open
        with pytest.raises(LocalProtocolError):
            await house.app.close_sessions(1006)
        with pytest.raises(LocalProtocolError):
            await house.app.close_sessions(1001, "x" * 124)


async def test_an_app_whose_goodbyes_fail_ends_all_the_same(autojump_clock: MockClock) -> None:
    app = App(Router(), limits=SLEEPY)
    transport, _ = memory_link()

    async def broken(code: int = 1000, reason: str = "") -> None:
        raise OSError("a bug")

    failed = False
    transport.aclose = broken  # type: ignore[method-assign]
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            try:
                async with open_app(app):
                    nursery.start_soon(app.serve_session, transport, Request())
                    await settle()
            except* OSError:
                failed = True
    assert failed
    assert not app.is_open


async def test_the_driver_is_closed_with_the_app(autojump_clock: MockClock) -> None:
    closed: list[int] = []

    class Driver:
        def __init__(self) -> None:
            self.inner = MemoryPubSub()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def aclose(self) -> None:
            await trio.sleep(1)
            closed.append(1)

    driver: Any = Driver()
    with trio.CancelScope() as scope:
        async with open_app(App(Router(), pubsub=driver)):
            scope.cancel()
    assert closed == [1]


# --- who may come in -------------------------------------------------------------------------------------------------


async def test_an_admission_has_an_id_of_the_moment_and_the_data(autojump_clock: MockClock) -> None:
    async def authenticate(request: Request) -> dict[str, str]:
        await trio.sleep(1)
        return {"token": request.query["token"]}

    app = App(Router(), authenticate=authenticate, wall_clock=lambda: NOW / 1000)
    request = Request(target="/?token=abc")
    async with open_app(app), app.admit(request) as one, app.admit(request) as two:
        assert one.request is request
        assert one.data == {"token": "abc"}
        made = uuid.UUID(one.client_id)
        assert made.version == 7
        assert int.from_bytes(made.bytes[:6], "big") == NOW
        assert one.client_id != two.client_id


async def test_without_authenticate_everybody_gets_in_with_a_dict_of_his_own(autojump_clock: MockClock) -> None:
    app = App(Router())
    async with open_app(app), app.admit(Request()) as one, app.admit(Request()) as two:
        assert one.data == two.data == {}
        assert one.data is not two.data


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (None, 401, "Unauthorized"),
        (Reject(403, "not you"), 403, "not you"),
        (KeyError("secret"), 500, "Internal server error"),
    ],
)
async def test_authenticate_may_refuse_and_the_place_is_free_again(
    autojump_clock: MockClock, answer: object, status: int, body: str
) -> None:
    async def authenticate(request: Request) -> object:
        await trio.sleep(1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with open_house(authenticate=authenticate, limits=Limits(max_connections=1)) as house:
        for _ in range(2):
            client = await house.connect(Request(remote="1.2.3.4"))
            await client.served.wait()
            assert refused_with(client) == (status, body)
        failures = house.logged()
        assert len(failures) == (2 if status == 500 else 0)
        assert all(line.startswith("authenticate failed for client ") for line in failures)


@pytest.mark.parametrize("data", [{}, 0, "", False])
async def test_any_data_but_none_is_a_yes(autojump_clock: MockClock, data: object) -> None:
    async def authenticate(request: Request) -> object:
        return data

    async with open_house(authenticate=authenticate) as house:
        client = await house.connect()
        assert client.session.data is data


async def test_an_authenticate_that_is_cancelled_frees_its_place(autojump_clock: MockClock) -> None:
    async def authenticate(request: Request) -> object:
        await trio.sleep_forever()
        raise AssertionError

    async with open_house(authenticate=authenticate, limits=Limits(max_connections_per_address=1)) as house:
        client = await house.connect(Request(remote="1.2.3.4"))
        second = await house.connect(Request(remote="1.2.3.4"))
        assert refused_with(second)[0] == 429
        client.scope.cancel()
        await client.served.wait()
        inside: Any = house.app
        assert inside.door.places == 0
        assert inside.door._places_by_address == {}
        third = await house.connect(Request(remote="1.2.3.4"))
        assert third.refused is None
        third.scope.cancel()


async def test_a_slow_authenticate_that_ends_after_the_app_began_to_close_is_too_late(
    autojump_clock: MockClock,
) -> None:
    async def authenticate(request: Request) -> object:
        await trio.sleep(2)
        return {}

    app = App(Router(), authenticate=authenticate, limits=SLEEPY)
    refusals: list[int] = []
    blocker, peer = memory_link()

    async def come() -> None:
        with pytest.raises(Reject) as caught:
            async with app.admit(Request()):
                raise AssertionError
        refusals.append(caught.value.status)

    async with trio.open_nursery() as nursery:
        async with open_app(app):
            nursery.start_soon(app.serve_session, blocker, Request())
            await trio.sleep(2.5)
            peer.stall()
            nursery.start_soon(come)
            await settle()
        assert trio.current_time() == 5.5
        assert not app.ready
    assert refusals == [503]


async def test_who_comes_while_the_app_closes_is_sent_away(autojump_clock: MockClock) -> None:
    app = App(Router(), limits=SLEEPY)
    blocker, peer = memory_link()
    late, late_peer = memory_link()
    later, later_peer = memory_link()

    async def come() -> None:
        async with app.admit(Request()) as admission:
            await trio.sleep(2)  # the handshake takes its time
            await app.serve_session(late, admission)

    async def come_later() -> None:
        await trio.sleep(2)
        await app.serve_session(later, Request())

    async with trio.open_nursery() as nursery:
        async with open_app(app, shutdown_code=1012):
            peer.stall()
            nursery.start_soon(app.serve_session, blocker, Request())
            nursery.start_soon(come)
            nursery.start_soon(come_later)
            await settle()
        assert trio.current_time() == 3
    assert await Client(late, late_peer).closed() == (1012, "going away")
    assert await Client(later, later_peer).closed() == (1013, "Shutting down")


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        (None, "https://example.org", None),
        (None, "https://evil.org", 403),
        (["https://Evil.org/"], "https://evil.org", None),
        (["https://evil.org"], "https://example.org", 403),
        ({"*"}, "https://any.org", None),
        ([], "https://example.org", 403),
        ([], None, None),
    ],
)
async def test_a_page_of_another_origin_is_refused(
    autojump_clock: MockClock, origins: Any, origin: str | None, status: int | None
) -> None:
    pairs = [("Host", "example.org")] + ([("Origin", origin)] if origin else [])
    async with open_house(origins=origins) as house:
        client = await house.connect(Request(headers=Headers(pairs)))
        assert (client.refused and client.refused.status) == status


async def test_connections_are_bounded_in_total_and_for_each_address(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[LimitExceeded] = []

    @router.on_limit_exceeded
    def broken(info: LimitExceeded) -> None:
        raise KeyError

    router.on_limit_exceeded(seen.append)
    here, there = Request(remote="1.1.1.1"), Request(remote="2.2.2.2")
    async with open_house(router, limits=Limits(max_connections=3, max_connections_per_address=2)) as house:
        first, _, third = await house.connect(here), await house.connect(here), await house.connect(here)
        assert refused_with(third) == (429, "Too many connections")
        assert third.refused is not None
        assert third.refused.headers["Retry-After"].isdigit()
        fourth, fifth = await house.connect(there), await house.connect(Request())
        assert fourth.refused is None
        assert refused_with(fifth)[0] == 429
        assert seen == [LimitExceeded("connections", 3, 2, None), LimitExceeded("connections", 4, 3, None)]
        assert house.logged() == ["an on_limit_exceeded hook failed"] * 2
        await first.leave()
        assert (await house.connect(here)).refused is None


async def test_without_an_address_only_the_total_counts(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(max_connections_per_address=1)) as house:
        for _ in range(3):
            assert (await house.connect(Request())).refused is None


# --- a transport that came without an admission ----------------------------------------------------------------------


async def test_a_plain_request_is_admitted_and_served(autojump_clock: MockClock) -> None:
    router = Router()
    router.on(Say)(lambda ctx: ctx.send_nowait(Said(ctx.payload.text)))
    app = App(router, limits=SLEEPY)
    transport, peer = memory_link()
    async with open_app(app), trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_session, transport, Request(remote="1.1.1.1"))
        client = Client(transport, peer)
        client.say("a")
        assert await client.texts() == ["a"]
        peer.close()
    inside: Any = app
    assert inside.door._places_by_address == {}


@pytest.mark.parametrize(
    ("refusal", "code", "reason"),
    [
        (None, 1008, "Unauthorized"),
        (Reject(403, "é" * 100), 1008, "é" * 61),
        (Reject(429, "later"), 1013, "later"),
        (Reject(503, ""), 1013, ""),
    ],
)
async def test_a_plain_request_that_is_refused_is_closed_with_the_nearest_code(
    autojump_clock: MockClock, refusal: Reject | None, code: int, reason: str
) -> None:
    async def authenticate(request: Request) -> object:
        if refusal is not None:
            raise refusal
        return None

    app = App(Router(), authenticate=authenticate, limits=SLEEPY)
    transport, peer = memory_link()
    async with open_app(app):
        await app.serve_session(transport, Request())
        assert await Client(transport, peer).closed() == (code, reason)


@pytest.mark.parametrize("peer_does", ["stall", "close", "cut"])
async def test_a_refusal_waits_for_nobody_longer_than_the_close_timeout_and_raises_nothing(
    autojump_clock: MockClock, peer_does: str
) -> None:
    async def authenticate(request: Request) -> object:
        return None

    app = App(Router(), authenticate=authenticate, limits=SLEEPY)
    transport, peer = memory_link()
    getattr(peer, peer_does)()
    async with open_app(app):
        await app.serve_session(transport, Request())
        assert trio.current_time() == (3 if peer_does == "stall" else 0)


# --- publishing ------------------------------------------------------------------------------------------------------


async def test_an_app_publishes_to_its_subscribers(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("news")

    async with open_house(router) as house:
        one, two = await house.connect(), await house.connect()
        result = await house.app.publish("news", Said("a"), exclude=two.client_id, meta={"more": 1})
        assert (result.ok, result.capability, result.matched_local, result.delivered) == (True, "exact", 1, 1)
        assert await one.heard() == [{"type": "SAID", "meta": {"timestamp": NOW, "more": 1}, "payload": {"text": "a"}}]
        assert await two.heard() == []


async def test_publishes_of_a_pass_leave_in_one_write_for_each_subscriber(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("news")
        await session.topics.subscribe("sport")

    async with open_house(router) as house:
        clients = [await house.connect() for _ in range(3)]
        for n in range(5):
            await house.app.publish("news", Said(f"news {n}"))
            await house.app.publish("sport", Said(f"sport {n}"))
        await settle()
        for client in clients:
            assert client.transport.writes == 1
            assert len(await client.texts()) == 10


# --- all of it -------------------------------------------------------------------------------------------------------


async def test_many_connections_that_come_and_go_leave_nothing(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.topics.subscribe(f"room:{len(ctx.payload.text) % 3}")
        await ctx.publish("room:1", Said(ctx.payload.text))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        ctx.progress(1)
        await trio.sleep(ctx.payload.n)
        return Total(ctx.payload.n)

    async with open_house(router) as house:
        for n in range(60):
            client = await house.connect(Request(remote=f"1.1.1.{n % 5}"))
            client.say("x" * n)
            client.send("ADD", {"n": n % 4}, call_id="a")
            client.send("ADD", {"n": 9}, call_id="b")
            await trio.sleep(0.1)
            if n % 3 == 0:
                client.peer.cut()
            elif n % 3 == 1:
                client.peer.close()
            elif n % 4 == 0:
                client.peer.stall()
        assert len(house.app.sessions) == 20
