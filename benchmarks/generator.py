"""The load generator, as the harness uses it: built from load.c when there is a compiler, load.py where not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import PIPE

from benchmarks.install import HERE
from benchmarks.machine import cores
from benchmarks.process import ServerFailed, child

__all__ = ["Load", "generate", "holding", "kind"]

BUILD = HERE / "build"


@dataclass(frozen=True, slots=True)
class Load:
    """The options of one run of the generator; see load.c."""

    mode: str
    path: str = "/"
    message: str = ""
    expect: str = ""
    steps: tuple[tuple[str, int], ...] = ()
    clients: int = 0
    window: int = 1
    burst: int = 1
    messages: int = 0
    warmup: int = 0
    seconds: float = 2.0
    timeout: float = 60.0
    tenth: str | None = None
    every: int = 10

    def arguments(self, pid: int, port: int) -> list[str]:
        given: list[tuple[str, object]] = [
            ("--port", port),
            ("--pid", pid),
            ("--path", self.path),
            ("--message", self.message),
            ("--clients", self.clients),
            ("--window", self.window),
            ("--burst", self.burst),
            ("--messages", self.messages),
            ("--warmup", self.warmup),
            ("--seconds", self.seconds),
            ("--timeout", self.timeout),
        ]
        if self.expect:
            given.append(("--expect", self.expect))
        if self.tenth:
            given += [("--tenth", self.tenth), ("--every", self.every)]
        words = [self.mode, *(str(word) for pair in given for word in pair)]
        for text, answers in self.steps:
            words += ["--step", text, str(answers)]
        return words


@cache
def _command() -> list[str]:
    source, program = HERE / "load.c", BUILD / "load"
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return [str(program)]
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    why = "there is no C compiler (cc, gcc or clang)"
    if compiler:
        BUILD.mkdir(exist_ok=True)
        done = subprocess.run(
            [compiler, "-O2", "-o", program, source], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 0:
            return [str(program)]
        why = f"{compiler} could not build load.c: {done.stderr.strip()[:300]}"
    print(
        f"{why}. The load comes from load.py instead: it is slower than the fast servers, "
        "so these figures are of less worth and cannot be compared with those in the results.",
        file=sys.stderr,
    )
    return [sys.executable, str(HERE / "load.py")]


def kind() -> str:
    """Which generator is used: "c" or "python"."""
    return "python" if Path(_command()[-1]).suffix else "c"


def generate(load: Load, pid: int, port: int) -> dict[str, float]:
    """Run the generator to its end and return what it measured.

    Raises:
        ServerFailed: the server misbehaved under it.
    """
    command = [*_command(), *load.arguments(pid, port)]
    with child(command, cores()[1], PIPE, PIPE) as process:
        try:
            out, err = process.communicate(timeout=load.timeout + 10)
        except subprocess.TimeoutExpired as error:
            raise ServerFailed("the generator did not end") from error
        if process.returncode:
            raise ServerFailed(err.strip() or f"the generator ended with {process.returncode}")
        measured: dict[str, float] = json.loads(out)
        return measured


@contextmanager
def holding(load: Load, pid: int, port: int) -> Generator[None]:
    """Keep the connections of an "idle" load open for the block."""
    command = [*_command(), *load.arguments(pid, port)]
    with child(command, cores()[1], PIPE, PIPE, PIPE) as process:
        assert process.stdout
        assert process.stderr
        if process.stdout.readline().strip() != "ready":
            raise ServerFailed(process.stderr.read().strip())
        yield
        if process.poll() is not None:
            raise ServerFailed(process.stderr.read().strip())
