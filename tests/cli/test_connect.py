"""`trio-wskit connect`, as a process, and a server of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.server import app
from tests.serving import serving
from trio_wskit.cli import main

pytestmark = pytest.mark.e2e


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
/call COUNT {"to": 2}
/call COUNT {"to": 5}
/call WHAT
/sub room
/unsub room
/send SAY {
/send __what
/send
/sub
what
/help
"""


async def test_a_conversation_is_recorded_and_can_be_replayed(tmp_path: Path) -> None:
    record = str(tmp_path / "record.jsonl")
    async with serving(app()) as server:
        code, said = await connect(server.urls[0], "--record", record, said=LINES)
        assert code == 0
        got = [without_meta(line) for line in said if line.startswith("<")]
        for one in (
            {"type": "SAID", "payload": {"text": "grüß"}},
            {"type": "TOTAL", "payload": {"n": 2}},
            {"type": "SUBSCRIBED", "payload": {"topic": "room"}},
            {"type": "UNSUBSCRIBED", "payload": {"topic": "room"}},
        ):
            assert one in got
        steps = [one["progress"]["n"] for one in got if "progress" in one]
        assert sorted(steps) == [0, 0, 1, 1, 2, 3, 4]
        refused = sorted(line for line in said if line.startswith("!"))
        assert [line.partition(":")[0] for line in refused] == [
            "! /send takes a type",
            "! /sub takes a topic",
            "! INVALID_ARGUMENT",
            "! INVALID_ARGUMENT",
            "! UNIMPLEMENTED",
            '! a message type is not empty, and does not start with "__" or "$"',
            "! not JSON",
            "! what is 'what'? /help tells what there is",
        ]
        assert any('{"most": 3}' in line for line in refused)
        assert any('"path": "n"' in line for line in refused)
        assert any("/call TYPE {json}" in line for line in said)
        entries = [json.loads(line) for line in (await trio.Path(record).read_text(encoding="utf-8")).splitlines()]
        asked = ["send", "call", "call", "call", "call", "call", "sub", "unsub", "send"]
        assert [one["op"] for one in entries if "op" in one] == asked
        assert [one["at"] for one in entries] == sorted(one["at"] for one in entries)
        answers = ["SAID", "SUBSCRIBED", "TOTAL", "TOTAL", "UNSUBSCRIBED"]
        assert sorted(one["got"]["type"] for one in entries if "got" in one) == answers
        assert sum("progress" in one for one in entries) == 7
        assert sum("error" in one for one in entries) == 4
        code, again = await connect(server.urls[0], "--replay", record, "--linger", "0.2")
        assert code == 0
        got_again = [without_meta(line) for line in again if line.startswith("<")]
        assert sorted(map(str, got_again)) == sorted(map(str, got))
        assert [without_meta(line)["op"] for line in again if line.startswith(">")] == asked


async def test_a_replay_keeps_the_times(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    lines = [{"at": at, "op": "send", "type": "SAY", "payload": {"text": "x"}} for at in (0, 0.4)]
    record.write_text("\n".join(map(json.dumps, lines)))
    again = tmp_path / "again.jsonl"
    async with serving(app()) as server:
        code, _ = await connect(server.urls[0], "--replay", str(record), "--record", str(again), "--linger", "0")
    assert code == 0
    first, second = [one["at"] for one in map(json.loads, again.read_text().splitlines()) if "op" in one]
    assert second - first == pytest.approx(0.4, abs=0.15)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 of the record is no JSON object"),
        ("5", "line 2 of the record is no JSON object"),
        ('{"op": "send"}', 'line 2 of the record has no good "at", "op" and "type"'),
        ('{"at": -1, "op": "send", "type": "X"}', 'no good "at"'),
        ('{"at": 0, "op": "shout", "type": "X"}', 'no good "at"'),
    ],
)
def test_a_record_that_is_none_is_said(
    line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(f'{{"at": 0, "got": {{}}}}\n{line}\n')
    assert main(["connect", "ws://127.0.0.1:1/", "--replay", str(record)]) == 1
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--replay", "--record"):
        assert main(["connect", "ws://127.0.0.1:1/", option, str(tmp_path / "no" / "file")]) == 1
        assert "No such file" in capsys.readouterr().err


async def test_without_reconnecting_it_ends_with_the_connection_though_nobody_typed() -> None:
    async with serving(app()) as server:
        command = [sys.executable, "-m", "trio_wskit", "connect", server.urls[0], "--no-reconnect"]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with trio.fail_after(20):
                await process.stdin.send_all(b'/send BYE {"code": 4000}\n')  # and the pipe stays open
                said = b"".join([chunk async for chunk in process.stdout])
                assert await process.wait() == 1
        finally:
            process.kill()
    assert "* closed: connection closed with 4000 (as asked)" in said.decode()
    assert "Traceback" not in said.decode()


def test_where_nobody_is_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "ws://127.0.0.1:1/?token=secret", "--no-reconnect", "--token", "secret"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("trio-wskit: no connection to ws://127.0.0.1:1/")
    assert "secret" not in said


def test_what_is_no_url_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "http://h/"]) == 1
    assert "takes a URL of the form ws://host/path" in capsys.readouterr().err
