"""What everybody writes by hand around a WebSocket: ids, a table of who waits, and messages by msgspec."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

__all__ = ["GetUser", "Head", "User", "decode_head", "decode_user", "encode_request", "new_id"]


class GetUser(msgspec.Struct):
    id: int


class User(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    name: str
    age: int


class Meta(msgspec.Struct, rename="camel", omit_defaults=True):
    timestamp: int = 0
    correlation_id: str | None = None
    timeout_ms: int | None = None


class Request(msgspec.Struct):
    type: str
    meta: Meta
    payload: GetUser


class Head(msgspec.Struct):
    type: str
    meta: Meta = msgspec.field(default_factory=Meta)
    payload: msgspec.Raw = msgspec.Raw(b"null")


_encoder = msgspec.json.Encoder()
_heads = msgspec.json.Decoder(Head)
_users = msgspec.json.Decoder(User)


def new_id() -> str:
    return str(uuid.uuid4())


def encode_request(request: GetUser, correlation_id: str, timeout: float) -> str:
    meta = Meta(int(time.time() * 1000), correlation_id, round(timeout * 1000))
    return _encoder.encode(Request("GET_USER", meta, request)).decode()


def decode_head(data: Any) -> Head:
    return _heads.decode(data)


def decode_user(head: Head) -> User:
    if head.type != "USER":
        raise RuntimeError(head.type)
    return _users.decode(head.payload)
