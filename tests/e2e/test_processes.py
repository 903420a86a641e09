"""The server as a program: signals, a port shared by two of them, and not a descriptor left."""

from __future__ import annotations

import signal
import socket
import subprocess
from functools import partial

import pytest
import trio

from tests.e2e.echo_server import running
from tests.serving import TRANSPORTS, Client, connect
from trio_wskit import Server

pytestmark = pytest.mark.e2e
on_both = pytest.mark.parametrize("transport", TRANSPORTS)


async def echoes(client: Client) -> bool:
    await client.send("SAY", {"text": "hello"})
    with trio.fail_after(20):
        return bool((await client.receive())["payload"] == {"text": "hello"})


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end, and tell the return code and what was printed since."""
    with trio.fail_after(20):
        output, errors = await trio.to_thread.run_sync(process.communicate)
    assert process.returncode is not None
    return process.returncode, output, errors


@on_both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_within_two_seconds_in_silence_and_everybody_is_told(
    transport: str, number: signal.Signals
) -> None:
    with running("--transport", transport) as (process, server):
        clients = [await connect(server) for _ in range(20)]
        await clients[0].send("WAIT", call="1")  # whose handler never returns
        assert (await clients[0].receive())["type"] == "$ws:rpc-progress"
        began = trio.current_time()
        process.send_signal(number)
        ends: list[int] = []

        async def hear(client: Client) -> None:
            ends.append((await client.end())[0])
            client.cut()

        async with trio.open_nursery() as nursery:
            for client in clients[0 if number == signal.SIGINT else 1 :]:
                nursery.start_soon(hear, client)
            if number == signal.SIGTERM:  # which lets calls end first; this one does not
                await clients[0].send("$ws:abort", call="1")
                assert (await clients[0].receive())["payload"]["code"] == "CANCELLED"
                nursery.start_soon(hear, clients[0])
        code, output, errors = await ended(process)
        assert trio.current_time() - began < 2
        assert ends == [1001] * 20
        assert (code, output, errors) == (0, "", "")


@on_both
async def test_ctrl_c_in_a_program_of_ones_own_tells_everybody_as_well(transport: str) -> None:
    with running("--transport", transport, "--bare") as (process, server):
        client = await connect(server)
        assert await echoes(client)
        process.send_signal(signal.SIGINT)
        assert (await client.end())[0] == 1001
        client.cut()
        code, _, errors = await ended(process)
        assert code != 0
        assert "KeyboardInterrupt" in errors
        assert "logger" not in errors


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system has no SO_REUSEPORT")
@on_both
async def test_two_processes_share_a_port_and_one_may_leave(transport: str) -> None:
    start = partial(running, "--transport", transport, "--reuse-port")
    with start() as (first, server), start("--port", str(server.port)) as (second, _):
        clients = [await connect(server) for _ in range(30)]
        for client in clients:
            assert await echoes(client)
        first.send_signal(signal.SIGINT)
        told: list[Client] = []
        async with trio.open_nursery() as nursery:

            async def hear(client: Client) -> None:
                assert (await client.end())[0] == 1001
                told.append(client)
                client.cut()

            for client in clients:
                nursery.start_soon(hear, client)
            assert (await ended(first))[0] == 0
            while len(told) < 1:  # noqa: ASYNC110 - the others are not told: nothing happens to them
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        others = [client for client in clients if client not in told]
        assert told
        assert others
        for client in [*others, *[await connect(server) for _ in range(10)]]:
            assert await echoes(client)
            client.cut()
        second.send_signal(signal.SIGINT)
        assert await ended(second) == (0, "", "")


@on_both
async def test_it_goes_on_when_no_descriptor_is_left(transport: str) -> None:
    with running("--transport", transport, "--descriptors", "40") as (process, server):
        first = await connect(server)
        crowd = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(60)]
        assert await echoes(first)  # who is in has no disadvantage
        for stream in crowd:
            await stream.aclose()
        with trio.fail_after(20):
            async with await _connect_in_the_end(server) as late:
                assert await echoes(late)
        assert await echoes(first)
        first.cut()
        process.send_signal(signal.SIGINT)
        code, _, errors = await ended(process)
        assert code == 0
        assert "Traceback" not in errors


async def _connect_in_the_end(server: Server) -> Client:
    while True:
        try:
            return await connect(server)
        except trio.BrokenResourceError:
            await trio.sleep(0.05)
