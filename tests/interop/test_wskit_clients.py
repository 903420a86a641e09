"""Our server, and clients that nobody here wrote: the `ws` package, and a browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.chromium import find_chromium, open_browser
from tests.interop.our_server import our_app
from tests.needs import node_path, require, require_peer
from tests.serving import serving

pytestmark = pytest.mark.interop


async def test_a_client_on_the_ws_package_that_speaks_as_ws_kits_does() -> None:
    folder = require_peer("ws")
    async with serving(our_app()) as server:
        command = [str(node_path()), "wskit_client.mjs", server.urls[0]]
        with trio.fail_after(30):
            done = await trio.run_process(command, cwd=folder, capture_stdout=True, stderr=subprocess.STDOUT)
    check(read_lines(done.stdout.decode()))


def read_lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def check(said: list[dict[str, Any]]) -> None:
    first, *heard, last = said
    assert first["clientId"]
    assert last == {"closed": 4000, "reason": "as you wish"}
    assert not any(one.pop("isBinary") for one in heard)
    assert all(isinstance(one["meta"].pop("timestamp"), int) for one in heard)
    by_id: dict[str | None, list[dict[str, Any]]] = {}
    for one in heard:
        by_id.setdefault(one["meta"].pop("correlationId", None), []).append(one)
        assert one.pop("meta") == {}
    assert by_id.pop("req-1") == [{"type": "USER", "payload": {"name": "user 1"}}]
    assert by_id.pop("req-4") == [
        {"type": "$ws:rpc-progress", "payload": {"n": 1}, "data": {"n": 1}},
        {"type": "$ws:rpc-progress", "payload": {"n": 2}, "data": {"n": 2}},
        {"type": "COUNTED", "payload": {"n": 2}},
    ]
    assert by_id.pop("req-6") == [{"type": "SUBSCRIBED", "payload": {"topic": "room:a"}}]
    assert by_id.pop("req-7") == by_id.pop("req-8") == [{"type": "PASSED", "payload": {"n": 1}}]
    (limited,) = by_id.pop("req-9")
    assert (limited["type"], limited["payload"]["code"]) == ("RPC_ERROR", "RESOURCE_EXHAUSTED")
    assert 0 < limited["payload"]["retryAfterMs"] <= 1000
    events = [(one["type"], one["payload"].get("code")) for one in by_id.pop(None)]
    assert sorted(events, key=str) == [("ERROR", "INVALID_ARGUMENT"), ("GREETING", None), ("SAID", None)]
    errors = {name: [(one["type"], one["payload"]["code"]) for one in ones] for name, ones in by_id.items()}
    assert errors == {
        "req-2": [("RPC_ERROR", "NOT_FOUND")],
        "req-3": [("RPC_ERROR", "INVALID_ARGUMENT")],
        "req-5": [("RPC_ERROR", "UNIMPLEMENTED")],
    }


NOBODY = {"code": "NOT_FOUND", "message": "no such user", "details": {"id": "none"}}
IN_THE_BROWSER = """
new Promise((done) => {
  const heard = [];
  const link = new WebSocket(location.href.replace("http", "ws"));
  const say = (type, payload, correlationId) => {
    const meta = { timestamp: Date.now(), ...(correlationId && { correlationId }) };
    link.send(JSON.stringify({ type, meta, payload }));
  };
  link.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    delete message.meta.timestamp;
    heard.push(message);
    if (message.type === "SUBSCRIBED") say("SAY", { room: "a", text: "to all" });
    if (heard.length === 8) say("CLOSE_ME", { code: 4000 });
  };
  link.onopen = () => {
    say("HELLO", { name: "grüß 🎉" });
    say("GET_USER", { id: "1" }, "a");
    say("GET_USER", { id: "none" }, "b");
    say("COUNT", { to: 2 }, "c");
    say("SUBSCRIBE", { topic: "room:a" }, "d");
  };
  link.onclose = ({ code, reason, wasClean }) => done({ heard, code, reason, wasClean });
})
"""


async def test_a_browser(tmp_path: Path) -> None:
    executable = find_chromium()
    require(executable, "Chromium is not installed (Debian: apt install chromium)")
    assert executable is not None

    def browse(url: str) -> Any:
        with open_browser(executable, tmp_path) as browser:
            return browser.open(url).evaluate(IN_THE_BROWSER)

    async with serving(our_app(), http={"/": "<!doctype html><title>test</title>"}) as server:
        found = await trio.to_thread.run_sync(browse, server.urls[0].replace("ws", "http", 1) + "/")
    heard = {(one["type"], one["meta"].get("correlationId")): one["payload"] for one in found.pop("heard")}
    assert heard == {
        ("GREETING", None): {"text": "hello grüß 🎉"},
        ("USER", "a"): {"name": "user 1"},
        ("RPC_ERROR", "b"): {
            "code": "NOT_FOUND",
            "message": "no such user",
            "details": {"id": "none"},
        },
        ("$ws:rpc-progress", "c"): {"n": 2},
        ("COUNTED", "c"): {"n": 2},
        ("SUBSCRIBED", "d"): {"topic": "room:a"},
        ("SAID", None): {"room": "a", "text": "to all"},
    }
    assert found == {"code": 4000, "reason": "as you wish", "wasClean": True}
