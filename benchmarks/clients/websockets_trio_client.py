"""`websockets` on Trio: an event for each request, with a time limit."""

from __future__ import annotations

import trio
from websockets.trio.client import ClientConnection, connect

from benchmarks.clients.by_hand import GetUser, Head, decode_head, decode_user, encode_request, new_id
from benchmarks.clients.measure import Meter, arguments

TIMEOUT = 30.0


class Waiting:
    def __init__(self) -> None:
        self.event = trio.Event()
        self.head: Head | None = None


async def main(port: int, window: int, seconds: float) -> None:
    meter = Meter(seconds)
    waiting: dict[str, Waiting] = {}

    async def read(connection: ClientConnection) -> None:
        async for data in connection:
            head = decode_head(data)
            one = waiting.get(head.meta.correlation_id or "")
            if one is not None:
                one.head = head
                one.event.set()

    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection, trio.open_nursery() as outer:
        outer.start_soon(read, connection)

        async def work() -> None:
            number = 0
            while meter.goes_on():
                number += 1
                name = new_id()
                one = waiting[name] = Waiting()
                try:
                    with trio.fail_after(TIMEOUT):
                        await connection.send(encode_request(GetUser(number), name, TIMEOUT))
                        await one.event.wait()
                finally:
                    del waiting[name]
                assert one.head is not None
                assert decode_user(one.head).id == number

        async with trio.open_nursery() as nursery:
            for _ in range(window):
                nursery.start_soon(work)
        meter.report()
        outer.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *arguments())
