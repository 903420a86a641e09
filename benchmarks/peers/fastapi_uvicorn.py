"""FastAPI on uvicorn with uvloop, pydantic; a connection manager sends to member by member, as its documents show."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel


class Payload(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True)


class Meta(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    correlation_id: str | None = None
    timestamp: int | None = None


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


class Problem(Payload):
    code: str
    message: str


class Echo(BaseModel):
    type: Literal["ECHO"]
    meta: Meta = Meta()
    payload: Chat


class Say(BaseModel):
    type: Literal["SAY"]
    meta: Meta = Meta()
    payload: Chat


class Join(BaseModel):
    type: Literal["JOIN"]
    meta: Meta = Meta()
    payload: Room


class GetUser(BaseModel):
    type: Literal["GET_USER"]
    meta: Meta = Meta()
    payload: UserId


class Outgoing(BaseModel):
    type: str
    meta: Meta
    payload: Chat | Room | User | Problem


Incoming: TypeAdapter[Echo | Say | Join | GetUser] = TypeAdapter(
    Annotated[Echo | Say | Join | GetUser, Field(discriminator="type")]
)
rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)


def encode(type_: str, payload: Chat | Room | User | Problem, correlation_id: str | None = None) -> str:
    meta = Meta(timestamp=int(time.time() * 1000), correlation_id=correlation_id)
    return Outgoing(type=type_, meta=meta, payload=payload).model_dump_json(by_alias=True, exclude_none=True)


async def raw(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


async def routed(socket: WebSocket) -> None:
    await socket.accept()
    joined: set[str] = set()
    try:
        while True:
            await route(socket, await socket.receive_text(), joined)
    except WebSocketDisconnect:
        pass
    finally:
        for room in joined:
            rooms[room].discard(socket)


async def route(socket: WebSocket, text: str, joined: set[str]) -> None:
    try:
        message = Incoming.validate_json(text)
    except ValidationError as error:
        await socket.send_text(encode("ERROR", Problem(code="INVALID_ARGUMENT", message=str(error))))
        return
    match message:
        case Echo(payload=payload):
            await socket.send_text(encode("ECHOED", payload))
        case GetUser(payload=payload, meta=meta):
            user = User(id=payload.id, name="Ada Lovelace", roles=["admin", "author"])
            await socket.send_text(encode("USER", user, meta.correlation_id))
        case Join(payload=payload):
            joined.add(payload.room_id)
            rooms[payload.room_id].add(socket)
            await socket.send_text(encode("JOINED", payload))
        case Say(payload=payload):
            said = encode("SAID", payload)
            for member in list(rooms[payload.room_id]):
                await member.send_text(said)


def main(mode: str, port: int) -> None:
    app = FastAPI()
    app.websocket("/")(raw if mode == "raw" else routed)
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", log_level="error", ws_per_message_deflate=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
