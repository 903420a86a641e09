"""The history of topics that many processes share, on Redis 7 or Valkey: one stream for each topic."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, TypeAlias, cast, final

import trio

try:
    from coredis import Redis, RedisCluster
    from coredis.exceptions import NoScriptError
    from coredis.retry import NoRetryPolicy
except ImportError as _missing:
    raise ImportError("RedisHistory needs coredis: pip install 'trio-wskit[redis]'") from _missing

from trio_wskit._core.history import Entry, History, Position, Replay
from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["RedisClient", "RedisHistory", "open_redis_history"]

RedisClient: TypeAlias = "Redis[Any] | RedisCluster[Any]"

_SCRIPT: Final = files("trio_wskit.pubsub").joinpath("history.lua").read_text("utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@final
class RedisHistory:
    """A `trio_wskit.abc.HistoryStore` on Redis; made by `open_redis_history`, which says what it does."""

    def __init__(self, client: RedisClient, *, owned: bool, name: str, max_wait: float) -> None:
        self._client = client
        self._owned = owned
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
        failure: Exception | None = None
        with trio.move_on_after(self._max_wait) as patience:
            try:
                try:
                    answer: Any = await self._client.evalsha(_SHA, keys, arguments)
                except NoScriptError:
                    # A server that was restarted, or another node. It has not run; this runs it, and makes it known.
                    answer = await self._client.eval(_SCRIPT, keys, arguments)
                return cast("list[Any]", answer)
            except Exception as error:  # coredis lets some of anyio's through, and groups of them
                failure = error
        if patience.cancelled_caught and self._owned:
            self._client.connection_pool.disconnect()  # no later call stands in line behind this one
        raise WsKitError("UNAVAILABLE", "The history is unavailable") from failure


def _leaves(error: BaseException) -> Iterator[int]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(one)
    else:
        yield id(error)


@asynccontextmanager
async def open_redis_history(
    target: str | RedisClient, *, name: str = "wskit-history", max_wait: float = 1.0
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

    Raises:
        ConfigError: an option is out of its bounds, or the client would ask again by itself.
    """
    if not max_wait > 0:
        raise ConfigError(f"open_redis_history(max_wait=…) takes seconds above 0, not {max_wait!r}")
    if not name or "{" in name or "}" in name:
        raise ConfigError(f"open_redis_history(name=…) takes a text without braces, not {name!r}")
    if not isinstance(target, str):
        if not isinstance(target.retry_policy, NoRetryPolicy):
            raise ConfigError(
                "A Redis client for histories must not try again by itself, or a message may be kept twice: "
                "make it with retry_policy=coredis.retry.NoRetryPolicy()"
            )
        yield RedisHistory(target, owned=False, name=name, max_wait=max_wait)
        return
    client = Redis.from_url(target, retry_policy=NoRetryPolicy(), connect_timeout=max_wait, max_connections=4)
    raised: BaseException | None = None
    try:
        async with client:
            try:
                yield RedisHistory(client, owned=True, name=name, max_wait=max_wait)
            except BaseException as error:
                raised = error
                raise
    except BaseExceptionGroup as group:
        # The client's nursery is a detail of this room: what the block raised leaves it as it was raised.
        if raised is None or not set(_leaves(group)) <= set(_leaves(raised)):
            raise
    if raised is not None:
        raise raised
