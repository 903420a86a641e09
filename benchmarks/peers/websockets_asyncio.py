"""websockets on asyncio with uvloop, msgspec, its own `broadcast`."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

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
                broadcast(rooms[room], answer.decode())
                continue
            if outcome == "join":
                joined.add(room)
                rooms[room].add(connection)
            await connection.send(answer, text=True)
    finally:
        for room in joined:
            rooms[room].discard(connection)


async def main(mode: str, port: int) -> None:
    handler = raw if mode == "raw" else routed
    async with serve(handler, "127.0.0.1", port, compression=None, logger=None):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
