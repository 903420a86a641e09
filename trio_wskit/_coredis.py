"""The door to coredis: its connections to a URL, and a script that runs once, which every store on Redis is made of.

What needs a link that breaks and is not mended goes through `pubsub/_redis_link.py`.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from typing import Any, Final, TypeAlias, TypeVar, cast, final
from urllib.parse import urlsplit

import trio

try:
    from coredis import Redis, RedisCluster
    from coredis.exceptions import NoScriptError
    from coredis.pool import ConnectionPool
    from coredis.retry import NoRetryPolicy
except ImportError as _missing:
    raise ImportError("What is shared over Redis needs coredis: pip install 'trio-wskit[redis]'") from _missing

from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["RedisClient", "Script", "as_raised", "check_options", "open_script", "pool_of"]

RedisClient: TypeAlias = "Redis[Any] | RedisCluster[Any]"

T = TypeVar("T")

_SCHEMES: Final = ("redis", "rediss", "unix")


def pool_of(url: str, tls: ssl.SSLContext | None, **options: Any) -> ConnectionPool[Any]:
    """Take a URL apart. No error shows its password.

    Args:
        url: with percent signs where it needs them.
        tls: for ``rediss://``; None means the system's certificates, and the host's name is checked.
        options: of coredis' pool.

    Raises:
        ConfigError: it is no URL for Redis, or another one than `tls` is for.
    """
    try:
        parts = urlsplit(url)
    except ValueError as wrong:
        raise ConfigError(f"that is no URL for Redis: {wrong}") from wrong
    where = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"a Redis URL begins with redis://, rediss:// or unix://, and {where!r} does not")
    if "ssl_" in parts.query:
        raise ConfigError(f"the TLS settings of {where!r} belong into an ssl.SSLContext: tls=…")
    if parts.scheme == "rediss":
        # coredis' own default would not look at the host's name.
        options["ssl_context"] = ssl.create_default_context() if tls is None else tls
    elif tls is not None:
        raise ConfigError(f"tls=… is for rediss:// URLs, and {where!r} is none")
    try:
        pool: ConnectionPool[Any] = ConnectionPool.from_url(url, decode_components=True, **options)
    except (ValueError, TypeError) as wrong:
        raise ConfigError(f"{where!r} is no URL for Redis: {wrong}") from wrong
    if pool.location is None:
        raise ConfigError(f"{where!r} names no host")
    return pool


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
    tls: ssl.SSLContext | None,
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
        tls: see `pool_of`; of a client of our own.
        connect_timeout: seconds; likewise.
        max_connections: likewise.
        use: what the client is for, and
        twice: what would come of it if it asked twice: for the error.

    Raises:
        ConfigError: it is no URL, or neither; or the client would ask again by itself when an answer was lost.
    """
    if isinstance(target, str):
        pool = pool_of(target, tls, connect_timeout=connect_timeout, max_connections=max_connections)
        client: Redis[bytes] = Redis(connection_pool=pool, retry_policy=NoRetryPolicy())
        async with as_raised(client):
            yield Script(client, package, file, owned=True)
    elif not isinstance(target, (Redis, RedisCluster)):  # pyright: ignore[reportUnnecessaryIsInstance] - as it comes
        raise ConfigError(f"Redis for {use} is a URL or a client of coredis, not {target!r}")
    elif tls is not None:
        raise ConfigError("tls=… goes with a URL; a client has its own")
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
