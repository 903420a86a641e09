"""The demo as its users run it: a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from tests.e2e.chromium import wait_until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@final
class DemoServer:
    """Starts and stops ``python -m trio_wskit.demo`` on one port, as often as asked."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._folder = folder
        self._runs = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """What the running or last process has printed, errors included."""
        return (self._folder / f"demo-{self._runs}.log").read_text()

    def start(self) -> None:
        """Start it, and wait until it has printed its address."""
        self._runs += 1
        with (self._folder / f"demo-{self._runs}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "trio_wskit.demo", "--port", str(self.port)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.process = process

        def printed() -> bool:
            assert process.poll() is None, f"the demo ended with {process.returncode}: {self.output}"
            return self.url in self.output

        wait_until("the demo prints its address", printed, 30)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to the process, wait for its end, and return how many seconds that took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - started

    def cpu_seconds(self) -> float:
        """How long the process has computed until now, in all its threads. Linux only."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # utime and stime, in the 1/100 s of every Linux


@contextmanager
def run_demo(folder: Path) -> Generator[DemoServer]:
    """Run the demo; leave no process behind. It must end quickly and quietly, whatever was done with it."""
    server = DemoServer(folder)
    try:
        server.start()
        yield server
        assert server.process is not None
        if server.process.poll() is None:
            assert server.signal(signal.SIGTERM) < 2
        assert server.process.returncode == 0
        assert "Traceback" not in server.output
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
