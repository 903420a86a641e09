"""ws-kit's client was recorded: ours says the same, field by field, save where a test says otherwise."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import NOW, Hello, News, Server, open_pair, settle
from trio_wskit import QueueOptions, Reconnect, Rpc, TokenAuth, message
from trio_wskit._core.handshake import Headers
from trio_wskit.client import Client
from trio_wskit.errors import ConnectionClosed, ServerError, ValidationError, WsKitError

FOLDER = Path(__file__).parent.parent / "data" / "transcripts"


@message("LOGOUT")
class Logout:
    pass


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@message("LONG_OP_RESULT")
class LongOpResult:
    step: int


@message("LONG_OP")
class LongOp(Rpc[LongOpResult]):
    n: int


@final
class Player:
    """Plays the recorded server, and holds the client to the recorded one's frames."""

    def __init__(self, number: int) -> None:
        (path,) = FOLDER.glob(f"{number}-*.json")
        self.frames = [one for one in json.loads(path.read_text())["frames"] if "dir" in one]
        self.server = Server()
        self.server.headers = Headers()  # a ws-kit server, which takes no further meta
        self.names: dict[str, str] = {}  # <uuid1> of the record, and ours

    async def play(self) -> None:
        closed = False
        for frame in self.frames:
            kind = (frame["dir"], frame["opcode"])
            if kind == ("c2s", "handshake"):
                closed = False
                number: int = frame["conn"]
                while len(self.server.links) < number:  # noqa: ASYNC110 - in virtual time this costs nothing
                    await trio.sleep(0.001)
                asked = self.server.handshakes[number - 1]
                assert asked.target == frame["text"]
                assert ", ".join(asked.subprotocols) == frame.get("header_sec_websocket_protocol", "")
            elif kind == ("c2s", "text"):
                self.compare(await self.server.receive(), json.loads(frame["text"]))
            elif kind == ("s2c", "text"):
                self.server.peer.send_nowait(self.ours(frame["text"]))
            elif kind == ("s2c", "close"):
                self.server.peer.close(frame["code"], frame["text"])
                closed = True
            elif not closed:
                await self.expect_close(frame["code"], frame["text"])

    async def expect_close(self, code: int, reason: str) -> None:
        with pytest.raises(ConnectionClosed) as seen:
            await self.server.receive()
        assert (seen.value.code, seen.value.reason) == (code, reason)

    def compare(self, said: dict[str, Any], recorded: dict[str, Any]) -> None:
        assert list(said) == list(recorded)
        assert said["type"] == recorded["type"]
        assert said.get("payload") == recorded.get("payload")
        assert list(said["meta"]) == list(recorded["meta"])
        assert said["meta"]["timestamp"] == NOW
        name = recorded["meta"].get("correlationId")
        if name and name.startswith("<"):
            self.names[name] = said["meta"]["correlationId"]
        else:
            assert said["meta"].get("correlationId") == name

    def ours(self, text: str) -> str:
        for theirs, ours in self.names.items():
            text = text.replace(theirs, ours)
        return text


Scenario = Callable[[Client, Player], Awaitable[None]]


async def run(number: int, scenario: Scenario, player: Player | None = None, **options: Any) -> None:
    player = player or Player(number)
    path = next((one["text"] for one in player.frames if one["opcode"] == "handshake"), "/")
    options.setdefault("url", f"ws://server.test{path}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(player.play)
        async with open_pair(player.server, **options) as (client, _):
            await scenario(client, player)


async def test_202_a_message_without_payload(autojump_clock: MockClock) -> None:
    async def scenario(client: Client, _: Player) -> None:
        await client.send(Logout(), correlation_id="ok", meta={"clientId": "x", "receivedAt": 1, "correlationId": "y"})

    await run(202, scenario)


async def test_203_a_close_of_its_own(autojump_clock: MockClock) -> None:
    async def scenario(client: Client, _: Player) -> None:
        await client.close(4000, "bye")
        await client.close(4001, "again")

    await run(203, scenario)


@pytest.mark.parametrize(("number", "policy", "refused"), [(205, "drop_newest", 2), (206, "drop_oldest", 0)])
async def test_205_206_the_queue(number: int, policy: str, refused: int, autojump_clock: MockClock) -> None:
    player = Player(number)
    player.server.failures.append(1.0)
    errors: list[str] = []

    async def scenario(client: Client, _: Player) -> None:
        client.on_error(lambda error, _: errors.append(str(error)))
        failed = 0
        for name in range(4):
            try:
                await client.send(Hello(str(name)))
            except WsKitError:
                failed += 1
        assert (failed, len(errors)) == (refused, 2)
        await client.wait_open()

    options: Any = {"policy": policy, "max_messages": 2}
    await run(number, scenario, player, wait=False, queue=QueueOptions(**options))


async def test_208_requests(autojump_clock: MockClock) -> None:
    async def scenario(client: Client, _: Player) -> None:
        assert await client.request(GetUser("1")) == User("n1")
        assert await client.request(GetUser("2"), correlation_id="req-2") == User("n2")
        assert await client.request(GetUser("3")) == User("n3")

    await run(208, scenario)


async def test_209_what_settles_a_request(autojump_clock: MockClock) -> None:
    async def outcome(client: Client, name: str) -> tuple[str, str]:
        try:
            return "USER", (await client.request(GetUser(name), correlation_id=name)).name
        except (ServerError, ValidationError) as error:
            return type(error).__name__, error.code

    async def scenario(client: Client, _: Player) -> None:
        names = ["rpc_error", "rpc_error_null", "rpc_error_min", "error", "wrong_type", "bad_payload", "dup"]
        assert [await outcome(client, name) for name in names] == [
            ("RpcError", "RESOURCE_EXHAUSTED"),
            ("RpcError", "RESOURCE_EXHAUSTED"),
            ("RpcError", "INTERNAL"),
            ("ServerError", "NOT_FOUND"),
            ("ValidationError", "INVALID_ARGUMENT"),
            ("ValidationError", "INVALID_ARGUMENT"),
            ("USER", "first"),
        ]

    await run(209, scenario)


async def test_211_an_abort_is_told_to_the_server_where_theirs_says_nothing(autojump_clock: MockClock) -> None:
    player = Player(211)
    closing = player.frames.pop()

    async def scenario(client: Client, player: Player) -> None:
        with trio.move_on_after(0.05):
            await client.request(GetUser("never"))
        said = await player.server.receive()
        assert (said["type"], said["meta"]["correlationId"]) == ("$ws:abort", player.names["<uuid1>"])

    assert closing["opcode"] == "close"
    await run(211, scenario, player)


async def test_212_progress_under_either_key(autojump_clock: MockClock) -> None:
    async def steps(client: Client, n: int, name: str) -> list[Any]:
        async with client.call(LongOp(n), correlation_id=name) as call:
            found = [step async for step in call.progress]
            assert await call.reply == LongOpResult(9)
            return found

    async def scenario(client: Client, _: Player) -> None:
        assert await steps(client, 2, "p1") == [{"step": 1}, {"step": 2}]  # theirs sees nothing in these
        assert await steps(client, 3, "p2") == [{"step": 1}, {"step": 2}, {"step": 3}]

    await run(212, scenario)


async def test_214_a_limit_of_requests(autojump_clock: MockClock) -> None:
    player = Player(214)
    player.frames.pop()  # before it closes, ours aborts both

    async def scenario(client: Client, player: Player) -> None:
        async def ask(name: str) -> None:
            with trio.move_on_after(0.06):
                await client.request(GetUser("never"), correlation_id=name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "r1")
            await settle()
            nursery.start_soon(ask, "r2")
            await settle()
            with pytest.raises(WsKitError, match="2 requests are pending"):
                await client.request(GetUser("never"), correlation_id="r3")
        aborted = [(one["type"], one["meta"]["correlationId"]) for one in await player.server.heard()]
        assert sorted(aborted) == [("$ws:abort", "r1"), ("$ws:abort", "r2")]

    await run(214, scenario, player, max_pending=2)


async def test_215_a_queued_request_that_timed_out_is_not_sent_where_theirs_is(autojump_clock: MockClock) -> None:
    player = Player(215)
    player.server.failures.append(1.0)
    player.frames = [one for one in player.frames if one["opcode"] != "text"]

    async def scenario(client: Client, _: Player) -> None:
        with trio.move_on_after(0.05):
            await client.request(GetUser("1"), correlation_id="q1")
        await client.wait_open()

    await run(215, scenario, player, wait=False)


async def test_217_reconnecting(autojump_clock: MockClock) -> None:
    async def scenario(client: Client, _: Player) -> None:
        await client.send(Hello("a"))
        with client.states() as changes:
            while (await changes.receive()).state != "reconnecting":
                pass
            await client.send(Hello("while-down"))
            assert await client.request(GetUser("x"), correlation_id="wd") == User("late")

    await run(217, scenario, reconnect=Reconnect(initial_delay=0.04, jitter="none"))


async def test_218_226_attempts_that_fail(autojump_clock: MockClock) -> None:
    for number in (218, 226):
        assert Player(number).frames == []  # nobody was there


async def test_220_221_what_is_sent_at_once_waits_for_the_connection(autojump_clock: MockClock) -> None:
    async def send(client: Client, _: Player) -> None:
        await client.send(Hello("auto"))
        await client.wait_open()

    async def ask(client: Client, _: Player) -> None:
        assert await client.request(GetUser("1"), correlation_id="a1") == User("n")

    await run(220, send, wait=False)
    await run(221, ask, wait=False)


async def nothing(_: Client, __: Player) -> None:
    pass


def of_connection(number: int, connection: int) -> Player:
    player = Player(number)
    player.frames = [{**one, "conn": 1} for one in player.frames if one["conn"] == connection]
    return player


async def test_223_a_token_in_the_query(autojump_clock: MockClock) -> None:
    url = "ws://server.test/auth_query_custom"
    play = partial(run, 223, nothing)
    await play(of_connection(223, 1), url=f"{url}?access_token=old&x=1", auth=TokenAuth("T"))
    await play(of_connection(223, 2), url=url, auth=TokenAuth(lambda: None))


async def test_224_a_token_as_a_subprotocol(autojump_clock: MockClock) -> None:
    play = partial(run, 224, nothing)
    await play(of_connection(224, 1), auth=TokenAuth("abc123", attach="protocol"), subprotocols=["chat-v2"])
    prepended = TokenAuth("abc", attach="protocol", protocol_prefix="jwt.", protocol_position="prepend")
    await play(of_connection(224, 2), auth=prepended, subprotocols=["chat-v2", "", "jwt.abc"])
    await play(of_connection(224, 3), auth=TokenAuth(lambda: None, attach="protocol"))


async def test_227_replies_are_read_leniently_where_theirs_are_refused(autojump_clock: MockClock) -> None:
    player = Player(227)
    at = next(i for i, one in enumerate(player.frames) if "no_meta_corr_null" in one["text"])
    null = player.frames[at + 1]
    del player.frames[at : at + 2]  # before it closes, ours aborts what has no answer

    async def scenario(client: Client, player: Player) -> None:
        async with client.messages(News) as stream:
            for name in ("timestamp", "extra_meta", "extra_root"):
                assert await client.request(GetUser(name), correlation_id=name) == User("n")
            with pytest.raises(ValidationError):
                await client.request(GetUser("extra_payload"), correlation_id="extra_payload")
            assert [await stream.receive(), await stream.receive()] == [News("ok"), News("root")]
            player.server.peer.send_nowait(null["text"])
            await settle()
            assert client.stats.unhandled == 1  # a correlation id of null is none

    await run(227, scenario, player)
