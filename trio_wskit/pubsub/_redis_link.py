"""One link to one server, on coredis. See docs/explanation/decisions/0049-a-redis-link-breaks-once.md.

A link is a connection of coredis without its pool and without its `PubSub`. Those mend a broken connection in silence,
end an iteration without a word, and lose a place in the pool for each connection that breaks while it is lent; a link
breaks once, says so, and is thrown away. It is used for one thing: to publish, where each request has its answer
(`ask`), or to subscribe, where nothing is asked, and what comes back is pushes (`read`) and the rest, in order
(`fence`).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Final, TypeAlias, cast, final
from urllib.parse import urlsplit

import attrs
import trio

try:
    from coredis.connection import BaseConnection
    from coredis.exceptions import MovedError, RedisError
except ImportError as missing:
    raise ImportError("Redis pub/sub needs coredis: pip install 'trio-wskit[redis]'") from missing

from trio_wskit._coredis import Place, open_connection
from trio_wskit.errors import ConfigError, PubSubError

__all__ = ["Address", "Command", "Link", "RedisSentinel", "Refused", "Servers", "Slots", "lost"]

Address: TypeAlias = tuple[str, int]
Command: TypeAlias = tuple[bytes, tuple[str, ...]]


def lost(why: str) -> PubSubError:
    """The error for a link that is no more, or never was."""
    return PubSubError("ADAPTER_ERROR", why)


@final
class Refused(PubSubError):
    """The server answered with an error. The link is well.

    Attributes:
        moved: another node of the cluster is the one to ask.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__("ADAPTER_ERROR", f"Redis refused: {error}")
        self.moved: bool = isinstance(error, MovedError)


@final
class Link:
    """One connection. `Servers.connect` makes it; the task that runs it is in the nursery that was given there."""

    __slots__ = ("_connection", "_pushes", "_tokens", "place")

    def __init__(self, connection: BaseConnection) -> None:
        self._connection = connection
        self._tokens = count()
        self._pushes = 0
        self.place: Final = str(connection.location)

    @property
    def is_usable(self) -> bool:
        """False once it is broken or cut, for good."""
        return self._connection.usable

    def cut(self) -> None:
        """Drop the connection at once. Whoever waits for it learns that it is lost."""
        self._connection.invalidate()

    async def ask(self, command: bytes, *arguments: str | bytes) -> Any:
        """Send a command, once, and wait for its answer, as long as it takes.

        Raises:
            Refused: the server answered with an error.
            PubSubError: ADAPTER_ERROR: the link is lost; the command was carried out or not.

        Cancelled: the same; later answers still find their requests.
        """
        try:
            return await self._connection.create_request(command, *arguments, decode=False)
        except Exception as error:  # coredis lets some of anyio's through, and groups of them
            if self._connection.usable and isinstance(error, RedisError):
                raise Refused(error) from error
            raise lost(f"the link to Redis at {self.place} is lost: {error}") from error

    async def fence(self, commands: Sequence[Command], patience: float) -> list[Refused]:
        """Send commands that have no answers but pushes, and wait until the server has carried them all out.

        A ping with a number goes behind them, and what comes before its echo is errors. One task at a time. On a link
        on which this is used nothing else is asked: so the errors cannot be taken for another's answer.

        Returns:
            The errors, without saying whose they are.

        Raises:
            PubSubError: ADAPTER_ERROR: the link is lost, or nothing came for `patience` seconds: neither the echo nor
                a push, behind which it may be.

        Cancelled: the link is of no more use.
        """
        token = b"%d" % next(self._tokens)
        errors: list[Refused] = []
        try:
            for command, arguments in commands:
                self._connection.send_command(command, *arguments)
            self._connection.send_command(b"PING", token)
            pushes = -1
            while pushes != self._pushes:
                pushes = self._pushes
                with trio.move_on_after(patience):
                    async with aclosing(self._connection.streamed_messages) as answers:
                        async for answer in answers:
                            if isinstance(answer, Exception):
                                errors.append(Refused(answer))
                            elif answer == token:
                                return errors
        except RedisError as error:
            raise lost(f"the link to Redis at {self.place} is lost: {error}") from error
        raise lost(f"Redis at {self.place} has not answered within {patience:g} s")

    async def read(self, take: Callable[[list[Any]], None], pause: Callable[[], None]) -> None:
        """Give every push to `take` until the link is lost, or until `take` raises.

        Args:
            take: never waits.
            pause: called when nothing more has come just now, unless the answer to a `fence` waits to be read.

        Raises:
            PubSubError: ADAPTER_ERROR: the link is lost. It never just returns.
        """
        try:
            async with aclosing(self._connection.push_messages) as pushes:
                async for push in pushes:
                    self._pushes += 1
                    take(cast("list[Any]", push))
                    if self._connection.reusable:  # which is to say: coredis' buffers are empty
                        pause()
        except RedisError as error:
            raise lost(f"the link to Redis at {self.place} is lost: {error}") from error
        raise lost(f"the link to Redis at {self.place} has ended")


@final
@attrs.frozen(kw_only=True)
class RedisSentinel:
    """A primary that is found by asking sentinels, each time that a link is opened.

    Attributes:
        sentinels: their URLs, asked one after another, such as ``redis://sentinel-1:26379``.
        service: the name under which they watch it.
        url: how to connect to the primary: scheme, user, password and database count, host and port do not.
    """

    sentinels: Sequence[str]
    service: str
    url: str = "redis://primary"


Slots: TypeAlias = "Sequence[tuple[int, int, Address]]"


@final
class Servers:
    """Where to connect, and how.

    Args:
        target: one URL; several, which are tried in order; or sentinels.
        tls: for ``rediss://`` URLs; None means the system's certificates, and the host's name is checked.
        connect_timeout: seconds that one attempt to connect may take.

    Raises:
        ConfigError: a URL is none.
    """

    def __init__(
        self, target: str | Sequence[str] | RedisSentinel, tls: ssl.SSLContext | None, connect_timeout: float
    ) -> None:
        self._timeout = connect_timeout
        self._sentinels: list[Place] = []
        self._service = ""
        if isinstance(target, RedisSentinel):
            self._service = target.service
            self._sentinels = [
                Place(url, tls if urlsplit(url).scheme == "rediss" else None) for url in target.sentinels
            ]
            if not self._sentinels:
                raise ConfigError("RedisSentinel(sentinels=…) takes at least one URL")
            self._places = [Place(target.url, tls)]
            if self._places[0].host is None:
                raise ConfigError("RedisSentinel(url=…) takes a redis:// or rediss:// URL")
        else:
            urls = [target] if isinstance(target, str) else list(target)
            if not urls:
                raise ConfigError("at least one Redis URL is needed")
            self._places = [Place(url, tls) for url in urls]

    async def connect(self, nursery: trio.Nursery, address: Address | None = None) -> Link:
        """Open a link, which runs in `nursery` until it breaks or is cut.

        Args:
            nursery: outlives the link.
            address: of a node of the cluster; None for whichever server is there.

        Raises:
            PubSubError: ADAPTER_ERROR: nobody is there, or answers in time.

        Cancelled: there is no link.
        """
        if address is not None:
            return await self._open(nursery, self._places[0], address)
        if self._sentinels:
            link = await self._open(nursery, self._places[0], await self._ask_sentinels())
            try:
                with trio.fail_after(self._timeout):
                    role = await link.ask(b"ROLE")
                if role[0] == b"master":
                    return link
            except (PubSubError, trio.TooSlowError) as error:
                link.cut()
                raise lost(f"Redis at {link.place} does not tell its role: {error}") from error
            link.cut()
            raise lost(f"Redis at {link.place} is no primary any more")
        errors: list[PubSubError] = []
        for place in self._places:
            try:
                return await self._open(nursery, place, None)
            except PubSubError as error:
                errors.append(error)
        raise errors[-1]

    async def slots(self, link: Link) -> Slots | None:
        """Ask which node has which slots; None where there is no cluster.

        Raises:
            PubSubError: ADAPTER_ERROR: the link is lost, or does not answer in time.
        """
        try:
            with trio.fail_after(self._timeout):
                found: list[list[Any]] = await link.ask(b"CLUSTER SLOTS")
        except Refused:
            return None
        except trio.TooSlowError as error:
            raise lost(f"Redis at {link.place} does not tell its slots") from error
        here = link.place.rpartition(":")[0]
        return [
            (first, last, (primary[0].decode() if primary[0] else here, primary[1]))
            for first, last, primary, *_ in found
        ]

    async def _open(self, nursery: trio.Nursery, place: Place, address: Address | None) -> Link:
        connection = place.make(address)
        try:
            await open_connection(nursery, connection, self._timeout)
        except OSError as error:
            raise lost(str(error)) from error.__cause__
        return Link(connection)

    async def _ask_sentinels(self) -> Address:
        errors: list[PubSubError] = []
        for place in self._sentinels:
            found: list[bytes] | None = None
            async with trio.open_nursery() as nursery:
                try:
                    link = await self._open(nursery, place, None)
                    with trio.move_on_after(self._timeout):
                        found = await link.ask(b"SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)
                except PubSubError as error:
                    errors.append(error)
                nursery.cancel_scope.cancel()
            if found:
                return found[0].decode(), int(found[1])
        raise lost(f"no sentinel knows the primary of {self._service!r}") from (errors[-1] if errors else None)
