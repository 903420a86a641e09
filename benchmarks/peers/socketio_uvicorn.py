"""python-socketio (Socket.IO's own protocol) on uvicorn with uvloop, pydantic; its own rooms."""

# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import sys
import time
from typing import Any

import socketio
import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel


class Payload(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True)


class Chat(Payload):
    room_id: str
    seq: int
    text: str


class Room(Payload):
    room_id: str


class UserId(Payload):
    id: int


class User(Payload):
    id: int
    name: str
    roles: list[str]


server = socketio.AsyncServer(async_mode="asgi", logger=False, engineio_logger=False)


def stamped(payload: Payload) -> dict[str, Any]:
    return {"meta": {"timestamp": int(time.time() * 1000)}, "payload": payload.model_dump(by_alias=True)}


async def refuse(sid: str, error: ValidationError) -> None:
    await server.emit("ERROR", {"code": "INVALID_ARGUMENT", "message": str(error)}, to=sid)


@server.on("ECHO")
async def echo(sid: str, data: object) -> None:
    try:
        chat = Chat.model_validate(data)
    except ValidationError as error:
        await refuse(sid, error)
        return
    await server.emit("ECHOED", stamped(chat), to=sid)


@server.on("GET_USER")
async def get_user(sid: str, data: object) -> dict[str, Any]:
    wanted = UserId.model_validate(data)
    return stamped(User(id=wanted.id, name="Ada Lovelace", roles=["admin", "author"]))


@server.on("JOIN")
async def join(sid: str, data: object) -> None:
    try:
        room = Room.model_validate(data)
    except ValidationError as error:
        await refuse(sid, error)
        return
    await server.enter_room(sid, room.room_id)
    await server.emit("JOINED", stamped(room), to=sid)


@server.on("SAY")
async def say(sid: str, data: object) -> None:
    try:
        chat = Chat.model_validate(data)
    except ValidationError as error:
        await refuse(sid, error)
        return
    await server.emit("SAID", stamped(chat), room=chat.room_id)


if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(server),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        log_level="error",
        ws_per_message_deflate=False,
    )
