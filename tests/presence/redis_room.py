"""Some who are present, as a program of its own: ``python -m tests.presence.redis_room URL TTL NAME…``."""

from __future__ import annotations

import sys

import trio

from trio_wskit import App, Router, open_app
from trio_wskit.presence import Presence
from trio_wskit.presence.redis import open_redis_presence

__all__ = ["TOPIC"]

TOPIC = "room"


async def main(url: str, ttl: float, names: list[str]) -> None:
    """Say "ready" when the store knows them, and stay until killed."""
    async with open_redis_presence(url) as store:
        presence = Presence(store, debounce=0.05, linger=0, ttl=ttl)
        async with open_app(App(Router(), presence=presence)):
            for name in names:
                presence.enter(f"client of {name}", name, TOPIC, None)
            while len((await store.members(TOPIC)).members) < len(names):  # noqa: ASYNC110 - nobody tells us
                await trio.sleep(0.05)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], float(sys.argv[2]), sys.argv[3:])
