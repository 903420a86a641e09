"""The history of topics that many processes share, on Redis 7 or Valkey: one stream for each topic."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, final

from trio_wskit._core.history import Entry, History, Position, Replay
from trio_wskit._coredis import RedisClient, Script, check_options, open_script

__all__ = ["RedisClient", "RedisHistory", "open_redis_history"]


@final
class RedisHistory:
    """A `trio_wskit.abc.HistoryStore` on Redis; made by `open_redis_history`, which says what it does."""

    def __init__(self, script: Script, name: str, max_wait: float) -> None:
        self._script = script
        self._name = name
        self._max_wait = max_wait

    async def append(self, topic: str, message: bytes, keep: History) -> Position:
        """See `trio_wskit.abc.HistoryStore.append`. Waits for one call, `max_wait` at most.

        Raises:
            WsKitError: UNAVAILABLE: the server has not answered; the message was appended or it was not.

        Cancelled: the same.
        """
        epoch, offset = await self._call(topic, keep, "a", message)
        return Position(epoch.decode(), offset)

    async def read(
        self, topic: str, keep: History, since: Position | None = None, last: int = 0, limit: int = 1000
    ) -> Replay:
        """See `trio_wskit.abc.HistoryStore.read`. Waits for one call, `max_wait` at most.

        Raises:
            WsKitError: UNAVAILABLE: the server has not answered.

        Cancelled: nothing has changed.
        """
        words = ("", str(last)) if since is None else (since.epoch, str(since.offset))
        epoch, newest, is_whole, *messages = await self._call(topic, keep, "r", *words, str(limit))
        position = Position(epoch.decode(), newest)
        if not is_whole:
            return Replay(position, None)
        first = newest - len(messages) + 1
        return Replay(position, [Entry(offset, message) for offset, message in enumerate(messages, first)])

    async def _call(self, topic: str, keep: History, command: str, *words: str | bytes) -> list[Any]:
        keys = [f"{self._name}:{{{topic}}}:{part}" for part in ("messages", "position")]
        arguments = [
            command,
            secrets.token_hex(8),
            str(keep.size),
            str(max(1, round(keep.ttl * 1000))),
            str(max(1, round(keep.position_ttl * 1000))),
            *words,
        ]
        answer: list[Any] = await self._script.ask(keys, arguments, self._max_wait, "history")
        return answer


@asynccontextmanager
async def open_redis_history(
    target: str | RedisClient,
    *,
    name: str = "wskit-history",
    max_wait: float = 1.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[RedisHistory]:
    """A store of histories that all processes share which name the same server and name.

    To append and to resume is one round trip each: one script on the server, by its time. A topic is two keys in one
    slot of a cluster, a stream and a hash, and both expire. When a server was started again or another one has taken
    over, what it kept may lack the last messages, whatever it saves: each topic then begins a new epoch, and nobody is
    told that it recovered.

    It does not need the server to be there when it is opened.

    Args:
        target: the server's URL, such as ``redis://localhost:6379/0``; or a `coredis.Redis` or `coredis.RedisCluster`
            that is open (entered in a parent task) and was made with ``retry_policy=coredis.retry.NoRetryPolicy()``.
        name: what all keys begin with; without braces.
        max_wait: seconds that one call may take, above 0.
        tls: for ``rediss://`` URLs; None means the system's certificates. Either way the host's name should be checked.

    Raises:
        ConfigError: an option is out of its bounds, the target is no URL, or the client would ask again by itself.
    """
    check_options("open_redis_history", name, max_wait)
    async with open_script(
        target,
        "trio_wskit.pubsub",
        "history.lua",
        tls=tls,
        connect_timeout=max_wait,
        use="histories",
        twice="a message may be kept twice",
    ) as script:
        yield RedisHistory(script, name, max_wait)
