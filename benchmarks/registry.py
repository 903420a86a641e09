"""Who takes part: our servers and the peers, how each is started, and which questions each can answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.install import HERE, bun, node, npm_versions, own_version, package_versions, peer_python
from benchmarks.work import ENVELOPES, SOCKETIO, Dialect

__all__ = ["SERVERS", "Server"]


@dataclass(frozen=True, slots=True)
class Server:
    """A program that does the work of `benchmarks.work`."""

    name: str
    title: str
    command: Callable[[str, int], list[str]]
    """Mode and port to a command line. Raises `Unavailable`."""
    versions: Callable[[], dict[str, str]]
    answers: frozenset[str]
    """Of "raw" and "routed"."""
    dialect: Dialect = ENVELOPES
    ours: bool = False


BOTH = frozenset({"raw", "routed"})
ROUTED = frozenset({"routed"})


def _ours(name: str, title: str, *packages: str) -> Server:
    def command(mode: str, port: int) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.servers.{name.replace('-', '_')}", mode, str(port)]

    def versions() -> dict[str, str]:
        wanted = ("trio", "attrs", "cattrs", *packages)
        return {"trio-wskit": own_version(), **package_versions(Path(sys.executable), wanted)}

    return Server(name, title, command, versions, BOTH, ours=True)


def _python(
    module: str, title: str, *packages: str, answers: frozenset[str] = BOTH, dialect: Dialect = ENVELOPES
) -> Server:
    def command(mode: str, port: int) -> list[str]:
        return [str(peer_python()), "-m", f"benchmarks.peers.{module}", mode, str(port)]

    name = module.replace("_", "-")
    return Server(name, title, command, lambda: package_versions(peer_python(), packages), answers, dialect)


def _script(
    name: str, title: str, runtime: Callable[[], Path], script: str, *rest: str, packages: tuple[str, ...], raw: bool
) -> Server:
    def command(mode: str, port: int) -> list[str]:
        return [str(runtime()), str(HERE / "peers" / script), mode, str(port), *rest]

    return Server(name, title, command, lambda: npm_versions(packages), BOTH if raw else ROUTED)


_WSKIT = ("bun", "@ws-kit/core", "@ws-kit/bun", "@ws-kit/zod", "@ws-kit/pubsub", "@ws-kit/memory", "zod")

SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        _ours("wskit-native", "trio-wskit, native transport"),
        _ours("wskit-trio-websocket", "trio-wskit on trio-websocket", "trio-websocket", "wsproto"),
        _script("wskit-bun", "ws-kit on Bun, zod", bun, "wskit_bun.mjs", packages=_WSKIT, raw=False),
        _script("bun", "Bun alone, zod", bun, "bun_native.mjs", packages=("bun", "zod"), raw=True),
        _script("node-ws", "Node ws, zod", node, "node_ws.mjs", packages=("ws", "zod"), raw=True),
        _python("picows_uvloop", "picows, uvloop, msgspec", "picows", "uvloop", "msgspec"),
        _python("websockets_asyncio", "websockets.asyncio, uvloop, msgspec", "websockets", "uvloop", "msgspec"),
        _python("websockets_trio", "websockets.trio, msgspec", "websockets", "trio", "msgspec"),
        _python("aiohttp_uvloop", "aiohttp, uvloop, msgspec", "aiohttp", "uvloop", "msgspec"),
        _python(
            "fastapi_uvicorn", "FastAPI, uvicorn, uvloop", "fastapi", "uvicorn", "uvloop", "pydantic", "websockets"
        ),
        _python(
            "socketio_uvicorn",
            "python-socketio, uvicorn, uvloop",
            "python-socketio",
            "python-engineio",
            "uvicorn",
            "uvloop",
            "pydantic",
            answers=ROUTED,
            dialect=SOCKETIO,
        ),
        _python(
            "trio_websocket_plain", "trio-websocket alone, msgspec", "trio-websocket", "wsproto", "trio", "msgspec"
        ),
    )
}
