"""`websockets` on asyncio with uvloop: a future for each request, with a time limit."""

from __future__ import annotations

import asyncio

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.clients.by_hand import GetUser, Head, decode_head, decode_user, encode_request, new_id
from benchmarks.clients.measure import Meter, arguments

TIMEOUT = 30.0


async def main(port: int, window: int, seconds: float) -> None:
    meter = Meter(seconds)
    waiting: dict[str, asyncio.Future[Head]] = {}

    async def read(connection: ClientConnection) -> None:
        async for data in connection:
            head = decode_head(data)
            future = waiting.get(head.meta.correlation_id or "")
            if future is not None and not future.done():
                future.set_result(head)

    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        reader = asyncio.create_task(read(connection))

        async def work() -> None:
            number = 0
            while meter.goes_on():
                number += 1
                name = new_id()
                waiting[name] = asyncio.get_running_loop().create_future()
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await connection.send(encode_request(GetUser(number), name, TIMEOUT))
                        user = decode_user(await waiting[name])
                finally:
                    del waiting[name]
                assert user.id == number

        async with asyncio.TaskGroup() as group:
            for _ in range(window):
                group.create_task(work())
        reader.cancel()
    meter.report()


if __name__ == "__main__":
    uvloop.run(main(*arguments()))
