from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, User, open_pair, settle
from trio_wskit import Limits, QueueOptions, Retry, Rpc, message
from trio_wskit._core.backoff import Backoff
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.handshake import Headers
from trio_wskit.client._requests import Requests
from trio_wskit.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionClosed,
    PayloadInvalid,
    RpcError,
    ServerError,
    ValidationError,
    WsKitError,
)


async def answered(
    client: Any, server: Server, *answers: Callable[[str], object], **options: Any
) -> User | Exception:  # each answer is given the correlation id
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            correlation_id = await server.asked()
            for one in answers:
                one(correlation_id)

        nursery.start_soon(answer)
        try:
            reply: User = await client.request(GetUser("1"), **options)
        except Exception as error:
            return error
        return reply


def rpc_error(server: Server, payload: Any) -> Callable[[str], object]:
    return lambda name: server.send("RPC_ERROR", payload, id=name)


@pytest.mark.parametrize(
    ("payload", "code", "text", "retryable", "retry_after"),
    [
        ({"code": "RESOURCE_EXHAUSTED", "message": "m", "retryAfterMs": 250}, "RESOURCE_EXHAUSTED", "m", True, 0.25),
        ({"code": "RESOURCE_EXHAUSTED", "retryAfterMs": None}, "RESOURCE_EXHAUSTED", "RPC error", False, None),
        ({"code": "UNAVAILABLE", "retryable": False, "retryAfterMs": 5}, "UNAVAILABLE", "RPC error", False, None),
        ({"code": "MINE", "message": "m", "retryable": True}, "MINE", "m", True, None),
        (
            {"code": 5, "message": 5, "details": 5, "retryable": 5, "retryAfterMs": "x"},
            "INTERNAL",
            "RPC error",
            None,
            0.2,
        ),
        ({"code": "ABORTED", "retryAfterMs": True}, "ABORTED", "RPC error", True, 0.05),
        ({"code": "ABORTED", "retryAfterMs": -5}, "ABORTED", "RPC error", True, 0.05),
        (None, "INTERNAL", "RPC error", None, 0.2),
        ([], "INTERNAL", "RPC error", None, 0.2),
    ],
)
async def test_an_error_says_whether_and_when_to_try_again(
    payload: Any, code: str, text: str, retryable: bool | None, retry_after: float | None, autojump_clock: MockClock
) -> None:
    async with open_pair() as (client, server):
        error = await answered(client, server, rpc_error(server, payload), correlation_id="mine")
        assert type(error) is RpcError
        assert (error.code, error.message, error.correlation_id) == (code, text, "mine")
        assert (error.retryable, error.retry_after) == (retryable, retry_after)


async def test_a_plain_error_answers_a_request_too(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        error = await answered(client, server, lambda name: server.send("ERROR", {"details": {"a": 1}}, id=name))
        assert type(error) is ServerError
        assert (error.code, error.message, error.details) == ("UNKNOWN", "Server error", {"a": 1})


async def test_a_reply_may_have_the_name_of_an_error(autojump_clock: MockClock) -> None:
    @message("ERROR")
    class Mistakes:
        count: int

    @message("COUNT_MISTAKES")
    class CountMistakes(Rpc[Mistakes]):
        pass

    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer() -> None:
            server.send("ERROR", {"count": 3}, id=await server.asked())

        nursery.start_soon(answer)
        assert await client.request(CountMistakes()) == Mistakes(3)


@pytest.mark.parametrize(
    ("kind", "payload", "path"),
    [("OTHER", None, "type"), ("USER", {"name": 5}, "name"), ("USER", {"name": "n", "x": 1}, "x"), ("USER", None, "")],
)
async def test_an_answer_that_is_not_what_was_asked_for_is_a_validation_error(
    kind: str, payload: Any, path: str, autojump_clock: MockClock
) -> None:
    async with open_pair() as (client, server):
        error = await answered(client, server, lambda name: server.send(kind, payload, id=name))
        assert type(error) is ValidationError
        assert [issue["path"] for issue in error.issues] == [path]
        assert error.code == "INVALID_ARGUMENT"


async def test_what_a_validator_of_the_application_raises_is_the_callers(autojump_clock: MockClock) -> None:
    def refuse(_: object, __: object, ___: object) -> None:
        raise ZeroDivisionError("mine")

    @message("CHECKED")
    class Checked:
        n: Any = attrs.field(validator=refuse)

    @message("CHECK")
    class Check(Rpc[Checked]):
        pass

    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer() -> None:
            server.send("CHECKED", {"n": 1}, id=await server.asked())

        nursery.start_soon(answer)
        with pytest.raises(ZeroDivisionError, match="mine"):
            await client.request(Check())
        assert (client.state, client.stats.pending) == ("open", 0)


@pytest.mark.parametrize(
    ("error", "code", "retryable", "retry_after"),
    [
        (RpcError("UNAVAILABLE", "m", retry_after=1.5), "UNAVAILABLE", True, 1.5),
        (ServerError("NOT_FOUND"), "NOT_FOUND", False, None),
        (ValidationError("T", []), "INVALID_ARGUMENT", False, None),
        (ConnectionClosed(1013, "busy"), 1013, True, None),
        (ConnectionClosed(4000), 4000, None, None),
        (ConnectFailed("no", status=503, retry_after=7), 1006, True, 7),
        (ConnectFailed("no", status=401), 1006, False, None),
    ],
)
def test_each_error_has_a_code_and_says_whether_and_when_to_try_again(
    error: Any, code: object, retryable: bool | None, retry_after: float | None
) -> None:
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, retry_after)


async def test_of_two_answers_the_first_counts_and_the_other_is_counted(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):

        def reply(text: str) -> Callable[[str], object]:
            return lambda name: server.send("USER", {"name": text}, id=name)

        assert await answered(client, server, reply("first"), reply("second")) == User("first")
        await settle()
        assert (client.stats.late, client.stats.unhandled) == (1, 0)


async def test_an_answer_to_nobody_is_unhandled(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        heard: list[str] = []
        remove = client.on_unhandled(lambda envelope: heard.append(envelope.type))
        server.send("USER", {"name": "n"}, id="nobody")
        server.send("$ws:rpc-progress", 1, id="nobody")
        await settle()
        remove()
        server.send("USER", {"name": "n"})
        await settle()
        assert heard == ["USER"]
        assert (client.stats.late, client.stats.unhandled) == (0, 2)


async def test_without_an_answer_the_servers_work_is_aborted_at_the_time_limit(autojump_clock: MockClock) -> None:
    async with open_pair(limits=Limits(call_timeout=3)) as (client, server):
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await client.request(GetUser("1"))
        assert trio.current_time() == 3
        first, second = await server.heard()
        assert first["meta"]["timeoutMs"] == 3000
        assert second["type"] == "$ws:abort"
        server.send("USER", {"name": "late"}, id=first["meta"]["correlationId"])
        await settle()
        assert client.stats.late == 1


async def test_a_server_that_does_not_take_deadlines_is_sent_none(autojump_clock: MockClock) -> None:
    server = Server()
    server.headers = Headers()
    async with open_pair(server) as (client, _):
        with trio.move_on_after(1):
            await client.request(GetUser("1"))
        first, _ = await server.heard()
        assert set(first["meta"]) == {"timestamp", "correlationId"}
    async with open_pair(server, send_deadlines=True) as (client, _):
        with trio.move_on_after(1):
            await client.request(GetUser("1"), idempotency_key="k")
        first, _ = await server.heard()
        assert list(first["meta"]) == ["timestamp", "correlationId", "idempotencyKey", "timeoutMs"]


async def test_an_answered_request_is_not_aborted(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        await answered(client, server, lambda name: server.send("USER", {"name": "n"}, id=name))
        await answered(client, server, rpc_error(server, None))
        assert await server.heard() == []


async def test_a_request_that_is_given_up_while_it_is_queued_is_never_sent(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(5.0)
    async with open_pair(server, wait=False) as (client, _):
        with trio.move_on_after(1):
            await client.request(GetUser("1"))
        assert client.stats.queued == 0
        await client.send(Hello("a"))
        with trio.move_on_after(9) as patience:
            await client.request(GetUser("2"))
        assert patience.cancelled_caught
        first, second, abort = await server.heard()
        assert (first["type"], second["payload"]) == ("HELLO", {"id": "2"})
        assert second["meta"]["timeoutMs"] == 5000  # what was left when it was sent, not when it was asked for
        assert abort["type"] == "$ws:abort"


async def test_there_is_a_limit_of_requests_and_an_id_is_used_once(autojump_clock: MockClock) -> None:
    async with open_pair(max_pending=1) as (client, server), trio.open_nursery() as nursery:

        async def ask() -> None:
            assert await client.request(GetUser("1"), correlation_id="a") == User("n")

        nursery.start_soon(ask)
        await server.asked()
        with pytest.raises(WsKitError, match="RESOURCE_EXHAUSTED: 1 requests are pending"):
            await client.request(GetUser("2"))
        server.send("USER", {"name": "n"}, id="a")
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.asked()
        with pytest.raises(WsKitError, match="ALREADY_EXISTS"):
            await client.request(GetUser("2"), correlation_id="a")
        server.send("USER", {"name": "n"}, id="a")


async def test_what_cannot_be_sent_is_said_at_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with pytest.raises(PayloadInvalid, match=r"Validation failed for GET_USER \(id: "):
            await client.request(GetUser(5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(PayloadInvalid):
            await client.send(Hello(5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match=r"takes a message, not its class: GetUser\(…\)"):
            await client.request(GetUser)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match=r"takes a message, not its class: Hello\(…\)"):
            await client.send(Hello)
        with pytest.raises(ConfigError, match="str is not a message"):
            await client.send("hello")
        with pytest.raises(ConfigError, match="is no request"):
            await client.request(Hello("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert await server.heard() == []
        assert client.stats.pending == 0


async def test_a_lost_connection_ends_what_was_sent_on_it_and_not_what_is_queued(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        outcomes: list[object] = []

        async def ask(name: str) -> None:
            try:
                outcomes.append(await client.request(GetUser(name)))
            except ConnectionClosed as closed:
                outcomes.append(str(closed))

        nursery.start_soon(ask, "1")
        await server.asked()
        server.peer.close(1011, "oops")
        await settle()
        assert outcomes == ["connection closed with 1011 (oops)"]
        nursery.start_soon(ask, "2")
        await client.wait_open()
        server.send("USER", {"name": "n"}, id=await server.asked())
        await settle()
        assert outcomes[1:] == [User("n")]


async def test_what_the_queue_drops_is_told_to_who_asked(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(5.0)
    options = QueueOptions(policy="drop_oldest", max_messages=1)
    async with open_pair(server, wait=False, queue=options) as (client, _), trio.open_nursery() as nursery:
        client.on_error(lambda _, __: None)

        async def ask() -> None:
            with pytest.raises(WsKitError, match="UNAVAILABLE: dropped from the full offline queue"):
                await client.request(GetUser("1"))

        nursery.start_soon(ask)
        await settle()
        await client.send(Hello("a"))


async def test_who_asked_is_told_at_once_when_a_request_is_too_old_for_the_queue(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(9.0)
    logged: list[str] = []
    async with open_pair(server, wait=False, queue=QueueOptions(max_age=2), logged=logged) as (client, _):
        await trio.sleep(1)
        for _ in range(2):  # and again, when the queue was empty
            began = trio.current_time()
            with pytest.raises(WsKitError, match="UNAVAILABLE: not sent within 2 s"):
                await client.request(GetUser("1"))
            assert trio.current_time() == began + 2
        await client.wait_open()
        assert await server.heard() == []
    assert logged == ["WsKitError: register an on_error hook to see it"] * 2


# Progress


async def test_a_call_tells_its_progress_and_then_its_reply(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.call(GetUser("1"), progress=News) as call:
        name = await server.asked()
        assert name == call.correlation_id
        server.send("$ws:rpc-progress", {"text": "a"}, id=name)
        server.send("$ws:rpc-progress", data={"text": "b"}, id=name)
        server.send("USER", {"name": "n"}, id=name)
        assert [step async for step in call.progress] == [News("a"), News("b")]
        assert await call.reply == await call.reply == User("n")
        assert trio.current_time() == 0  # the answer has ended it, and not the time limit


async def test_progress_without_a_class_is_plain(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.call(GetUser("1")) as call:
        name = await server.asked()
        server.send("$ws:rpc-progress", id=name)
        server.send("$ws:rpc-progress", [1], id=name)
        server.send("RPC_ERROR", {"code": "ABORTED"}, id=name)
        assert [step async for step in call.progress] == [None, [1]]
        for _ in range(2):
            with pytest.raises(RpcError, match="ABORTED"):
                await call.reply


async def test_progress_that_does_not_fit_is_said(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.call(GetUser("1"), progress=News) as call:
        server.send("$ws:rpc-progress", 5, id=await server.asked())
        with pytest.raises(ValidationError):
            await anext(call.progress)


async def test_endless_progress_is_bounded_and_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    async with open_pair(limits=Limits(call_timeout=2)) as (client, server):
        async with client.call(GetUser("1"), capacity=3) as call:
            name = await server.asked()
            for number in range(10):
                server.send("$ws:rpc-progress", number, id=name)
            await settle()
            assert [step async for step in call.progress] == [7, 8, 9]
            assert call.progress.dropped == 7
            assert trio.current_time() == 2
            with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
                await call.reply
        assert [one["type"] for one in await server.heard()] == ["$ws:abort"]


async def test_leaving_a_call_early_aborts_it_and_what_the_block_raises_is_bare(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with pytest.raises(KeyError, match="mine"):
            async with client.call(GetUser("1")):
                raise KeyError("mine")
        assert [one["type"] for one in await server.heard()] == ["GET_USER", "$ws:abort"]


# Retries


def backoff(seconds: float = 1.0) -> Backoff:
    return Backoff(initial_delay=seconds, max_delay=10, jitter="none")


async def answer_all(server: Server, *answers: Any) -> None:
    for answer in answers:
        name = await server.asked()
        if isinstance(answer, str):
            server.send("USER", {"name": answer}, id=name)
        elif answer is not None:
            server.send("RPC_ERROR", answer, id=name)


async def test_a_retryable_error_is_tried_again_when_the_server_says(autojump_clock: MockClock) -> None:
    retry = Retry(max_attempts=3, backoff=backoff())
    async with open_pair(retry=retry) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, server, {"code": "ABORTED"}, {"code": "UNAVAILABLE", "retryAfterMs": 7000}, "n")
        assert await client.request(GetUser("1")) == User("n")
        assert trio.current_time() == 1 + 7
        assert client.stats.retries == 2


@pytest.mark.parametrize("error", [{"code": "NOT_FOUND"}, {"code": "INTERNAL"}, {"code": "X", "retryable": False}])
async def test_what_is_not_said_to_be_retryable_is_not_tried_again(error: Any, autojump_clock: MockClock) -> None:
    async with open_pair(retry=Retry()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, server, error)
        with pytest.raises(RpcError, match=error["code"]):
            await client.request(GetUser("1"))
        assert client.stats.retries == 0


async def test_retries_end_at_their_number_and_before_the_callers_deadline(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, server, *[{"code": "ABORTED"}] * 3)
        with pytest.raises(RpcError, match="ABORTED"):
            await client.request(GetUser("1"), retry=Retry(max_attempts=2, backoff=backoff()))
        with trio.fail_after(5), pytest.raises(RpcError, match="ABORTED"):
            await client.request(GetUser("1"), retry=Retry(backoff=backoff(9)))
        assert trio.current_time() == 1


async def test_work_that_may_have_been_done_is_tried_again_only_with_a_key(autojump_clock: MockClock) -> None:
    retry = Retry(backoff=backoff())
    async with (
        open_pair(limits=Limits(call_timeout=5), retry=retry) as (client, server),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer_all, server, None, None, "n")
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await client.request(GetUser("1"))
        assert await client.request(GetUser("1"), idempotency_key="k") == User("n")

        async def cut() -> None:
            await server.asked()
            server.peer.cut()
            await settle()
            await client.wait_open()
            await answer_all(server, "m")

        nursery.start_soon(cut)
        assert await client.request(GetUser("1"), idempotency_key="k") == User("m")


async def test_a_request_whose_connection_is_lost_is_not_tried_again_without_a_key(autojump_clock: MockClock) -> None:
    async with open_pair(retry=Retry(backoff=backoff())) as (client, server), trio.open_nursery() as nursery:

        async def cut() -> None:
            await server.asked()
            server.peer.cut()

        nursery.start_soon(cut)
        with pytest.raises(ConnectionClosed, match="1006"):
            await client.request(GetUser("1"))
        assert client.stats.retries == 0


async def test_a_client_that_is_closed_tries_nothing_again(autojump_clock: MockClock) -> None:
    async with open_pair(retry=Retry(backoff=backoff())) as (client, server), trio.open_nursery() as nursery:

        async def close() -> None:
            await server.asked()
            await client.close()

        nursery.start_soon(close)
        with pytest.raises(ConnectionClosed, match="1000"):
            await client.request(GetUser("1"), idempotency_key="k")
        assert client.stats.retries == 0


async def test_the_budget_ends_all_retries(autojump_clock: MockClock) -> None:
    async with open_pair(retry=Retry(max_attempts=100, backoff=backoff())) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, server, *[{"code": "ABORTED"}] * 5)
            with pytest.raises(RpcError):
                await client.request(GetUser("1"))
        assert client.stats.retries == 4


async def test_no_more_answers_are_remembered_than_can_be_late() -> None:
    requests = Requests(10, lambda: None)
    names: list[str] = []
    for _ in range(1100):
        pending = requests.open(None)
        names.append(pending.id)
        requests.settle(pending, "an answer")
    found = [requests.take(Envelope("USER", {"correlationId": name}, None, name)) for name in names]
    assert found == [False] * 76 + [True] * 1024
    assert requests.late == 1024
