"""trio-websocket alone, msgspec; a room is sent to one member after another, as its examples do."""

from __future__ import annotations

import sys
from collections import defaultdict

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from benchmarks.peers.routes_msgspec import handle

rooms: defaultdict[str, set[WebSocketConnection]] = defaultdict(set)


async def raw(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


async def routed(request: WebSocketRequest) -> None:
    connection = await request.accept()
    joined: set[str] = set()
    try:
        while True:
            outcome, room, answer = handle(await connection.get_message())
            if outcome == "publish":
                for member in list(rooms[room]):
                    await member.send_message(answer.decode())
                continue
            if outcome == "join":
                joined.add(room)
                rooms[room].add(connection)
            await connection.send_message(answer.decode())
    except ConnectionClosed:
        pass
    finally:
        for room in joined:
            rooms[room].discard(connection)


async def main(mode: str, port: int) -> None:
    await serve_websocket(raw if mode == "raw" else routed, "127.0.0.1", port, None)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
