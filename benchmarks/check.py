"""Before a server is measured: does it do the work at all?"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.load import Client, Trouble
from benchmarks.process import ServerFailed
from benchmarks.registry import Server
from benchmarks.work import COUNTER, Exchange

__all__ = ["check_answers"]


def check_answers(server: Server, port: int, mode: str, exchange: Exchange) -> None:
    """Ask once by hand: the right answer to a good message, and no such answer to a bad one."""
    try:
        client = Client(port, server.dialect.path)
    except (Trouble, OSError) as error:
        raise ServerFailed(str(error)) from error
    try:
        if server.dialect.hello:
            client.exchange(*server.dialect.hello)
        text = exchange.message.replace(COUNTER, "10000001")
        if mode == "raw":
            if client.exchange(text, 1) != [text.encode()]:
                raise ServerFailed("it does not echo")
            return
        # Nothing may answer a bad message; so what comes next may be an error, but then the good one's answer.
        client.exchange(server.dialect.bad_echo(), 0)
        good = client.exchange(text, 1)
        if exchange.expect.encode() not in good[-1]:
            good += client.exchange("", 1)
        answer = good[-1].decode()
        if exchange.expect not in answer or sum(exchange.expect.encode() in message for message in good) != 1:
            raise ServerFailed(f"wrong answer: {good!r}")
        found: Any = json.loads(answer.lstrip("0123456789"))  # Socket.IO's packets begin with digits
        payload = (found if exchange.message.startswith("{") else found[-1])["payload"]
        wanted = json.loads(json.dumps(exchange.payload).replace(f'"{COUNTER}"', "10000001"))
        if payload != wanted:
            raise ServerFailed(f"wrong payload: {answer}")
    except (Trouble, OSError, ValueError, KeyError) as error:
        raise ServerFailed(f"checking its answers: {error!r}") from error
    finally:
        client.close()
