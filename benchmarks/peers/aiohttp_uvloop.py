"""aiohttp with uvloop, msgspec; a room is sent to member by member."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

import uvloop
from aiohttp import WSMsgType, web

from benchmarks.peers.routes_msgspec import handle

rooms: defaultdict[str, set[web.WebSocketResponse]] = defaultdict(set)


async def raw(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


async def routed(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    joined: set[str] = set()
    try:
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            outcome, room, answer = handle(message.data)
            if outcome == "publish":
                for member in list(rooms[room]):
                    await member.send_str(answer.decode())
                continue
            if outcome == "join":
                joined.add(room)
                rooms[room].add(socket)
            await socket.send_str(answer.decode())
    finally:
        for room in joined:
            rooms[room].discard(socket)
    return socket


async def main(mode: str, port: int) -> None:
    app = web.Application()
    app.router.add_get("/", raw if mode == "raw" else routed)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
