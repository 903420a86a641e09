"""The door to coredis: connections to a URL, and a script that runs once, which every store on Redis is made of.

coredis' pool is only there to take a URL apart. Of connections that are thrown away while calls are under way it loses
the places, one by one, and in the end answers nobody any more (see tests/test_coredis.py). So a store has one
connection of its own, which is thrown away when it breaks or does not answer; the next call opens another.
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
    from coredis.connection import BaseConnection, TCPConnection, TCPLocation
    from coredis.exceptions import NoScriptError
    from coredis.pool import ConnectionPool
    from coredis.retry import NoRetryPolicy
except ImportError as _missing:
    raise ImportError("What is shared over Redis needs coredis: pip install 'trio-wskit[redis]'") from _missing

from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["Place", "RedisClient", "Script", "as_raised", "check_options", "open_connection", "open_script"]

RedisClient: TypeAlias = "Redis[Any] | RedisCluster[Any]"

T = TypeVar("T")

_SCHEMES: Final = ("redis", "rediss", "unix")


@final
class Place:
    """A URL, taken apart. No error shows its password.

    Args:
        url: with percent signs where it needs them.
        tls: for ``rediss://``; None means the system's certificates, and the host's name is checked.

    Attributes:
        host: of the server; None for a socket in the file system.

    Raises:
        ConfigError: it is no URL for Redis, or another one than `tls` is for.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError as wrong:
            raise ConfigError(f"that is no URL for Redis: {wrong}") from wrong
        where = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        if parts.scheme not in _SCHEMES:
            raise ConfigError(f"a Redis URL begins with redis://, rediss:// or unix://, and {where!r} does not")
        if "ssl_" in parts.query:
            raise ConfigError(f"the TLS settings of {where!r} belong into an ssl.SSLContext: tls=…")
        options: dict[str, Any] = {}
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
        self._class: type[BaseConnection] = pool.connection_class
        self._location = pool.location
        self._options: dict[str, Any] = dict(cast("dict[str, Any]", pool.connection_kwargs))
        # Each connection works for itself; and what waits, and for how long, is said by who uses it.
        for name in ("processing_budget", "stream_timeout", "max_idle_time", "noreply", "decode_responses"):
            self._options.pop(name, None)
        self.host: str | None = self._location.host if isinstance(self._location, TCPLocation) else None

    def make(self, address: tuple[str, int] | None = None) -> BaseConnection:
        """A connection, not yet open, to the place or to another address of the same kind."""
        if address is None:
            return self._class(self._location, **self._options)
        return TCPConnection(TCPLocation(*address), **self._options)


async def open_connection(nursery: trio.Nursery, connection: BaseConnection, timeout: float) -> None:  # noqa: ASYNC109
    """Run a connection in `nursery`, until it breaks or is invalidated.

    Args:
        nursery: outlives the connection.
        connection: of `Place.make`.
        timeout: seconds until it is ready.

    Raises:
        OSError: nobody is there, or answers in time.

    Cancelled: it is not open.
    """
    why = f"no answer within {timeout:g} s"
    cause: Exception | None = None
    with trio.move_on_after(timeout):
        try:
            await nursery.start(connection.run)
        except Exception as error:
            # Also where it was cancelled: coredis makes an error of that, which is looked at below.
            cause = error
            why = str(error.__cause__ or error)
        else:
            return
    await trio.lowlevel.checkpoint_if_cancelled()
    raise OSError(f"Redis at {connection.location} cannot be reached: {why}") from cause


@final
class _Line:
    """One connection at a time, opened by whoever needs it, for all. Each request is sent once."""

    __slots__ = ("_connection", "_error", "_nursery", "_opening", "_place", "_timeout")

    def __init__(self, place: Place, nursery: trio.Nursery, connect_timeout: float) -> None:
        self._place = place
        self._nursery = nursery
        self._timeout = connect_timeout
        self._connection: BaseConnection | None = None
        self._opening: trio.Event | None = None
        self._error: OSError | None = None

    async def evalsha(self, sha: str, keys: Sequence[str], words: Sequence[str | bytes]) -> Any:
        """Run a script that the server knows."""
        connection = await self._open()
        return await connection.create_request(b"EVALSHA", sha, len(keys), *keys, *words, decode=False)

    async def eval(self, text: str, keys: Sequence[str], words: Sequence[str | bytes]) -> Any:
        """Run a script that it shall know."""
        connection = await self._open()
        return await connection.create_request(b"EVAL", text, len(keys), *keys, *words, decode=False)

    def drop(self) -> None:
        """Throw the connection away. Whoever waits for it learns that it is lost."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection = None

    async def _open(self) -> BaseConnection:
        if self._opening is not None:
            # It began before this call, maybe while the server slept: if it fails, that does not count.
            await self._opening.wait()
        if (connection := self._usable()) is not None:
            return connection
        if self._opening is None:
            self._opening = trio.Event()
            self._nursery.start_soon(self._open_for_all, self._opening)
        await self._opening.wait()
        if (connection := self._usable()) is not None:
            return connection
        raise OSError(str(self._error or "the connection to Redis is lost")) from self._error

    def _usable(self) -> BaseConnection | None:
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def _open_for_all(self, opening: trio.Event) -> None:
        """No caller that gives up takes it from the others."""
        connection = self._place.make()
        self._connection = self._error = None
        try:
            await open_connection(self._nursery, connection, self._timeout)
            self._connection = connection
        except OSError as error:
            self._error = error
        finally:
            self._opening = None
            opening.set()


@final
class Script:
    """Runs one script.

    Args:
        server: where; open.
        package: where the text lies.
        file: the text's name there.

    Attributes:
        is_cluster: whether one call may only have keys of one slot.
    """

    __slots__ = ("_server", "_sha", "_text", "is_cluster")

    def __init__(self, server: RedisClient | _Line, package: str, file: str) -> None:
        self._server = server
        self._text = files(package).joinpath(file).read_text("utf-8")
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self.is_cluster: bool = isinstance(server, RedisCluster)

    async def run(self, keys: Sequence[str], words: Sequence[str | bytes]) -> Any:
        """Run it once, however long that takes.

        Raises:
            Exception: the server cannot be reached, or refused. What it was asked for is done or not, and nobody knows.

        Cancelled: the same. It goes on waiting for nothing.
        """
        try:
            return await self._server.evalsha(self._sha, keys, words)
        except NoScriptError:
            # A server that was restarted, or another node. It has not run; this runs it, and makes it known.
            return await self._server.eval(self._text, keys, words)

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
        """Let no later call stand in line behind one that was not answered; on a connection of our own, that is."""
        if isinstance(self._server, _Line):
            self._server.drop()


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
    use: str,
    twice: str,
) -> AsyncGenerator[Script]:
    """Connect to a URL, or use a client that is open. The server need not be there yet.

    Args:
        target: the URL, or the client.
        package: where the script lies.
        file: its name there.
        tls: see `Place`.
        connect_timeout: seconds; of a connection of our own.
        use: what the client is for, and
        twice: what would come of it if it asked twice: for the error.

    Raises:
        ConfigError: it is no URL, or neither; or the client would ask again by itself when an answer was lost.
    """
    if isinstance(target, str):
        place = Place(target, tls)
        async with as_raised(trio.open_nursery()) as nursery:
            line = _Line(place, nursery, connect_timeout)
            try:
                yield Script(line, package, file)
            finally:
                line.drop()
                nursery.cancel_scope.cancel()
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
        yield Script(target, package, file)


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
