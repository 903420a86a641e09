"""Runs the token bucket's script on a server or a cluster, and turns what fails into errors of the limiter."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import final

from trio_wskit._coredis import RedisClient, Script, open_script
from trio_wskit.limiter._batch import StoreError

__all__ = ["Link", "RedisClient", "open_link"]


@final
class Link:
    """Runs the token bucket's script.

    Attributes:
        is_cluster: whether one call may only have keys of one slot.
    """

    __slots__ = ("_script", "is_cluster")

    def __init__(self, script: Script) -> None:
        self._script = script
        self.is_cluster: bool = script.is_cluster

    async def call(self, keys: Sequence[str], now: str, words: str) -> list[int | bytes]:
        """Run the script once.

        Raises:
            StoreError: the server cannot be reached, or refused. What it was asked for is done or not, and nobody
            knows.

        Cancelled: the same. It goes on waiting for nothing.
        """
        try:
            reply: list[int | bytes] = await self._script.run(keys, (now, words))
        except Exception as error:  # coredis lets some of anyio's through, and groups of them
            raise StoreError(f"the rate limit store failed: {error}") from error
        return reply

    def drop(self) -> None:
        """Let no later call stand in line behind one that was not answered; with a client of our own, that is."""
        self._script.drop()


@asynccontextmanager
async def open_link(
    target: str | RedisClient, max_wait: float, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Link]:
    """Connect to a URL, or use a client that is open.

    Raises:
        ConfigError: the client would run a script again when its answer was lost, and so spend twice.
    """
    async with open_script(
        target,
        "trio_wskit.limiter",
        "token_bucket.lua",
        tls=tls,
        connect_timeout=max_wait,
        use="rate limits",
        twice="a lost answer is paid twice",
    ) as script:
        yield Link(script)
