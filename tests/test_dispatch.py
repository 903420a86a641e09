from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import NOW, Add, Client, House, Said, Say, Total, error_of, open_house, raw, settle
from trio_wskit import Context, Limits, Router, WsKitError, message
from trio_wskit.limiter import Policy


def slow_calls(log: list[str], seconds: float = 10) -> Router:
    """ADD takes so many seconds, and says in the log how it went."""
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        log.append(f"begin {ctx.payload.n}")
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            log.append(f"cancelled {ctx.payload.n}")
            raise
        log.append(f"end {ctx.payload.n}")
        return Total(ctx.payload.n)

    return router


def ask(client: Client, *numbers: int) -> None:
    """One ADD for each number, in one read, with the number as its id."""
    for n in numbers:
        client.send("ADD", {"n": n}, call_id=str(n))


def answers(heard: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Of each answer, the id and the total or the code."""
    return [
        (one["meta"]["correlationId"], str(one["payload"]["n"]) if one["type"] == "TOTAL" else error_of(one))
        for one in heard
    ]


# --- order -----------------------------------------------------------------------------------------------------------


async def test_events_are_served_one_after_another(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        log.append(f"begin {ctx.payload.text}")
        await trio.sleep(1)
        log.append(f"end {ctx.payload.text}")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        await trio.sleep(3)
        client.say("c")
        await trio.sleep(2)
    assert log == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]


async def test_calls_start_in_order_and_run_beside_one_another(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow_calls(log)) as house:
        client = await house.connect()
        ask(client, 1, 2, 3)
        await trio.sleep(9.9)
        assert log == ["begin 1", "begin 2", "begin 3"]
        await trio.sleep(0.2)
        assert set(answers(await client.heard())) == {("1", "1"), ("2", "2"), ("3", "3")}


@pytest.mark.parametrize("waits", ["never", "always", "odd"])
async def test_starts_are_first_in_first_out_whatever_waits(autojump_clock: MockClock, waits: str) -> None:
    router = Router()
    begun: list[int] = []

    async def begin(n: int) -> None:
        begun.append(n)
        if waits == "always" or (waits == "odd" and n % 2):
            await trio.sleep(1)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await begin(int(ctx.payload.text))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await begin(ctx.payload.n)
        return Total(ctx.payload.n)

    async with open_house(router, limits=Limits(max_in_flight=100)) as house:
        client = await house.connect()
        for n in range(60):
            if n % 3:
                ask(client, n)
            else:
                client.say(str(n))
            if n % 7 == 0:
                await settle()  # a read of its own
        await trio.sleep(100)
        assert begun == list(range(60))
        assert len(await client.heard()) == 40


async def test_an_event_waits_for_no_call_and_a_call_for_the_events_before_it(autojump_clock: MockClock) -> None:
    log: list[str] = []
    router = slow_calls(log)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        log.append("begin say")
        await trio.sleep(1)
        log.append("end say")

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        client.say("")
        ask(client, 2)
        await trio.sleep(30)
    assert log == ["begin 1", "begin say", "end say", "begin 2", "end 1", "end 2"]


# --- what it costs ---------------------------------------------------------------------------------------------------


async def test_what_never_waits_costs_no_task(autojump_clock: MockClock) -> None:
    router = Router()
    tasks: set[int] = set()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        tasks.add(house.tasks)
        return Total(1)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        tasks.add(house.tasks)
        await ctx.send(Said())

    async with open_house(router) as house:
        client = await house.connect()
        idle = house.tasks
        for n in range(30):
            ask(client, n)
            client.say("")
        await settle()
        assert tasks == {idle}
        assert house.tasks == idle
        assert len(await client.heard()) == 60


async def test_only_calls_that_wait_cost_a_task_each(autojump_clock: MockClock) -> None:
    async with open_house(slow_calls([])) as house:
        client = await house.connect()
        ask(client, 99)
        await trio.sleep(11)  # from the first of them on there is one that leads, and one that owns the others
        await client.heard()
        idle = house.tasks
        ask(client, *range(20))
        await settle()
        assert house.tasks == idle + 20
        await trio.sleep(11)
        assert house.tasks == idle
        assert len(await client.heard()) == 20


async def test_an_event_that_waits_costs_no_task(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(1)

    async with open_house(router) as house:
        client = await house.connect()
        idle = house.tasks
        client.say(*map(str, range(10)))
        await settle()
        assert house.tasks == idle


async def test_the_answers_of_one_read_leave_in_one_write(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        ctx.progress("begun")
        return Total(1)

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        ctx.send_nowait(Said("1"))
        ctx.send_nowait(Said("2"))

    async with open_house(router) as house:
        client = await house.connect()
        for n in range(10):
            ask(client, n)
            client.say("")
            client.send("NOBODY_KNOWS_THIS")
        await settle()
        assert client.transport.writes == 1
        assert len(await client.heard()) == 50
        client.say("")
        await settle()
        assert client.transport.writes == 2


async def test_what_was_said_before_a_handler_waits_is_sent_before_it_waits(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        ctx.send_nowait(Said("1"))
        ctx.send_nowait(Said("2"))
        await trio.sleep(1)
        ctx.send_nowait(Said("3"))
        ctx.send_nowait(Said("4"))

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await settle()
        assert client.transport.writes == 1
        assert await client.texts() == ["1", "2"]
        await trio.sleep(2)
        assert client.transport.writes == 2
        assert await client.texts() == ["3", "4"]


async def test_what_a_call_sends_after_it_waited_leaves_in_the_same_pass(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(1)
        ctx.progress(1)
        ctx.progress(2)
        return Total(3)

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        await trio.sleep(2)
        assert client.transport.writes == 1
        assert [one["payload"] for one in await client.heard()] == [1, 2, {"n": 3}]


async def test_an_idle_connection_keeps_no_message_alive(autojump_clock: MockClock) -> None:
    router = Router()
    seen: list[weakref.ref[object]] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        seen.append(weakref.ref(ctx.envelope))
        await trio.sleep(1)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        seen.append(weakref.ref(ctx.envelope))
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        ask(client, 1)
        await trio.sleep(2)
        ask(client, 2)
        await settle()
        assert len(seen) == 3
        gc.collect()
        assert [one() for one in seen] == [None, None, None]
        await client.heard()


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call_id", "expected"), [(None, "ERROR"), ("c1", "RPC_ERROR")])
async def test_a_type_without_a_handler_is_unimplemented(
    autojump_clock: MockClock, call_id: str | None, expected: str
) -> None:
    async with open_house() as house:
        client = await house.connect()
        client.send("NO" * 100, call_id=call_id)
        received = await client.receive()
        assert received["type"] == expected
        assert error_of(received) == "UNIMPLEMENTED"
        assert len(received["payload"]["message"]) < 150


@pytest.mark.parametrize("call_id", [None, "c1"])
async def test_a_payload_that_does_not_fit_never_reaches_the_handler(
    autojump_clock: MockClock, call_id: str | None
) -> None:
    router = Router()

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        raise AssertionError

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        raise AssertionError

    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": 5, "other": 1}, call_id=call_id)
        client.send("ADD", {"n": "1"}, call_id=call_id)
        for received, paths in [(await client.receive(), ["other", "text"]), (await client.receive(), ["n"])]:
            assert error_of(received) == "INVALID_ARGUMENT"
            assert received["meta"].get("correlationId") == call_id
            assert sorted(issue["path"] for issue in received["payload"]["details"]["issues"]) == paths


async def test_plain_functions_and_callable_objects_are_handlers(autojump_clock: MockClock) -> None:
    router = Router()

    @message("LOUD")
    class Loud:
        text: str

    class Shout:
        async def __call__(self, ctx: Context[Loud]) -> None:
            await ctx.send(Said(ctx.payload.text.upper()))

    def plain(ctx: Context[Add], *, more: int) -> Total:
        return Total(ctx.payload.n + more)

    router.on(Loud)(Shout())
    router.rpc(Add)(functools.partial(plain, more=10))
    router.on(Say)(lambda ctx: ctx.send_nowait(Said(ctx.payload.text)))
    async with open_house(router) as house:
        client = await house.connect()
        client.send("LOUD", {"text": "a"})
        client.say("b")
        ask(client, 1)
        a, b, total = await client.heard()
        assert (a["payload"], b["payload"], total["payload"]) == ({"text": "A"}, {"text": "b"}, {"n": 11})


def timed(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A decorator as many people write them: a plain function that gives the coroutine on."""

    @functools.wraps(handler)
    def wrapper(ctx: Any) -> Awaitable[Any]:
        return handler(ctx)

    return wrapper


@pytest.mark.parametrize("with_middleware", [False, True])
async def test_a_plain_function_that_returns_a_coroutine_is_awaited(
    autojump_clock: MockClock, with_middleware: bool
) -> None:
    router = Router()

    @router.on(Say)
    @timed
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(1)
        await ctx.send(Said(ctx.payload.text))

    @router.rpc(Add)
    @timed
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(ctx.payload.n)
        return Total(ctx.payload.n)

    if with_middleware:

        @router.use
        async def through(ctx: Context[Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
            return await call_next()

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        ask(client, 10)
        client.send("ADD", {"n": 20}, call_id="20", timeoutMs=5_000)
        await trio.sleep(15)
        said, *rest = await client.heard()
        assert said["payload"] == {"text": "a"}
        assert answers(rest) == [("20", "DEADLINE_EXCEEDED"), ("10", "10")]


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_raises_is_answered_and_the_connection_lives(
    autojump_clock: MockClock, waits: bool
) -> None:
    router = Router()
    told: list[tuple[Exception, Context[Any] | None]] = []
    router.on_error(lambda error, ctx: told.append((error, ctx)))

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        if waits:
            await trio.sleep(1)
        raise KeyError(f"secret {ctx.payload.text}")

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        if waits:
            await trio.sleep(1)
        raise KeyError("secret")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        ask(client, 1)
        await trio.sleep(5)
        heard = await client.heard()
        assert [error_of(one) for one in heard] == ["INTERNAL"] * 3
        assert [one["type"] for one in heard] == ["ERROR", "ERROR", "RPC_ERROR"]
        assert "secret" not in str(heard)
        assert len(house.logged()) == 3
        assert [(type(error), ctx and ctx.type) for error, ctx in told] == [
            (KeyError, "SAY"),
            (KeyError, "SAY"),
            (KeyError, "ADD"),
        ]


async def test_a_plain_function_that_raises_is_answered(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        raise KeyError

    @router.rpc(Add)
    def add(ctx: Context[Add]) -> Total:
        raise KeyError

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        ask(client, 1)
        assert [error_of(one) for one in await client.heard()] == ["INTERNAL", "INTERNAL"]
        assert len(house.logged()) == 2


@pytest.mark.parametrize("call_id", [None, "c1"])
async def test_an_error_with_a_code_keeps_it_and_is_no_matter_for_the_log(
    autojump_clock: MockClock, call_id: str | None
) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        ctx.error("NOT_FOUND", "no such room", {"room": 1}, retryable=True, retry_after=1.5)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        raise WsKitError("MY_OWN")

    async with open_house(router) as house:
        client = await house.connect()
        client.send("SAY", {"text": ""}, call_id=call_id)
        client.send("ADD", {}, call_id=call_id)
        said, added = await client.heard()
        assert said["type"] == added["type"] == ("RPC_ERROR" if call_id else "ERROR")
        assert said["payload"] == {
            "code": "NOT_FOUND",
            "message": "no such room",
            "details": {"room": 1},
            "retryAfterMs": 1500,
            "retryable": True,
        }
        assert said["meta"] == {"timestamp": NOW} | ({"correlationId": call_id} if call_id else {})
        assert added["payload"] == {"code": "MY_OWN", "message": "MY_OWN"}


async def test_a_group_of_errors_from_a_handlers_nursery_is_answered_once(autojump_clock: MockClock) -> None:
    router = Router()

    async def fail() -> None:
        raise KeyError

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(fail)
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        assert answers(await client.heard()) == [("1", "INTERNAL")]
        assert house.logged() == [f"the handler of 'ADD' failed for client {client.client_id}"]


# --- in flight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_ids", [True, False])
async def test_more_calls_than_max_in_flight_are_refused_and_may_come_again(
    autojump_clock: MockClock, with_ids: bool
) -> None:
    log: list[str] = []
    async with open_house(slow_calls(log), limits=Limits(max_in_flight=2)) as house:
        client = await house.connect()
        for n in range(4):
            client.send("ADD", {"n": n}, call_id=str(n) if with_ids else None)
        await settle()
        assert log == ["begin 0", "begin 1"]
        refused = await client.heard()
        assert [error_of(one) for one in refused] == ["RESOURCE_EXHAUSTED"] * 2
        assert refused[0]["payload"]["retryAfterMs"] == 100
        await trio.sleep(11)
        client.send("ADD", {"n": 4}, call_id="4" if with_ids else None)
        await trio.sleep(11)
        assert len(await client.heard()) == 3
        assert log[-2:] == ["begin 4", "end 4"]


async def test_events_are_served_while_no_more_calls_may_start(autojump_clock: MockClock) -> None:
    router = slow_calls([])
    router.on(Say)(lambda ctx: ctx.send_nowait(Said(ctx.payload.text)))
    async with open_house(router, limits=Limits(max_in_flight=1)) as house:
        client = await house.connect()
        ask(client, 1)
        client.say("a")
        assert await client.texts() == ["a"]


async def test_many_calls_that_wait_at_once_are_all_answered(autojump_clock: MockClock) -> None:
    async with open_house(slow_calls([]), limits=Limits(max_in_flight=500)) as house:
        client = await house.connect()
        for n in range(500):
            client.send("ADD", {"n": n}, call_id=str(n))
            if n % 50 == 0:
                await settle()
        await trio.sleep(20)
        assert sorted(int(total) for _, total in answers(await client.heard())) == list(range(500))


async def test_a_second_call_with_the_id_of_one_that_runs_is_refused_without_answering_the_first(
    autojump_clock: MockClock,
) -> None:
    async with open_house(slow_calls([])) as house:
        client = await house.connect()
        ask(client, 1, 1)
        (refused,) = await client.heard()
        assert refused["type"] == "ERROR"
        assert refused["payload"]["code"] == "ALREADY_EXISTS"
        assert refused["payload"]["details"] == {"correlationId": "1"}
        await trio.sleep(11)
        assert answers(await client.heard()) == [("1", "1")]
        ask(client, 1)  # now the id is free
        await trio.sleep(11)
        assert answers(await client.heard()) == [("1", "1")]


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (raw("WHAT", call_id="1"), "ALREADY_EXISTS"),
        (raw("ADD", {"n": "no number"}, call_id="1"), "ALREADY_EXISTS"),
        (raw("ADD", {"n": 2}, call_id="1", timeoutMs="soon"), "ALREADY_EXISTS"),
        (raw("SAY", {"text": 5}, call_id="1"), "INVALID_ARGUMENT"),  # an event: it has no answer, only an error
        (raw("SAY", {"text": "fail"}, call_id="1"), "INTERNAL"),
    ],
)
async def test_nothing_else_with_the_id_of_a_call_that_runs_is_taken_for_its_answer(
    autojump_clock: MockClock, second: str, code: str
) -> None:
    router = slow_calls([])

    @router.on(Say)
    def fail(ctx: Context[Say]) -> None:
        raise KeyError(ctx.payload.text)

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        await settle()
        client.peer.send_nowait(second)
        (refused,) = await client.heard()
        assert (refused["type"], refused["payload"]["code"]) == ("ERROR", code)
        assert "correlationId" not in refused["meta"]
        await trio.sleep(11)
        assert answers(await client.heard()) == [("1", "1")]
        house.logged()


async def test_a_call_over_the_rate_or_while_the_app_drains_does_not_answer_the_one_that_runs(
    autojump_clock: MockClock,
) -> None:
    async with open_house(slow_calls([]), limits=Limits(message_rate=Policy(2, 0.001))) as house:
        client = await house.connect()
        ask(client, 1, 2)
        await settle()
        ask(client, 1)
        (over,) = await client.heard()
        assert error_of(over) == "ALREADY_EXISTS"
        other = await house.connect()
        ask(other, 3)
        await settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.app.drain, 20)
            await settle()
            ask(other, 3)
            (late,) = await other.heard()
            assert error_of(late) == "ALREADY_EXISTS"
        assert answers(await other.heard()) == [("3", "3")]
        assert sorted(answers(await client.heard())) == [("1", "1"), ("2", "2")]


# --- abort -----------------------------------------------------------------------------------------------------------


def abort(client: Client, call_id: str) -> None:
    client.send("$ws:abort", call_id=call_id)


async def test_an_abort_cancels_its_call_and_no_other(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow_calls(log)) as house:
        client = await house.connect()
        ask(client, 1, 2)
        await trio.sleep(1)
        abort(client, "1")
        assert answers(await client.heard()) == [("1", "CANCELLED")]
        assert log == ["begin 1", "begin 2", "cancelled 1"]
        await trio.sleep(11)
        assert answers(await client.heard()) == [("2", "2")]


async def test_an_abort_of_a_call_that_waits_behind_a_serial_handler_is_answered_in_its_turn(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    router = slow_calls(log)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(5)

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        ask(client, 1)  # in the same read
        await settle()
        ask(client, 2)  # in another
        abort(client, "1")
        abort(client, "2")
        client.say("")
        ask(client, 2)  # once more, which nobody aborts
        await trio.sleep(6)
        assert answers(await client.heard()) == [("1", "CANCELLED"), ("2", "CANCELLED")]
        assert log == []
        await trio.sleep(5)
        abort(client, "2")
        assert answers(await client.heard()) == [("2", "CANCELLED")]
        assert log == ["begin 2", "cancelled 2"]
        ask(client, 1)  # the abort was of the other one
        await trio.sleep(11)
        assert answers(await client.heard()) == [("1", "1")]


async def test_an_abort_in_the_same_read_as_its_call_is_not_lost(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow_calls(log)) as house:
        client = await house.connect()
        ask(client, 1)
        abort(client, "1")
        await trio.sleep(1)
        assert answers(await client.heard()) == [("1", "CANCELLED")]
        assert log == []


async def test_an_abort_of_what_nobody_knows_or_of_what_is_answered_is_no_matter(autojump_clock: MockClock) -> None:
    async with open_house(slow_calls([], seconds=1)) as house:
        client = await house.connect()
        abort(client, "never heard of")
        client.send("$ws:abort")
        ask(client, 1)
        await trio.sleep(2)
        abort(client, "1")
        await settle()
        ask(client, 1)
        await trio.sleep(2)
        assert answers(await client.heard()) == [("1", "1"), ("1", "1")]


async def test_aborts_of_what_never_comes_are_forgotten_with_the_queue(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(5)

    router.rpc(Add)(lambda ctx: Total(ctx.payload.n))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("", "")
        await settle()
        for n in range(2_000):
            abort(client, str(n))
            if n % 100 == 0:
                await settle()
        await settle()
        dispatcher: Any = client.session
        assert 0 < len(dispatcher._dispatcher.aborted) <= 1024
        await trio.sleep(11)
        assert dispatcher._dispatcher.aborted is None
        ask(client, 1)
        assert answers(await client.heard()) == [("1", "1")]


async def test_a_handler_that_answers_all_the_same_when_it_is_aborted_has_answered(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return Total(7)  # half of the work is better than none

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        await settle()
        abort(client, "1")
        assert answers(await client.heard()) == [("1", "7")]


async def test_a_handler_that_fails_when_it_is_aborted_was_aborted_and_the_connection_lives(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while cleaning up")

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        await settle()
        abort(client, "1")
        assert answers(await client.heard()) == [("1", "CANCELLED")]
        assert len(house.logged()) == 1
        assert client.session.close_code is None


@pytest.mark.parametrize("how", ["abort", "deadline", "disconnect"])
async def test_a_child_of_a_handler_that_fails_when_it_is_cancelled_ends_no_connection(
    autojump_clock: MockClock, how: str
) -> None:
    router = Router()
    told: list[Exception] = []
    router.on_error(lambda error, ctx: told.append(error))

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while cleaning up")

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()
        raise AssertionError

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1", **({"timeoutMs": 1000} if how == "deadline" else {}))
        await settle()
        if how == "abort":
            abort(client, "1")
        elif how == "disconnect":
            await client.leave()
        await trio.sleep(2)
        expected = {"abort": [("1", "CANCELLED")], "deadline": [("1", "DEADLINE_EXCEEDED")], "disconnect": []}
        assert answers(await client.heard()) == expected[how]
        assert house.logged() == [f"the handler of 'ADD' failed for client {client.client_id}"]
        assert len(told) == 1
        assert client.session.close_code == (1000 if how == "disconnect" else None)


async def test_a_child_of_an_events_handler_that_fails_when_its_client_leaves_is_told_and_the_rest_is_served(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    log: list[str] = []

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while cleaning up")

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        log.append(ctx.payload.text)
        if ctx.payload.text == "a":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await trio.sleep_forever()

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a", "b")
        await settle()
        await client.leave()
        assert log == ["a", "b"]
        assert house.logged() == [f"the handler of 'SAY' failed for client {client.client_id}"]


async def test_an_abort_is_served_while_a_serial_handler_blocks(autojump_clock: MockClock) -> None:
    log: list[str] = []
    router = slow_calls(log)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(100)

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        client.say("")
        await settle()
        abort(client, "1")
        client.send("__heartbeat")
        beat, aborted = await client.heard()
        assert error_of(aborted) == "CANCELLED"
        assert beat == {"type": "__heartbeat_ack", "meta": {"ts": NOW}}


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_ms", "limit", "seconds"), [(2_000, 30, 2), (60_000, 5, 5), (None, 5, 5), (0.5, 5, 0.0005)]
)
async def test_the_smaller_of_the_clients_and_the_servers_time_is_the_deadline(
    autojump_clock: MockClock, asked_ms: float | None, limit: float, seconds: float
) -> None:
    log: list[str] = []
    async with open_house(slow_calls(log, 100), limits=Limits(call_timeout=limit)) as house:
        client = await house.connect()
        began = trio.current_time()
        client.send("ADD", {}, call_id="1", **({} if asked_ms is None else {"timeoutMs": asked_ms}))
        received = await client.receive()
        assert trio.current_time() == began + seconds
        assert error_of(received) == "DEADLINE_EXCEEDED"
        assert received["payload"]["retryable"] is True if "retryable" in received["payload"] else True
        assert log == ["begin 0", "cancelled 0"]


async def test_a_deadline_is_that_of_its_call_alone(autojump_clock: MockClock) -> None:
    router = slow_calls([], 10)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(50)
        await ctx.send(Said("done"))

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {"n": 1}, call_id="1", timeoutMs=1_000)
        client.send("ADD", {"n": 2}, call_id="2")
        client.say("")
        await trio.sleep(60)
        *calls, said = await client.heard()
        assert answers(calls) == [("1", "DEADLINE_EXCEEDED"), ("2", "2")]
        assert said["payload"] == {"text": "done"}


async def test_an_uncorrelated_call_has_a_deadline_too(autojump_clock: MockClock) -> None:
    async with open_house(slow_calls([], 100), limits=Limits(call_timeout=5)) as house:
        client = await house.connect()
        client.send("ADD", {})
        await trio.sleep(6)
        assert [error_of(one) for one in await client.heard()] == ["DEADLINE_EXCEEDED"]


async def test_a_call_answered_before_its_deadline_is_not_answered_again(autojump_clock: MockClock) -> None:
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await ctx.reply(Total(1))
        await trio.sleep_forever()
        raise AssertionError

    async with open_house(router, limits=Limits(call_timeout=5)) as house:
        client = await house.connect()
        ask(client, 1)
        await trio.sleep(6)
        assert answers(await client.heard()) == [("1", "1")]


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_a_reply_carries_the_id_and_the_time(autojump_clock: MockClock) -> None:
    router = Router()
    router.rpc(Add)(lambda ctx: Total(ctx.payload.n))
    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {"n": 5}, call_id="x", more="kept by the handler")
        client.send("ADD", {"n": 6})
        assert await client.heard() == [
            {"type": "TOTAL", "meta": {"timestamp": NOW, "correlationId": "x"}, "payload": {"n": 5}},
            {"type": "TOTAL", "meta": {"timestamp": NOW}, "payload": {"n": 6}},
        ]


@pytest.mark.parametrize("reply", [None, Said("a"), 5, Total("5")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
@pytest.mark.parametrize("waits", [True, False])
async def test_a_reply_that_is_none_or_of_another_type_or_invalid_is_the_servers_fault(
    autojump_clock: MockClock, reply: object, waits: bool
) -> None:
    router = Router()

    async def add(ctx: Context[Add]) -> Any:
        if waits:
            await trio.sleep(1)
        return reply

    router.rpc(Add)(add)
    async with open_house(router) as house:
        client = await house.connect()
        ask(client, 1)
        await trio.sleep(2)
        (received,) = await client.heard()
        assert error_of(received) == "INTERNAL"
        assert "details" not in received["payload"]
        assert house.logged() == [f"the handler of 'ADD' failed for client {client.client_id}"]


async def test_what_a_handler_sends_wrongly_is_no_fault_of_its_client(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said(5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        (received,) = await client.heard()
        assert error_of(received) == "INTERNAL"
        assert "details" not in received["payload"]
        assert len(house.logged()) == 1


async def test_a_reply_waits_for_room_and_is_not_lost(autojump_clock: MockClock) -> None:
    router = Router()
    router.rpc(Add)(lambda ctx: Total(ctx.payload.n))
    async with open_house(router, limits=Limits(outbox_messages=2)) as house:
        client = await house.connect(capacity=400)
        client.peer.stall()
        for n in range(50):
            await client.peer.send(raw("ADD", {"n": n}, call_id=str(n)))
            if n > 30:
                client.peer.resume()
        await settle()
        got = answers(await client.heard())
        while len(got) < 50:
            got += answers(await client.heard())
        assert got == [(str(n), str(n)) for n in range(50)]


# --- the client leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SAY", "ADD"])
@pytest.mark.parametrize("how", ["close", "cut"])
async def test_a_handler_that_never_returns_is_cancelled_within_a_pass_when_its_client_leaves(
    autojump_clock: MockClock, kind: str, how: str
) -> None:
    router = Router()
    cancelled_at: list[float] = []

    async def forever(ctx: Context[Any]) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            cancelled_at.append(trio.current_time())

    router.on(Say)(forever)
    router.rpc(Add)(forever)
    async with open_house(router) as house:
        client = await house.connect()
        client.send(kind, {}, call_id="1")
        await trio.sleep(1)
        getattr(client.peer, how)()
        await trio.lowlevel.checkpoint()  # the reader hears of it, and cancels
        await trio.lowlevel.checkpoint()  # the handler is cancelled
        await trio.lowlevel.checkpoint()  # that is over, in whatever order they ran
        assert cancelled_at == [trio.current_time()]
        await client.served.wait()
        assert client.session.close_code == {"close": 1000, "cut": 1006}[how]


async def test_messages_received_before_a_clean_close_are_still_started_in_order(autojump_clock: MockClock) -> None:
    router = Router()
    begun: list[int] = []
    ended: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        begun.append(int(ctx.payload.text))
        if begun[-1] % 2 == 0:
            await trio.sleep(1)  # cancelled, for the client has gone
        ended.append(begun[-1])

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        begun.append(ctx.payload.n)
        if begun[-1] % 2 == 0:
            await trio.sleep(1)
        ended.append(begun[-1])
        return Total(1)

    async with open_house(router) as house:
        client = await house.connect()
        client.say("0")
        await settle()
        for n in range(1, 30):
            if n % 3:
                client.say(str(n))
            else:
                ask(client, n)
            if n % 10 == 0:
                await settle()
        client.peer.close()
        await client.served.wait()
        assert begun == list(range(30))
        assert ended == list(range(1, 30, 2))
        assert trio.current_time() < 1


async def test_a_handler_that_cleans_up_in_a_shield_is_waited_for(autojump_clock: MockClock) -> None:
    router = Router()
    cleaned: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            cleaned.append(trio.current_time())

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await trio.sleep(1)
        await client.leave()
        assert cleaned == [trio.current_time()]


async def test_a_handler_that_sends_to_a_client_who_has_left_is_no_error(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            await ctx.send(Said())

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await settle()
        await client.leave()
    assert house.logged() == []


# --- middleware ------------------------------------------------------------------------------------------------------

Next = Callable[[], Awaitable[Any]]


def through(log: list[str], name: str) -> Callable[[Context[Any], Next], Awaitable[Any]]:
    async def middleware(ctx: Context[Any], call_next: Next) -> Any:
        log.append(f"> {name}")
        result = await call_next()
        log.append(f"< {name}")
        return result

    return middleware


async def serve_one(router: Router, kind: str = "ADD", payload: object = None) -> tuple[list[dict[str, Any]], House]:
    async with open_house(router) as house:
        client = await house.connect()
        client.send(kind, payload or {}, call_id="1")
        heard = await client.heard()
        house.logged()
    return heard, house


async def test_middleware_runs_in_order_of_registration_the_routers_before_the_routes_own(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    router = Router()
    router.use(through(log, "first"))

    @router.route(Add).use(through(log, "own 1")).use(through(log, "own 2")).rpc
    async def add(ctx: Context[Add]) -> Total:
        log.append(f"handler {ctx.payload.n}")
        return Total(1)

    router.use(through(log, "second"))  # after the route: it counts all the same
    heard, _ = await serve_one(router, payload={"n": 7})
    assert answers(heard) == [("1", "1")]
    assert log == [
        "> first",
        "> second",
        "> own 1",
        "> own 2",
        "handler 7",
        "< own 2",
        "< own 1",
        "< second",
        "< first",
    ]


async def test_middleware_that_does_not_call_next_answers_instead(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def cached(ctx: Context[Any], call_next: Next) -> Any:
        return Total(99)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        raise AssertionError

    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "99")]


async def test_middleware_that_raises_answers_with_its_code(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def guard(ctx: Context[Any], call_next: Next) -> Any:
        ctx.error("PERMISSION_DENIED")

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        raise AssertionError

    heard, _ = await serve_one(router, "SAY")
    assert [error_of(one) for one in heard] == ["PERMISSION_DENIED"]


async def test_middleware_sees_what_the_handler_raises(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def translate(ctx: Context[Any], call_next: Next) -> Any:
        try:
            return await call_next()
        except KeyError:
            ctx.error("NOT_FOUND")

    @router.rpc(Add)
    def add(ctx: Context[Add]) -> Total:
        raise KeyError

    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "NOT_FOUND")]


async def test_an_error_after_call_next_is_answered(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def broken(ctx: Context[Any], call_next: Next) -> Any:
        await call_next()
        raise KeyError

    router.rpc(Add)(lambda ctx: Total(1))
    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "INTERNAL")]


async def test_call_next_a_second_time_is_an_error_and_the_handler_ran_once(autojump_clock: MockClock) -> None:
    router = Router()
    ran: list[int] = []
    errors: list[Exception] = []
    router.on_error(lambda error, ctx: errors.append(error))

    @router.use
    async def twice(ctx: Context[Any], call_next: Next) -> Any:
        await call_next()
        return await call_next()

    @router.rpc(Add)
    def add(ctx: Context[Add]) -> Total:
        ran.append(1)
        return Total(1)

    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "INTERNAL")]
    assert ran == [1]
    assert "twice" in str(errors[0])
    assert "called call_next() twice" in str(errors[0])


async def test_middleware_of_the_envelope_stage_runs_before_validation_and_has_no_payload(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    router = Router()

    async def early(ctx: Context[Any], call_next: Next) -> Any:
        log.append(f"early {ctx.type} {ctx.meta['correlationId']} {hasattr(ctx, 'payload')}")
        return await call_next()

    early.stage = "envelope"  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    router.use(through(log, "late"))
    router.use(early)
    router.rpc(Add)(lambda ctx: Total(1))
    heard, _ = await serve_one(router, payload={"n": "wrong"})
    assert answers(heard) == [("1", "INVALID_ARGUMENT")]
    assert log == ["early ADD 1 False"]
    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "1")]
    assert log[1:] == ["early ADD 1 False", "> late", "< late"]


async def test_middleware_that_reads_the_payload_too_early_gets_an_error_that_is_ours(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    async def early(ctx: Context[Any], call_next: Next) -> Any:
        return ctx.payload

    early.stage = "envelope"  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    router.use(early)
    router.rpc(Add)(lambda ctx: Total(1))
    heard, _ = await serve_one(router)
    assert answers(heard) == [("1", "INTERNAL")]


async def test_middleware_may_wait_and_its_call_costs_a_task_only_then(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def slow(ctx: Context[Any], call_next: Next) -> Any:
        await trio.sleep(1)
        return await call_next()

    router.rpc(Add)(lambda ctx: Total(ctx.payload.n))
    async with open_house(router) as house:
        client = await house.connect()
        idle = house.tasks
        ask(client, 1, 2)
        await settle()
        assert house.tasks == idle + 2
        await trio.sleep(2)
        assert sorted(answers(await client.heard())) == [("1", "1"), ("2", "2")]
