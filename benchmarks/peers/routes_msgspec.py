"""The routed work for Python servers without a framework: one tagged union, decoded and validated in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

__all__ = ["handle"]


class Meta(msgspec.Struct, rename="camel"):
    correlation_id: str | None = None


class SentMeta(msgspec.Struct, rename="camel", omit_defaults=True):
    timestamp: int
    correlation_id: str | None = None


class Chat(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    room_id: str
    seq: int
    text: str


class Room(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    room_id: str


class UserId(msgspec.Struct, forbid_unknown_fields=True):
    id: int


class User(msgspec.Struct):
    id: int
    name: str
    roles: list[str]


class Problem(msgspec.Struct):
    code: str
    message: str


class Incoming(msgspec.Struct, tag_field="type", kw_only=True):
    meta: Meta = msgspec.field(default_factory=Meta)


class Echo(Incoming, tag="ECHO"):
    payload: Chat


class Say(Incoming, tag="SAY"):
    payload: Chat


class Join(Incoming, tag="JOIN"):
    payload: Room


class GetUser(Incoming, tag="GET_USER"):
    payload: UserId


class Outgoing(msgspec.Struct):
    type: str
    meta: SentMeta
    payload: Chat | Room | User | Problem


Outcome: TypeAlias = "tuple[Literal['reply', 'join', 'publish'], str, bytes]"
"""What is left to do: send the bytes back; put the sender into the room first; or send them to the room."""

decode = msgspec.json.Decoder(Echo | Say | Join | GetUser).decode
_encode = msgspec.json.Encoder().encode


def encode(type_: str, payload: Chat | Room | User | Problem, correlation_id: str | None = None) -> bytes:
    return _encode(Outgoing(type_, SentMeta(int(time.time() * 1000), correlation_id), payload))


def echo(message: Echo) -> Outcome:
    return "reply", "", encode("ECHOED", message.payload)


def say(message: Say) -> Outcome:
    return "publish", message.payload.room_id, encode("SAID", message.payload)


def join(message: Join) -> Outcome:
    return "join", message.payload.room_id, encode("JOINED", message.payload)


def get_user(message: GetUser) -> Outcome:
    user = User(message.payload.id, "Ada Lovelace", ["admin", "author"])
    return "reply", "", encode("USER", user, message.meta.correlation_id)


ROUTES: dict[type, Callable[..., Outcome]] = {Echo: echo, Say: say, Join: join, GetUser: get_user}


def handle(text: str | bytes) -> Outcome:
    """Route one message."""
    try:
        message = decode(text)
    except msgspec.ValidationError as error:
        return "reply", "", encode("ERROR", Problem("INVALID_ARGUMENT", str(error)))
    return ROUTES[type(message)](message)
