"""An echo client on the native transport, run against Autobahn's fuzzing server: `echo_client.py PORT AGENT`."""

from __future__ import annotations

import os
import sys
from urllib.parse import quote

import trio

from tests.autobahn.echo_server import MAX_MESSAGE_BYTES, answers
from trio_wskit._core.upgrade import UpgradeRequest
from trio_wskit.abc import Transport
from trio_wskit.errors import ConnectionClosed, RemoteProtocolError
from trio_wskit.transports.native import connect_native


async def connect(port: int, target: str) -> Transport:
    """Open one connection, offering compression."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    request = UpgradeRequest(host=f"127.0.0.1:{port}", target=target, nonce=os.urandom(16), deflate=True)
    transport, _ = await connect_native(stream, request, max_message_bytes=MAX_MESSAGE_BYTES)
    return transport


async def echo(link: Transport) -> None:
    """Send back whatever comes until the server closes."""
    try:
        while True:
            frames = answers(await link.receive())
            if left := link.write_nowait(frames):
                await link.write(left)
    except ConnectionClosed:
        pass
    with trio.move_on_after(5):
        await link.aclose()


async def main(port: int, agent: str) -> None:
    """Ask how many cases there are, go through them, have the report written."""
    link = await connect(port, "/getCaseCount")
    (count,) = await link.receive()
    await link.aclose()
    for case in range(1, int(count) + 1):
        try:
            await echo(await connect(port, f"/runCase?case={case}&agent={quote(agent)}"))
        except RemoteProtocolError as refused:
            sys.stderr.write(f"case {case}: {refused}\n")
    link = await connect(port, f"/updateReports?agent={quote(agent)}")
    await link.aclose()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])
