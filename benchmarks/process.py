"""Starting servers, and never leaving one behind: not on an error, not on Ctrl-C, not when we are killed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import IO

from benchmarks.install import HERE
from benchmarks.machine import cores
from benchmarks.registry import Server

__all__ = ["ServerFailed", "child", "free_port", "running", "wait_until_it_listens"]

START_SECONDS = 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServerFailed(Exception):
    """A server did not start, or ended; with the end of what it said."""


watch: Callable[[int], AbstractContextManager[object]] = nullcontext
"""Entered with the process id of each server that runs."""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def child(
    command: list[str], core: int, stdout: int | IO[str], stderr: int | IO[str], stdin: int = subprocess.DEVNULL
) -> Generator[subprocess.Popen[str]]:
    """Run a command on one core; at the end of the block it and all it started are gone."""
    os.sched_setaffinity(0, {core})
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  no threads here
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerFailed(f"it ended with {process.returncode} before it listened")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise ServerFailed(f"it did not listen within {START_SECONDS} s")


@contextmanager
def running(server: Server, mode: str) -> Generator[tuple[int, int]]:
    """Run a server on its core and give its process id and port.

    Raises:
        ServerFailed: it did not start; one from within the block gets the server's last words added.
        Unavailable: it is not installed.
    """
    port = free_port()
    command = server.command(mode, port)
    server_core, our_core = cores()
    with tempfile.TemporaryFile("w+") as log:

        def said() -> str:
            log.seek(0)
            return "\n".join(log.read().strip().splitlines()[-6:])

        with child(command, server_core, log, log) as process:
            os.sched_setaffinity(0, {our_core})
            try:
                wait_until_it_listens(process, port)
                with watch(process.pid):
                    yield process.pid, port
            except (ServerFailed, OSError) as error:
                raise ServerFailed(f"{server.name}: {error}\n{said()}".rstrip()) from error
