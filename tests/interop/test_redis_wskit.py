"""A ws-kit server on Bun and ours, with one Redis between them: what either publishes reaches the clients of both."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.interop.wskit_servers import serve_wskit
from tests.pubsub.redis_chat import Guest, chatting, guests
from tests.pubsub.redis_parts import patterns
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import Server as WebServer
from trio_wskit.pubsub import BrokeredPubSub

pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("coredis_rubbish"),
    pytest.mark.filterwarnings(COREDIS_RUBBISH),
]


@asynccontextmanager
async def both(server: Server, prefix: str) -> AsyncGenerator[tuple[list[Guest], BrokeredPubSub]]:
    """Two guests of ws-kit's server, and two of ours."""
    async with (
        serve_wskit("bun", "wskit_redis.mjs", str(server.port), prefix) as url,
        chatting(server.url, mode="wskit", prefix=prefix) as (ours, pubsub),
    ):
        theirs = WebServer([url], urlsplit(url).port or 0)
        async with guests(theirs, theirs, ours, ours) as everybody:
            assert patterns(server) in (1, 2)  # the server counts the pattern, however many have it
            for guest in everybody:
                await guest.join("room:1")
            yield everybody, pubsub


@pytest.mark.parametrize("prefix", ["app:", ""])
async def test_what_either_publishes_reaches_the_clients_of_both_once(own_server: Server, prefix: str) -> None:
    async with both(own_server, prefix) as (everybody, pubsub):
        texts = [f"{number}" for number in range(20)]
        for number, text in enumerate(texts):
            await everybody[number % 4].say("room:1", text)
        for guest in everybody:
            assert sorted([await guest.news() for _ in texts], key=int) == texts
        assert (pubsub.counts.delivered, pubsub.counts.failed, pubsub.counts.duplicates) == (10, 0, 0)


async def test_who_is_left_out_is_left_out_on_both(own_server: Server) -> None:
    async with both(own_server, "app:") as (everybody, _):
        for place in (0, 2):  # one of theirs, one of ours
            speaker = everybody[place]
            await speaker.say("room:1", "not for me", exclude_self=True)
            await speaker.say("room:1", "for all")
            for guest in everybody:
                if guest is not speaker:
                    assert await guest.news() == "not for me"
                assert await guest.news() == "for all"


async def test_a_client_that_the_other_side_names_is_left_out(own_server: Server) -> None:
    async with both(own_server, "app:") as (everybody, _):
        for guest in everybody:
            message = {"topic": "room:1", "payload": {"text": "x"}, "type": "NEWS"}
            raw = json.dumps({**message, "meta": {"excludeClientId": guest.client_id}})
            own_server.command("PUBLISH", "app:room:1", raw)
        own_server.command("PUBLISH", "app:room:1", '{"topic":"room:1","payload":{"text":"end"},"type":"NEWS"}')
        # ws-kit names a client in its header otherwise than in its index, so that only ours are left out.
        for guest, times in zip(everybody, (4, 4, 3, 3), strict=True):
            assert [await guest.news() for _ in range(times + 1)] == ["x"] * times + ["end"]


async def test_the_recorded_conversation_of_two_ws_kit_servers_is_held_by_two_of_ours(own_server: Server) -> None:
    """Transcript 120: what A and B send and get, and what goes over the broker."""
    recorded = json.loads((Path(__file__).parents[1] / "data" / "redis" / "120-redis-pubsub.json").read_text("utf-8"))[
        "frames"
    ]
    async with (
        chatting(own_server.url, mode="wskit", prefix="app:") as (at_a, _),
        chatting(own_server.url, mode="wskit", prefix="app:") as (at_b, _),
        guests(at_a, at_b) as (a, b),
        await trio.open_tcp_stream("127.0.0.1", own_server.port) as listener,
    ):
        await listener.send_all(b"PSUBSCRIBE app:*\r\n")
        heard = await listener.receive_some()
        people = {"A": a, "B": b}
        for frame in recorded:
            if frame["dir"] == "c2s" and frame["opcode"] == "text":
                asked = json.loads(frame["text"])
                payload: dict[str, Any] = asked["payload"]
                answer = await people[frame["conn"]].ask(
                    asked["type"],
                    **{key: payload[key] for key in ("topic", "text") if key in payload},
                    **({"excludeSelf": payload.get("excludeSelf", False)} if "text" in payload else {}),
                )
                assert answer["type"] == "DONE"
            elif frame["dir"] == "s2c" and '"NEWS"' in frame.get("text", ""):
                expected = json.loads(frame["text"])
                assert await people[frame["conn"]].news() == expected["payload"]["text"]
        sent = [frame for frame in recorded if frame.get("op") == "PUBLISH"]
        with trio.fail_after(10):
            while heard.count(b"pmessage") < len(sent):
                heard += await listener.receive_some()
    channels = re.findall(rb"(app:\S+)\r\n\$\d+\r\n\{", heard)
    messages = [json.loads(one) for one in re.findall(rb"\{.*\}", heard)]
    for frame, channel, message in zip(sent, channels, messages, strict=True):
        theirs = json.loads(frame["message"])
        assert channel.decode() == frame["channel"]
        assert list(message)[:3] == ["topic", "payload", "type"]
        assert {key: message[key] for key in ("topic", "payload", "type")} == {
            key: theirs[key] for key in ("topic", "payload", "type")
        }
        assert ("excludeClientId" in message["meta"]) == ("excludeClientId" in theirs.get("meta", {}))
        assert set(message) == {"topic", "payload", "type", "meta", "v", "origin", "id"}
