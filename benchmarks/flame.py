"""`--flame FILE`: where the server's time goes, as a flame graph (SVG), sampled by py-spy from outside."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.install import peer_python
from benchmarks.machine import cores
from benchmarks.process import child

__all__ = ["recording"]

RATE = 500
"""Samples a second. The profiler stops nobody (--nonblocking): a few samples are wrong, and none costs anything."""


@contextmanager
def recording(path: Path, pid: int) -> Generator[None]:
    """Sample a Python process for the block, the first moments included, in which clients connect."""
    program = peer_python().parent / "py-spy"
    options = ["--pid", str(pid), "--output", str(path.absolute()), "--rate", str(RATE), "--duration", "3600"]
    if path.suffix == ".txt":
        options += ["--format", "raw"]  # one line for each stack, for other tools
    command = [str(program), "record", "--nonblocking", "--function", *options]
    with child(command, cores()[1], subprocess.DEVNULL, subprocess.PIPE) as profiler:
        yield
        profiler.send_signal(signal.SIGINT)
        _, said = profiler.communicate(timeout=60)
        if profiler.returncode or not path.exists():
            raise RuntimeError(f"py-spy: {said.strip()}")
