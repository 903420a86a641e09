"""`trio-wskit connect`, as a process, and a server of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.serving import serving
from trio_wskit import App, Context, Router, Rpc, message
from trio_wskit.cli import main

pytestmark = pytest.mark.e2e


@message("SAID")
class Said:
    text: str


@message("SAY")
class Say:
    text: str


@message("TOTAL")
class Total:
    n: int


@message("ADD")
class Add(Rpc[Total]):
    n: int


def app() -> App:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said(ctx.payload.text))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        return Total(ctx.payload.n + 1)

    return App(router)


async def connect(url: str, *arguments: str, said: str = "") -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "trio_wskit", "connect", url, *arguments]
    with trio.fail_after(30):
        done = await trio.run_process(
            command, stdin=said.encode(), capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode, done.stdout.decode().splitlines()


def without_meta(line: str) -> Any:
    found = json.loads(line[2:])
    found.pop("meta", None)
    return found


LINES = """
/send SAY {"text": "grüß"}
/call ADD {"n": 1}
/call ADD {"n": "x"}
/sub room
/send SAY {
/send __what
what
/help
"""


async def test_a_conversation_is_recorded_and_can_be_replayed(tmp_path: Path) -> None:
    record = str(tmp_path / "record.jsonl")
    async with serving(app()) as server:
        code, said = await connect(server.urls[0], "--record", record, said=LINES)
        assert code == 0
        got = [without_meta(line) for line in said if line.startswith("<")]
        assert {"type": "SAID", "payload": {"text": "grüß"}} in got
        assert {"type": "TOTAL", "payload": {"n": 2}} in got
        refused = sorted(line.partition(":")[0] for line in said if line.startswith("!"))
        assert refused == [
            "! INVALID_ARGUMENT",
            "! UNIMPLEMENTED",
            '! a message type is not empty, and does not start with "__" or "$"',
            "! not JSON",
            "! what is 'what'? /help tells what there is",
        ]
        entries = [json.loads(line) for line in (await trio.Path(record).read_text(encoding="utf-8")).splitlines()]
        assert [one["op"] for one in entries if "op" in one] == ["send", "call", "call", "sub", "send"]
        assert sorted(one["got"]["type"] for one in entries if "got" in one) == ["SAID", "TOTAL"]
        code, said = await connect(server.urls[0], "--replay", record, "--linger", "0.2")
        assert code == 0
        assert sorted(without_meta(line)["type"] for line in said if line.startswith("<")) == ["SAID", "TOTAL"]


def test_where_nobody_is_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "ws://127.0.0.1:1/?token=secret", "--no-reconnect", "--token", "secret"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("trio-wskit: no connection to ws://127.0.0.1:1/")
    assert "secret" not in said


def test_what_is_no_url_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "http://h/"]) == 1
    assert "takes a URL of the form ws://host/path" in capsys.readouterr().err
