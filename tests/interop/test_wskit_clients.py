"""Our server, and clients that nobody here wrote: the `ws` package, and a browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.chromium import find_chromium, open_browser
from tests.interop.wskit_servers import CloseMe, Count, Counted, GetUser, Greeting, Hello, User
from tests.needs import node_path, require, require_peer
from tests.serving import serving
from trio_wskit import App, Context, Router, WsKitError

pytestmark = pytest.mark.interop


def router() -> Router:
    """What tests/peers/wskit_router.mjs does, with ours."""
    found = Router()

    @found.on(Hello)
    async def hello(ctx: Context[Hello]) -> None:
        await ctx.send(Greeting(f"hello {ctx.payload.name}"))

    @found.on(CloseMe)
    async def close_me(ctx: Context[CloseMe]) -> None:
        await ctx.session.close(ctx.payload.code, "as you wish")

    @found.rpc(GetUser)
    async def get_user(ctx: Context[GetUser]) -> User:
        if ctx.payload.id == "none":
            raise WsKitError("NOT_FOUND", "no such user", {"id": "none"})
        return User(f"user {ctx.payload.id}")

    @found.rpc(Count)
    async def count(ctx: Context[Count]) -> Counted:
        for n in range(1, ctx.payload.to + 1):
            ctx.progress(Counted(n))
        return Counted(ctx.payload.to)

    return found


async def test_a_client_on_the_ws_package_that_speaks_as_ws_kits_does() -> None:
    folder = require_peer("ws")
    async with serving(App(router())) as server:
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
    events = [(one["type"], one["payload"].get("code")) for one in by_id.pop(None)]
    assert sorted(events, key=str) == [("ERROR", "INVALID_ARGUMENT"), ("GREETING", None)]
    errors = {name: [(one["type"], one["payload"]["code"]) for one in ones] for name, ones in by_id.items()}
    assert errors == {
        "req-2": [("RPC_ERROR", "NOT_FOUND")],
        "req-3": [("RPC_ERROR", "INVALID_ARGUMENT")],
        "req-5": [("RPC_ERROR", "UNIMPLEMENTED")],
    }


IN_THE_BROWSER = """
new Promise((done) => {
  const heard = [];
  const link = new WebSocket(location.href.replace("http", "ws"));
  const say = (message) => link.send(JSON.stringify(message));
  link.onmessage = ({ data }) => {
    heard.push(JSON.parse(data));
    if (heard.length === 2) say({ type: "CLOSE_ME", payload: { code: 4000 } });
  };
  link.onopen = () => {
    say({ type: "HELLO", meta: { timestamp: Date.now() }, payload: { name: "grüß 🎉" } });
    say({ type: "GET_USER", meta: { correlationId: "a" }, payload: { id: "1" } });
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

    async with serving(App(router()), http={"/": "<!doctype html><title>test</title>"}) as server:
        found = await trio.to_thread.run_sync(browse, server.urls[0].replace("ws", "http", 1) + "/")
    kinds = sorted((one["type"], json.dumps(one["payload"], ensure_ascii=False)) for one in found.pop("heard"))
    assert kinds == [("GREETING", '{"text": "hello grüß 🎉"}'), ("USER", '{"name": "user 1"}')]
    assert found == {"code": 4000, "reason": "as you wish", "wasClean": True}
