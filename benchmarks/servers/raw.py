"""Raw echo through a transport: `serve` with sessions that know nothing but the seam of `trio_wskit.abc`."""

from __future__ import annotations

from typing import Any, final

import trio

from trio_wskit import App, ConnectionClosed, Router
from trio_wskit._core.frames import text_frame
from trio_wskit.abc import PushTransport, Transport

__all__ = ["RawEcho"]


@final
class _Echo:
    """What a transport that reads by itself feeds."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.ended = trio.Event()

    def feed(self, messages: list[bytes]) -> bool:
        try:
            # The clients of this measurement read all they get: nothing is left over.
            self._transport.write_nowait([text_frame(message) for message in messages])
        except ConnectionClosed:
            self.ended.set()
        return True

    def disconnected(self, code: int, reason: str) -> None:
        self.ended.set()


@final
class RawEcho:
    """An app in all but its sessions."""

    def __init__(self) -> None:
        self._app = App(Router())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def serve_session(self, transport: Transport, _admission: object) -> None:
        if isinstance(transport, PushTransport):
            echo = _Echo(transport)
            transport.attach(echo)
            await echo.ended.wait()
            return
        try:
            while True:
                left = transport.write_nowait([text_frame(message) for message in await transport.receive()])
                if left:
                    await transport.write(left)
        except ConnectionClosed:
            pass
