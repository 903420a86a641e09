"""Ours."""

from __future__ import annotations

import trio

from benchmarks.clients.measure import Meter, arguments
from benchmarks.clients.messages import GetUser, User
from trio_wskit import open_client


async def main(port: int, window: int, seconds: float) -> None:
    meter = Meter(seconds)
    async with open_client(f"ws://127.0.0.1:{port}/") as client, trio.open_nursery() as nursery:

        async def work() -> None:
            number = 0
            while meter.goes_on():
                number += 1
                user = await client.request(GetUser(number))
                assert type(user) is User
                assert user.id == number

        for _ in range(window):
            nursery.start_soon(work)
    meter.report()


if __name__ == "__main__":
    trio.run(main, *arguments())
