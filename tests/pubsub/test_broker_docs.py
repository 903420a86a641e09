"""The examples of the page are programs that work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import open_house
from trio_wskit.pubsub import MemoryBroker, MemoryPubSub, PublishEnvelope, RestartPolicy, with_broker

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "howto" / "brokers.md"
PIECES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def piece(words: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (code,) = [code for code in PIECES if words in code]
    module = ModuleType("brokers_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are resolved in a class' module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


async def test_two_apps_are_one_chat(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    example = piece("def make_app", monkeypatch)
    broker = MemoryBroker()

    def pubsub() -> Any:
        return with_broker(broker.driver(), broker.selective_consumer())

    async with open_house(example.router, pubsub=pubsub()) as one, open_house(example.router, pubsub=pubsub()) as two:
        ann, bob = await one.connect(), await two.connect()
        bob.send("JOIN", {"room": "a"})
        assert await bob.heard() == []
        ann.send("SAY", {"room": "a", "text": "hello"})
        (heard,) = await bob.heard()
        assert heard["payload"] == {"room": "a", "text": "hello"}
        assert await ann.heard() == []
        for client in (ann, bob):
            await client.leave()
    app = example.make_app(broker)
    assert not app.ready


async def test_a_feed_of_lines_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = piece("class Lines", monkeypatch)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    heard: list[PublishEnvelope] = []
    both = trio.Event()

    async def feed(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b'price:a {"now":1}\nprice:b {"n')
            await stream.send_all(b'ow":2}\n')
            await trio.sleep_forever()

    async def deliver(envelope: PublishEnvelope) -> None:
        heard.append(envelope)
        if len(heard) == 2:
            both.set()

    pubsub = with_broker(MemoryPubSub(), lines.Lines("127.0.0.1", port))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, feed, [listener])
            await nursery.start(pubsub.run, deliver)
            await both.wait()
            assert pubsub.health[0].name == "prices"
            nursery.cancel_scope.cancel()
    assert heard == [
        PublishEnvelope("price:a", "PRICE", b'{"now":1}'),
        PublishEnvelope("price:b", "PRICE", b'{"now":2}'),
    ]


def test_the_table_of_defaults_is_true() -> None:
    text = PAGE.read_text(encoding="utf-8")
    policy = RestartPolicy()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert rows == {
        "backoff": f"{policy.backoff.initial_delay} s, doubled up to {policy.backoff.max_delay:g} s",
        "start_timeout": f"{policy.start_timeout:g} s",
        "max_attempts": "no limit" if policy.max_attempts is None else "",
        "then": f'`"{policy.then}"`',
        "settled_after": f"{policy.settled_after:g} s",
    }
    assert policy.backoff.jitter == "full"
