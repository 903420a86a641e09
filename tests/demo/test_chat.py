"""The demo's server without its page, on a link in memory."""

from __future__ import annotations

import json
from typing import Any

import trio

from trio_wskit import Request, open_app
from trio_wskit.demo import chat
from trio_wskit.transports.memory import MemoryPeer, memory_link


async def _connect(nursery: trio.Nursery) -> MemoryPeer:
    transport, peer = memory_link()
    nursery.start_soon(chat.app.serve_session, transport, Request())
    await _until(peer, "LOBBY")
    return peer


async def _send(peer: MemoryPeer, message_type: str, payload: object, correlation_id: str | None = None) -> None:
    meta = {} if correlation_id is None else {"correlationId": correlation_id}
    await peer.send(json.dumps({"type": message_type, "meta": meta, "payload": payload}))


async def _until(peer: MemoryPeer, message_type: str) -> Any:
    """The payload of the next message of this type; others are passed over."""
    with trio.fail_after(10):
        while (message := json.loads(await peer.receive()))["type"] != message_type:
            pass
    return message["payload"]


async def test_nobody_speaks_before_joining(nursery: trio.Nursery) -> None:
    async with open_app(chat.app):
        peer = await _connect(nursery)
        await _send(peer, "SAY", {"text": "hello"}, "1")
        assert (await _until(peer, "RPC_ERROR"))["code"] == "FAILED_PRECONDITION"


async def test_a_room_with_a_strange_name_is_refused(nursery: trio.Nursery) -> None:
    async with open_app(chat.app):
        peer = await _connect(nursery)
        await _send(peer, "JOIN_ROOM", {"room": "all:", "name": "Eve"})
        error = await _until(peer, "ERROR")
        assert error["code"] == "INVALID_ARGUMENT"
        assert [issue["path"] for issue in error["details"]["issues"]] == ["room"]


async def test_who_changes_rooms_leaves_the_first(nursery: trio.Nursery) -> None:
    async with open_app(chat.app):
        ada, bob = await _connect(nursery), await _connect(nursery)
        await _send(ada, "JOIN_ROOM", {"room": "garden", "name": "Ada"})
        await _send(bob, "JOIN_ROOM", {"room": "garden", "name": "Bob"})
        while len((await _until(ada, "PRESENCE"))["people"]) < 2:
            pass
        await _send(bob, "JOIN_ROOM", {"room": "workshop", "name": "Bob"})
        assert [one["name"] for one in (await _until(ada, "PRESENCE"))["people"]] == ["Ada"]
        assert (await _until(ada, "LOBBY"))["rooms"] == {"lobby": 0, "garden": 1, "workshop": 1}
        await _send(bob, "SAY", {"text": "not for the garden"}, "1")
        assert (await _until(bob, "SAID"))["by"]["room"] == "workshop"
        await _send(ada, "SAY", {"text": "for the garden"}, "1")
        assert (await _until(ada, "SAID"))["text"] == "for the garden"


async def test_the_sixth_message_in_a_row_must_wait(nursery: trio.Nursery, autojump_clock: trio.abc.Clock) -> None:
    async with open_app(chat.app):
        peer = await _connect(nursery)
        await _send(peer, "JOIN_ROOM", {"room": "garden", "name": "Ada"})
        for number in range(6):
            await _send(peer, "SAY", {"text": f"{number}"}, f"{number}")
        error = await _until(peer, "RPC_ERROR")
        assert error["code"] == "RESOURCE_EXHAUSTED"
        await trio.sleep(error["retryAfterMs"] / 1_000)
        await _send(peer, "SAY", {"text": "again"}, "again")
        while (await _until(peer, "SAID"))["text"] != "again":
            pass


async def test_a_client_that_leaves_is_forgotten_and_its_work_stops(nursery: trio.Nursery) -> None:
    async with open_app(chat.app):
        ada, bob = await _connect(nursery), await _connect(nursery)
        await _send(ada, "JOIN_ROOM", {"room": "garden", "name": "Ada"})
        await _send(ada, "COUNT_PRIMES", {"upTo": 10_000_000}, "1")
        while not (await _until(bob, "LOBBY"))["counting"]:
            pass
        ada.cut()
        while (state := await _until(bob, "LOBBY"))["counting"] or state["rooms"]["garden"]:
            pass
        assert chat.people == {}
        assert chat.counting == set()


async def test_the_primes_are_counted_right(nursery: trio.Nursery) -> None:
    async with open_app(chat.app):
        peer = await _connect(nursery)
        await _send(peer, "COUNT_PRIMES", {"upTo": 10_000}, "1")
        assert await _until(peer, "PRIMES") == {"count": 1_229}
