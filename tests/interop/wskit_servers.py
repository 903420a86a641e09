"""ws-kit's own server, started by a test: on Bun, or on Deno."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.needs import PEERS, require, require_peer
from trio_wskit import Rpc, message

__all__ = [
    "CloseMe",
    "Count",
    "Counted",
    "GetUser",
    "Greeting",
    "Hello",
    "Limited",
    "Never",
    "Passed",
    "Said",
    "Say",
    "User",
    "serve_wskit",
]


@message("HELLO")
class Hello:
    name: str


@message("GREETING")
class Greeting:
    text: str


@message("SAY")
class Say:
    room: str
    text: str


@message("SAID")
class Said:
    room: str
    text: str


@message("CLOSE_ME")
class CloseMe:
    code: int


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@message("COUNTED")
class Counted:
    n: int


@message("COUNT")
class Count(Rpc[Counted]):
    to: int


@message("PASSED")
class Passed:
    n: int


@message("LIMITED")
class Limited(Rpc[Passed]):
    key: str


@message("NEVER")
class Never(Rpc[User]):
    pass


def _binary(pattern: str) -> Path | None:
    """The program itself: npm's own is a stub that an install script replaces, and those are not run."""
    return next((one for one in PEERS.glob(pattern) if one.stat().st_size > 1_000_000), None)


def _command(runtime: str, script: str, arguments: Sequence[str]) -> Sequence[str | Path]:
    require_peer("@ws-kit/zod")
    if runtime == "bun":
        program = _binary("node_modules/@oven/bun-*/bin/bun*")
        require(program, "npm has no bun for this platform")
        return [program or "", script, *arguments]
    program = _binary("node_modules/@deno/*/deno*")
    require(program, "npm has no deno for this platform")
    allowed = ["--no-prompt", "--allow-net=127.0.0.1", "--allow-read", "--allow-env", "--node-modules-dir=manual"]
    return [program or "", "run", *allowed, "wskit_deno.mjs"]


@asynccontextmanager
async def serve_wskit(runtime: str, script: str = "wskit_bun.mjs", *arguments: str) -> AsyncGenerator[str]:
    """Run a script of tests/peers, by default the router of wskit_router.mjs, and give its URL."""
    command = _command(runtime, script, arguments)
    process = await trio.lowlevel.open_process(command, cwd=PEERS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = b""
        with trio.move_on_after(30):
            while not said.endswith(b"\n"):
                more = await process.stdout.receive_some()
                if not more:
                    break
                said += more
        if not said.startswith(b"listening on "):
            process.kill()
            raise AssertionError(f"{runtime} did not start: {(await process.stderr.receive_some())[:2000]!r}")
        yield f"ws://127.0.0.1:{int(said.split()[-1])}/"
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()
