"""A script on a Redis server or a cluster: what every store on Redis is made of, and their only door to coredis."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar, cast, final

import trio

try:
    from coredis import Redis, RedisCluster
    from coredis.exceptions import NoScriptError
    from coredis.retry import NoRetryPolicy
except ImportError as _missing:
    raise ImportError("The stores on Redis need coredis: pip install 'trio-wskit[redis]'") from _missing

from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["RedisClient", "Script", "as_raised", "check_options", "open_script"]

RedisClient: TypeAlias = "Redis[Any] | RedisCluster[Any]"

T = TypeVar("T")


@final
class Script:
    """Runs one script.

    Args:
        client: where; open.
        package: where the text lies.
        file: the text's name there.
        owned: the client is ours alone.

    Attributes:
        is_cluster: whether one call may only have keys of one slot.
    """

    __slots__ = ("_client", "_owned", "_sha", "_text", "is_cluster")

    def __init__(self, client: RedisClient, package: str, file: str, *, owned: bool) -> None:
        self._client = client
        self._owned = owned
        self._text = files(package).joinpath(file).read_text("utf-8")
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self.is_cluster: bool = isinstance(client, RedisCluster)

    async def run(self, keys: Sequence[str], words: Sequence[str | bytes]) -> Any:
        """Run it once, however long that takes.

        Raises:
            Exception: the server cannot be reached, or refused. What it was asked for is done or not, and nobody knows.

        Cancelled: the same. It goes on waiting for nothing.
        """
        try:
            return await self._client.evalsha(self._sha, keys, words)
        except NoScriptError:
            # A server that was restarted, or another node. It has not run; this runs it, and makes it known.
            return await self._client.eval(self._text, keys, words)

    async def ask(self, keys: Sequence[str], words: Sequence[str | bytes], max_wait: float, what: str) -> Any:
        """Run it once, for `max_wait` seconds at most.

        Args:
            keys: as the script has them.
            words: likewise.
            max_wait: seconds.
            what: is unavailable then.

        Raises:
            WsKitError: UNAVAILABLE: the server has not answered. It is done or not, and nobody knows.

        Cancelled: the same.
        """
        failure: Exception | None = None
        with trio.move_on_after(max_wait) as patience:
            try:
                return await self.run(keys, words)
            except Exception as error:  # coredis lets some of anyio's through, and groups of them
                failure = error
        if patience.cancelled_caught:
            self.drop()
        raise WsKitError("UNAVAILABLE", f"The {what} is unavailable") from failure

    def drop(self) -> None:
        """Let no later call stand in line behind one that was not answered; with a client of our own, that is."""
        if self._owned:
            self._client.connection_pool.disconnect()


def check_options(opener: str, name: str, max_wait: float) -> None:
    """Refuse what is out of bounds.

    Raises:
        ConfigError: it names the option of `opener`.
    """
    if not max_wait > 0:
        raise ConfigError(f"{opener}(max_wait=…) takes seconds above 0, not {max_wait!r}")
    if not name or "{" in name or "}" in name:
        raise ConfigError(f"{opener}(name=…) takes a text without braces, not {name!r}")


@asynccontextmanager
async def open_script(
    target: str | RedisClient,
    package: str,
    file: str,
    *,
    connect_timeout: float,
    max_connections: int,
    use: str,
    twice: str,
) -> AsyncGenerator[Script]:
    """Connect to a URL, or use a client that is open. The server need not be there yet.

    Args:
        target: the URL, or the client.
        package: where the script lies.
        file: its name there.
        connect_timeout: seconds; of a client of our own.
        max_connections: likewise.
        use: what the client is for, and
        twice: what would come of it if it asked twice: for the error.

    Raises:
        ConfigError: the client would ask again by itself when an answer was lost.
    """
    if isinstance(target, str):
        client = Redis.from_url(
            target, retry_policy=NoRetryPolicy(), connect_timeout=connect_timeout, max_connections=max_connections
        )
        async with as_raised(client):
            yield Script(client, package, file, owned=True)
    elif not isinstance(target.retry_policy, NoRetryPolicy):
        raise ConfigError(
            f"A Redis client for {use} must not try again by itself, or {twice}: "
            "make it with retry_policy=coredis.retry.NoRetryPolicy()"
        )
    else:
        yield Script(target, package, file, owned=False)


@asynccontextmanager
async def as_raised(room: AbstractAsyncContextManager[T]) -> AsyncGenerator[T]:
    """Enter a room whose nurseries are a detail of it: what the block raises leaves it as it was raised."""
    raised: BaseException | None = None
    try:
        async with room as inside:
            try:
                yield inside
            except BaseException as error:
                raised = error
                raise
    except BaseExceptionGroup as group:
        # A group that goes through a nursery is made anew, so it is known by what is in it.
        if raised is None or not set(_leaves(group)) <= set(_leaves(raised)):
            raise
    if raised is not None:
        raise raised


def _leaves(error: BaseException) -> Iterator[int]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(one)
    else:
        yield id(error)
