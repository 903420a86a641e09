"""picows (Cython) with uvloop, msgspec; a room is sent to member by member."""

from __future__ import annotations

import sys
from collections import defaultdict

import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.peers.routes_msgspec import handle

rooms: defaultdict[str, set[WSTransport]] = defaultdict(set)
TEXT = WSMsgType.TEXT


class Raw(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()


class Routed(WSListener):
    def __init__(self) -> None:
        self.joined: set[str] = set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            outcome, room, answer = handle(frame.get_payload_as_bytes())
            if outcome == "publish":
                for member in rooms[room]:
                    member.send(TEXT, answer)
                return
            if outcome == "join":
                self.joined.add(room)
                rooms[room].add(transport)
            transport.send(TEXT, answer)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        for room in self.joined:
            rooms[room].discard(transport)


async def main(mode: str, port: int) -> None:
    listener = Raw if mode == "raw" else Routed

    def accept(_: WSUpgradeRequest) -> WSListener:
        return listener()

    server = await ws_create_server(accept, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
