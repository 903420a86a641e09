"""Ctrl-C, or a supervisor's SIGTERM, ends the demo: soon, silently, and with a goodbye to who is connected."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.demo_server import ROOT, run_demo

pytestmark = pytest.mark.e2e


def _say(client: ClientConnection, type_: str, payload: object, correlation_id: str) -> None:
    client.send(json.dumps({"type": type_, "meta": {"correlationId": correlation_id}, "payload": payload}))


def _close_code(client: ClientConnection) -> int | None:
    """Read to the end."""
    while client.close_code is None:
        with suppress(ConnectionClosed):
            client.recv(timeout=10)
    return client.close_code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_within_two_seconds_and_every_client_gets_1001(
    tmp_path: Path, number: signal.Signals
) -> None:
    with run_demo(tmp_path) as demo, ExitStack() as stack:
        url = demo.url.replace("http", "ws", 1)
        clients = [stack.enter_context(connect(url + "ws", compression=None)) for _ in range(3)]
        _say(clients[0], "COUNT_PRIMES", {"upTo": 10_000_000}, "job")  # a call that would run for minutes
        while "$ws:rpc-progress" not in clients[0].recv(timeout=10, decode=True):
            pass
        seconds = demo.signal(number)
        for client in clients:
            assert _close_code(client) == 1001
        assert seconds < 2
        assert demo.process is not None
        assert demo.process.returncode == 0
        assert demo.output.strip().splitlines() == [f"{demo.url} (Ctrl-C ends it)"]


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with run_demo(tmp_path) as demo:
        command = [sys.executable, "-m", "trio_wskit.demo", "--port", str(demo.port)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.count("\n") == 1
    assert "ddress already in use" in second.stderr


def test_the_demo_starts_again_on_the_same_port_at_once(tmp_path: Path) -> None:
    with run_demo(tmp_path) as demo, connect(demo.url.replace("http", "ws", 1) + "ws", compression=None):
        demo.signal(signal.SIGINT)
        demo.start()
        with connect(demo.url.replace("http", "ws", 1) + "ws", compression=None) as client:
            assert json.loads(client.recv(timeout=10))["type"] == "LOBBY"
