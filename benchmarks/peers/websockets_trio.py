"""websockets on Trio (its experimental part), msgspec, its own `broadcast`."""

from __future__ import annotations

import sys
from collections import defaultdict

import trio
from websockets.trio.server import ServerConnection, broadcast, serve

from benchmarks.peers.routes_msgspec import handle

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def raw(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def routed(connection: ServerConnection) -> None:
    joined: set[str] = set()
    try:
        async for message in connection:
            outcome, room, answer = handle(message)
            if outcome == "publish":
                await broadcast(rooms[room], answer.decode())
                continue
            if outcome == "join":
                joined.add(room)
                rooms[room].add(connection)
            await connection.send(answer.decode())
    finally:
        for room in joined:
            rooms[room].discard(connection)


async def main(mode: str, port: int) -> None:
    await serve(raw if mode == "raw" else routed, port, host="127.0.0.1", compression=None)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
