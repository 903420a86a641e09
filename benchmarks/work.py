"""What every server is asked to do: the messages, and how each dialect writes them.

A server runs as `PROGRAM raw|routed PORT` on 127.0.0.1. Raw, it sends every text message back. Routed, it takes JSON
envelopes `{"type", "meta", "payload"}`, refuses a payload of the wrong shape, and answers as below. The meta of an
answer holds a timestamp (but for ws-kit, which sends none) and the request's correlationId where it had one.

    ECHO      {roomId: str, seq: int, text: str}  ->  ECHOED with the same payload
    GET_USER  {id: int}                           ->  USER {id: int, name: str, roles: [str, ...]}
    JOIN      {roomId: str}                       ->  JOINED with the same payload; from now on in the room
    SAY       {roomId: str, seq: int, text: str}  ->  SAID with the same payload, to everyone in the room
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["COUNTER", "ENVELOPES", "SOCKETIO", "Dialect", "Exchange"]

COUNTER = "########"
"""The generator writes the next of 10000001, 10000002, … here."""

ROOM = {"roomId": "lobby"}
ECHO = {"roomId": "lobby", "seq": COUNTER, "text": "hello, anybody out there?"}
SAY = {"roomId": "lobby", "seq": COUNTER, "text": "somebody said something to everybody in the room, again"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message for the generator to send, and a string that every answer to it holds."""

    message: str
    expect: str
    payload: dict[str, Any]
    """The payload of the answer, but for what counts."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the same work is said: as ws-kit's envelopes, or as Socket.IO's packets."""

    path: str
    hello: tuple[str, int] | None
    """What a connection sends first, and how many messages it then gets before it may go on."""
    event: str
    """An event, with {type} and {payload} to be replaced."""
    call: str
    call_expect: str

    def _event(self, type_: str, payload: dict[str, Any]) -> str:
        body = json.dumps(payload, separators=(",", ":")).replace(f'"{COUNTER}"', COUNTER)
        return self.event.replace("{type}", type_).replace("{payload}", body)

    def echo(self) -> Exchange:
        return Exchange(self._event("ECHO", ECHO), '"ECHOED"', ECHO)

    def bad_echo(self) -> str:
        """An echo with a payload of the wrong shape: it must not be answered as if it were right."""
        return self._event("ECHO", {**ECHO, "seq": "one"})

    def rpc(self) -> Exchange:
        return Exchange(self.call, self.call_expect, {"id": 7, "name": "Ada Lovelace", "roles": ["admin", "author"]})

    def join(self) -> Exchange:
        return Exchange(self._event("JOIN", ROOM), '"JOINED"', ROOM)

    def say(self, padding: int = 0) -> Exchange:
        """Something to publish; with that many bytes more to it."""
        payload = {**SAY, "text": SAY["text"] + "." * padding}
        return Exchange(self._event("SAY", payload), '"SAID"', payload)


ENVELOPES = Dialect(
    path="/",
    hello=None,
    event='{"type":"{type}","meta":{},"payload":{payload}}',
    call='{"type":"GET_USER","meta":{"correlationId":"c-' + COUNTER + '"},"payload":{"id":7}}',
    call_expect='"correlationId":"c-1',
)
SOCKETIO = Dialect(
    path="/socket.io/?EIO=4&transport=websocket",
    hello=("40", 2),
    event='42["{type}",{payload}]',
    call="42" + COUNTER + '["GET_USER",{"id":7}]',
    call_expect="431",
)
