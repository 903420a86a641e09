from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import Hello, News, Server, open_pair, settle
from tests.client.topics import asked, confirm, gate_of, much_news, news, taken
from trio_wskit import Gap, Rpc, message
from trio_wskit._core.history import Position
from trio_wskit.client import Client
from trio_wskit.errors import RpcError


async def reconnected(client: Client, server: Server) -> None:
    """Lose the connection, and have a new one."""
    server.peer.cut()
    await settle()
    await client.wait_open()


async def test_a_resume_asks_from_the_newest_message_and_goes_on_without_a_gap(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1, 2)
            await settle()
            await reconnected(client, server)
            payload, name = await asked(server)
            assert payload == {"topic": "t", "since": {"epoch": "e", "offset": 2}}
            news(server, 3, 4)
            server.send("SUBSCRIBED", {"topic": "t", "recovered": True, "epoch": "e", "offset": 4}, id=name)
            news(server, 5)
            assert await taken(stream) == ["1", "2", "3", "4", "5"]


async def test_replayed_messages_may_also_come_after_the_answer(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            await settle()
            await reconnected(client, server)
            await confirm(server, offset=3, recovered=True)
            news(server, 2, 3, 4)
            assert await taken(stream) == ["1", "2", "3", "4"]


async def test_a_resume_with_no_message_before_the_disconnect(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server, "e", 7)
        async with client.subscribed("t", News) as stream:
            await reconnected(client, server)
            payload, name = await asked(server)
            assert payload["since"] == {"epoch": "e", "offset": 7}
            news(server, 8)
            server.send("SUBSCRIBED", {"topic": "t", "recovered": True, "epoch": "e", "offset": 8}, id=name)
            assert await taken(stream) == ["8"]


async def test_a_resume_more_than_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            for number in range(5):
                await reconnected(client, server)
                payload, name = await asked(server)
                assert payload["since"] == {"epoch": "e", "offset": number}
                news(server, number + 1)
                offset = number + 1
                server.send("SUBSCRIBED", {"topic": "t", "recovered": True, "epoch": "e", "offset": offset}, id=name)
                await settle()
            assert await taken(stream) == ["1", "2", "3", "4", "5"]


async def test_what_is_not_recovered_is_a_gap_before_what_is_new(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            await settle()
            await reconnected(client, server)
            _, name = await asked(server)
            news(server, 8, epoch="f")  # newer than the answer's position
            server.send("SUBSCRIBED", {"topic": "t", "recovered": False, "epoch": "f", "offset": 7}, id=name)
            news(server, 9, epoch="f")
            assert await taken(stream) == ["1", Gap("t", "reconnected"), "8", "9"]
            await reconnected(client, server)
            assert (await asked(server))[0]["since"] == {"epoch": "f", "offset": 9}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"recovered": True},
        {"recovered": True, "epoch": "f", "offset": 3},
        {"recovered": True, "epoch": "e", "offset": 0},
        {"recovered": True, "epoch": "e", "offset": -1},
        {"recovered": True, "epoch": "", "offset": 1},
        {"epoch": "e", "offset": 3},
    ],
)
async def test_an_answer_that_does_not_fit_is_a_gap(answer: dict[str, Any], autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            await settle()
            await reconnected(client, server)
            _, name = await asked(server)
            server.send("SUBSCRIBED", {"topic": "t", **answer}, id=name)
            assert await taken(stream) == ["1", Gap("t", "reconnected")]


async def test_a_server_that_forgot_its_history_is_not_asked_from_a_position_again(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            await reconnected(client, server)
            await confirm(server, None, recovered=False)
            await settle()
            await reconnected(client, server)
            assert await confirm(server, None) == {"topic": "t"}
            server.send("NEWS", {"text": "plain"})
            assert await taken(stream) == [Gap("t", "reconnected"), Gap("t", "reconnected"), "plain"]


async def test_what_came_twice_is_given_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1, 2, 2, 1, 3)
            assert await taken(stream) == ["1", "2", "3"]
            assert gate_of(client).duplicates == 2


async def test_a_hole_in_the_offsets_is_a_gap_with_its_number(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1, 5, 6)
            assert await taken(stream) == ["1", Gap("t", "missed", 3), "5", "6"]


async def test_messages_of_other_classes_make_no_hole(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            news(server, 2, kind="OTHER")
            news(server, 3)
            assert await taken(stream) == ["1", "3"]


async def test_a_message_that_is_left_out_makes_no_hole(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            server.send("$ws:position", {"topic": "t"}, meta={"epoch": "e", "offset": 2})
            server.send("$ws:position", {"topic": "t"}, meta={"epoch": "e", "offset": 2})
            news(server, 3)
            assert await taken(stream) == ["1", "3"]
            assert gate_of(client).duplicates == 0


async def test_another_epoch_is_a_gap(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            server.send("$ws:position", {"topic": "t"}, meta={"epoch": "f", "offset": 0})
            news(server, 1, 2, epoch="f")
            assert await taken(stream) == ["1", Gap("t", "missed"), "1", "2"]


async def test_the_servers_notice_of_a_gap_is_a_gap(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            server.send("$ws:gap", {"topic": "t", "from": 2, "to": 4})
            news(server, 5)
            server.send("$ws:gap", {"topic": "t", "from": 2, "to": 4})  # known already
            assert await taken(stream) == ["1", Gap("t", "missed", 3), "5"]


@pytest.mark.parametrize(
    "payload", [{}, {"from": 1}, {"from": "1", "to": 2}, {"from": 1, "to": True}, {"from": 3, "to": 2}, {"count": 3}]
)
async def test_a_notice_without_numbers_is_a_gap_of_any_size(payload: Any, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            server.send("$ws:gap", {"topic": "t", **payload})
            assert await taken(stream) == [Gap("t", "missed")]


async def test_a_gap_of_a_topic_without_history_is_told(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server, None)
        async with client.subscribed("t", News) as stream:
            server.send("$ws:gap", {"topic": "t", "from": 2, "to": 4})
            assert await taken(stream) == [Gap("t", "missed", 3)]


@pytest.mark.parametrize("payload", [None, 5, {"topic": "other"}, {"topic": 5}, {"topic": []}])
async def test_a_notice_about_nothing_is_ignored(payload: Any, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            for kind in ("$ws:gap", "$ws:position"):
                server.send(kind, payload)
            server.send("$ws:position", {"topic": "t"})
            assert await taken(stream) == []
            assert client.stats.unhandled == 0


@pytest.mark.parametrize("meta", [{"epoch": "e"}, {"epoch": "e", "offset": "1"}, {"epoch": ["e"], "offset": 1}])
async def test_what_has_no_position_is_handed_on(meta: Any, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            server.send("NEWS", {"text": "plain"}, meta=meta)
            assert await taken(stream) == ["plain"]


async def test_messages_that_come_before_the_first_answer_are_put_behind_its_position(
    autojump_clock: MockClock,
) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            _, name = await asked(server)
            news(server, 5, 6, 7)
            await settle()
            server.send("SUBSCRIBED", {"topic": "t", "epoch": "e", "offset": 6}, id=name)

        async with client.subscribed("t", News) as stream:
            assert await taken(stream) == ["7"]


async def test_what_no_subscription_wants_waits_only_for_answers(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as everything, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            _, name = await asked(server)
            news(server, 1, 2, epoch="of nobody")
            await settle()
            assert len(everything) == 0
            server.send("SUBSCRIBED", {"topic": "t", "epoch": "e", "offset": 6}, id=name)

        async with client.subscribed("t", Hello):
            news(server, 3, epoch="of nobody")
            assert await taken(everything) == ["1", "2", "3"]


async def test_what_nobody_knows_is_not_kept_without_end(autojump_clock: MockClock) -> None:
    async with (
        open_pair() as (client, server),
        client.messages(News, capacity=10_000) as everything,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def answer() -> None:
            _, name = await asked(server)
            await much_news(server, range(1, 5001), "of nobody")
            assert len(everything) == 5000 - 4096
            server.send("SUBSCRIBED", {"topic": "t", "epoch": "e", "offset": 6}, id=name)

        async with client.subscribed("t", Hello):
            assert await taken(everything) == [str(number) for number in range(1, 5001)]


async def test_more_than_can_be_kept_is_a_gap(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News, capacity=10_000) as stream:
            await reconnected(client, server)
            _, name = await asked(server)
            await much_news(server, range(1, 5001))
            server.send("SUBSCRIBED", {"topic": "t", "recovered": True, "epoch": "e", "offset": 5000}, id=name)
            got = await taken(stream)
            assert got[0] == Gap("t", "missed", 5000 - 4096)
            assert got[1:] == [str(number) for number in range(905, 5001)]


async def test_a_connection_that_breaks_before_the_answer_is_resumed_from_the_same_place(
    autojump_clock: MockClock,
) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            news(server, 1)
            await settle()
            await reconnected(client, server)
            await asked(server)
            news(server, 2, 3)
            await settle()
            await reconnected(client, server)
            payload, name = await asked(server)
            assert payload["since"] == {"epoch": "e", "offset": 1}
            news(server, 2, 3, 4)
            server.send("SUBSCRIBED", {"topic": "t", "recovered": True, "epoch": "e", "offset": 4}, id=name)
            assert await taken(stream) == ["1", "2", "3", "4"]


async def test_a_refused_resume_ends_the_stream(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            await reconnected(client, server)
            _, name = await asked(server)
            news(server, 1)
            server.send("RPC_ERROR", {"code": "PERMISSION_DENIED", "message": "no"}, id=name)
            with pytest.raises(RpcError, match="PERMISSION_DENIED"):
                await stream.receive()
            await reconnected(client, server)
            assert await server.heard() == []  # nobody asks for it again


async def test_two_topics_of_one_class_are_each_in_their_own_order(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server, "e1")
        async with client.subscribed("one", News) as one:
            nursery.start_soon(confirm, server, "e2", 10)
            async with client.subscribed("two", News) as two:
                news(server, 1, epoch="e1")
                news(server, 11, epoch="e2")
                news(server, 2, epoch="e1")
                news(server, 13, epoch="e2")
                assert await taken(two) == ["1", "11", "2", Gap("two", "missed", 1), "13"]
                assert await taken(one) == ["1", "11", "2", "13"]


async def test_two_names_of_one_topic_do_not_hide_messages_from_each_other(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as one:
            nursery.start_soon(confirm, server)
            async with client.subscribed("T", News) as two:
                news(server, 1, 2)
                assert await taken(one) == ["1", "2"]
                assert await taken(two) == ["1", "2"]


async def test_after_the_scope_nothing_is_kept_and_a_new_one_begins_anew(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News):
            news(server, 1)
            await settle()
        await server.heard()
        gate: Any = gate_of(client)
        assert (gate._tracks, gate._epochs, gate._asking) == ({}, {}, 0)
        nursery.start_soon(confirm, server, "e", 5)
        async with client.subscribed("t", News) as stream:
            news(server, 6)
            assert await taken(stream) == ["6"]


async def test_a_scope_that_is_given_up_before_the_answer_keeps_nothing(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as everything:
        with trio.move_on_after(1):
            async with client.subscribed("t", Hello):
                raise AssertionError("nobody answers")
        _, name = await asked(server)
        news(server, 1)
        assert await taken(everything) == ["1"]
        gate: Any = gate_of(client)
        assert (gate._tracks, gate._asking, len(gate._unknown)) == ({}, 0, 0)
        server.send("SUBSCRIBED", {"topic": "t", "epoch": "e", "offset": 1}, id=name)
        await settle()
        assert gate._epochs == {}


@message("JOINED")
class Joined:
    room: str
    epoch: str
    offset: int
    recovered: bool = False


@message("JOIN")
class Join(Rpc[Joined]):
    room: str
    since: Position | None = None


async def test_an_applications_own_messages_can_resume(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def joined(offset: int, *, recovered: bool = False) -> dict[str, Any]:
            payload, name = await asked(server, "JOIN")
            answer = {"room": "r", "epoch": "e", "offset": offset, "recovered": recovered}
            server.send("JOINED", answer, id=name)
            return payload

        nursery.start_soon(joined, 3)
        async with client.subscribed("t", News, subscribe=lambda _: Join("r"), unsubscribe=None) as stream:
            await reconnected(client, server)
            assert await joined(4, recovered=True) == {"room": "r", "since": {"epoch": "e", "offset": 3}}
            news(server, 4)
            assert await taken(stream) == ["4"]


async def test_what_was_kept_for_a_topic_that_is_left_comes_before_what_comes_later(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as everything:

        async def leave() -> None:
            with trio.move_on_after(1):
                async with client.subscribed("t", News):
                    pytest.fail("not reached")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await settle()
            news(server, 1, 2)  # of a topic that nobody here has asked for
            await settle()
            assert await taken(everything) == []
        news(server, 3)
        assert await taken(everything) == ["1", "2", "3"]
