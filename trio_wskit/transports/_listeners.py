"""Sockets that listen: opened before anybody is served, closed before anybody is told goodbye."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import trio

from trio_wskit.errors import ConfigError

__all__ = ["Listeners", "open_listeners"]


@final
class Listeners:
    """What one `serve` listens on; leaving the ``with`` block closes it.

    Args:
        sockets: listening.
        unix_path: the file that belongs to a unix socket; it goes when the socket does.
    """

    def __init__(self, sockets: Sequence[trio.SocketListener], unix_path: Path | None = None) -> None:
        self.sockets = sockets
        self._unix_path = unix_path
        self._unix_file = _identity(unix_path) if unix_path is not None else None

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more. Again does nothing."""
        for one in self.sockets:
            one.socket.close()
        path, self._unix_path = self._unix_path, None
        if path is not None and _identity(path) == self._unix_file:  # a process that took over has another one there
            path.unlink(missing_ok=True)

    def urls(self, *, secure: bool) -> list[str]:
        """One for each socket: ``ws://127.0.0.1:8000``, or ``unix:/run/app.sock``."""
        if self._unix_path is not None:
            return [f"unix:{self._unix_path}"]
        scheme = "wss" if secure else "ws"
        names = [one.socket.getsockname() for one in self.sockets]
        return [
            f"{scheme}://[{name[0]}]:{name[1]}" if ":" in name[0] else f"{scheme}://{name[0]}:{name[1]}"
            for name in names
        ]

    @property
    def port(self) -> int:
        """The first TCP port; 0 without one."""
        return 0 if self._unix_path is not None else self.sockets[0].socket.getsockname()[1]


async def open_listeners(host: str | None, port: int, unix_path: str | None, *, reuse_port: bool) -> Listeners:
    """Listen; the arguments are those of `serve`.

    Raises:
        ConfigError: an argument is wrong, or two exclude one another.
        OSError: the address cannot be listened on.
    """
    if unix_path is not None:
        if host is not None or port or reuse_port:
            raise ConfigError("give a unix_path, or a host and a port")
        path = Path(unix_path)
        _remove_stale(path)
        return Listeners([_listen(socket.AF_UNIX, unix_path, reuse_port=False)], path)
    if not 0 <= port <= 65535:
        raise ConfigError(f"port takes 0 to 65535, not {port!r}")
    if not reuse_port:
        return Listeners(await trio.open_tcp_listeners(port, host=host))
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("this system has no SO_REUSEPORT")
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[trio.SocketListener] = []
    try:
        for family, _, _, _, address in found:
            sockets.append(_listen(family, address, reuse_port=True))
    except OSError:
        Listeners(sockets).close()
        raise
    return Listeners(sockets)


def _listen(family: int, address: Any, *, reuse_port: bool) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(1024)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that is no more. Anything else in its place is left, and an error of bind."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # somebody listens, but has no time; or it is not ours to look at
