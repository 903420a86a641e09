"""The only room that knows coredis: runs the script on a server or a cluster, and turns its errors into ours."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, TypeAlias, cast, final

try:
    from coredis import Redis, RedisCluster
    from coredis.exceptions import NoScriptError
    from coredis.retry import NoRetryPolicy
except ImportError as missing:
    raise ImportError("RedisRateLimiter needs coredis: pip install 'trio-wskit[redis]'") from missing

from trio_wskit.errors import ConfigError
from trio_wskit.limiter._batch import StoreError

__all__ = ["Link", "RedisClient", "open_link"]

RedisClient: TypeAlias = "Redis[Any] | RedisCluster[Any]"

_SCRIPT: Final = files("trio_wskit.limiter").joinpath("token_bucket.lua").read_text("utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@final
class Link:
    """Runs the token bucket's script.

    Attributes:
        is_cluster: whether one call may only have keys of one slot.
    """

    __slots__ = ("_client", "_owned", "is_cluster")

    def __init__(self, client: RedisClient, *, owned: bool) -> None:
        self._client = client
        self._owned = owned
        self.is_cluster = isinstance(client, RedisCluster)

    async def call(self, keys: Sequence[str], now: str, words: str) -> list[int | bytes]:
        """Run the script once.

        Raises:
            StoreError: the server cannot be reached, or refused. What it was asked for is done or not, and nobody
            knows.

        Cancelled: the same. It goes on waiting for nothing.
        """
        try:
            try:
                reply = await self._client.evalsha(_SHA, list(keys), [now, words])
            except NoScriptError:
                # A server that was restarted, or another node. It has not run; this runs it, and makes it known.
                reply = await self._client.eval(_SCRIPT, list(keys), [now, words])
        except Exception as error:  # coredis lets some of anyio's through, and groups of them
            raise StoreError(f"the rate limit store failed: {error}") from error
        return cast("list[int | bytes]", reply)

    def drop(self) -> None:
        """Let no later call stand in line behind one that was not answered; with a client of our own, that is."""
        if self._owned:
            self._client.connection_pool.disconnect()


@asynccontextmanager
async def open_link(target: str | RedisClient, max_wait: float) -> AsyncGenerator[Link]:
    """Connect to a URL, or use a client that is open.

    Raises:
        ConfigError: the client would run a script again when its answer was lost, and so spend twice.
    """
    if isinstance(target, str):
        client = Redis.from_url(target, retry_policy=NoRetryPolicy(), connect_timeout=max_wait, max_connections=2)
        async with client:
            yield Link(client, owned=True)
    elif not isinstance(target.retry_policy, NoRetryPolicy):
        raise ConfigError(
            "A Redis client for rate limits must not try again by itself, or a lost answer is paid twice: "
            "make it with retry_policy=coredis.retry.NoRetryPolicy()"
        )
    else:
        yield Link(target, owned=False)
