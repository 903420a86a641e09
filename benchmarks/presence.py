"""What presence costs: 10,000 members join one topic within a second, and leave, with some who watch.

    python -m benchmarks.presence [--quick] [--without-redis] [--json FILE]

In virtual time and on links in memory, so that what is counted is the CPU time of this thread, and messages. The peer
is the same app without the debounce: one message for each who comes or goes. Rounds are interleaved; each figure is the
best one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from trio.testing import MockClock

from tests.valkey import Server
from trio_wskit import App, ConnectionClosed, Limits, PublishResult, Request, Router, open_app
from trio_wskit.presence import Presence, PresenceBeat, PresenceDiff, PresenceMember
from trio_wskit.presence.redis import open_redis_presence
from trio_wskit.transports.memory import MemoryPeer, memory_link

TOPIC = "room"


class Watchers:
    """Clients who want to know, and count what they are told."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0

    async def drain(self, peer: MemoryPeer) -> None:
        with suppress(ConnectionClosed):
            while True:
                received = await peer.receive()
                self.bytes += len(received)
                self.messages += 1


async def in_an_app(members: int, watchers: int, debounce: float | None) -> dict[str, float]:
    """Members come within a second and go within a second; without a debounce each is told at once."""
    presence = Presence(debounce=debounce or 0.5, linger=0, max_members=10 * members)
    app = App(Router(), presence=presence, limits=Limits(ping_interval=float("inf"), outbox_messages=100_000))
    heard = Watchers()
    async with open_app(app), trio.open_nursery() as nursery:
        for _ in range(watchers):
            transport, peer = memory_link(capacity=10**8)
            nursery.start_soon(app.serve_session, transport, Request())
            nursery.start_soon(heard.drain, peer)
        await trio.sleep(0.1)
        for session in app.sessions:
            await session.presence.watch(TOPIC)
        start = time.thread_time()
        for joining in (True, False):
            for number in range(members):
                if debounce is not None:
                    if joining:
                        presence.enter(f"c{number}", f"user-{number}", TOPIC, {"n": number})
                    else:
                        presence.gone(f"c{number}")
                else:
                    who = [PresenceMember(f"user-{number}", {"n": number})] if joining else []
                    gone = [] if joining else [f"user-{number}"]
                    diff = PresenceDiff(TOPIC, number, number + 1, number, who, gone)
                    await app.publish(presence.topic_of(TOPIC), diff)
                if number % 100 == 99:
                    await trio.sleep(100 / members)
            await trio.sleep(2)
        seconds = time.thread_time() - start
        nursery.cancel_scope.cancel()
    return {
        "cpu_us_a_change": seconds / members / 2 * 1e6,
        "messages_a_watcher": heard.messages / max(watchers, 1),
        "bytes_a_watcher": heard.bytes / max(watchers, 1),
    }


def server_cpu(server: Server) -> float:
    """Seconds of CPU that it has used."""
    lines = server.command("INFO", "cpu").decode().splitlines()
    return sum(float(line.split(":")[1]) for line in lines if line.startswith(("used_cpu_sys:", "used_cpu_user:")))


async def on_redis(server: Server, members: int) -> dict[str, float]:
    """The same through a server: beats, and who pays what."""
    calls = longest = 0.0
    async with open_redis_presence(server.url, max_wait=10) as store:
        changes = [(TOPIC, f"user-{number}", b'{"n":1}') for number in range(members)]
        ours, theirs, start = time.thread_time(), server_cpu(server), time.perf_counter()
        number = 0
        for joining in (True, False):
            for first in range(0, members, 1000):
                number += 1
                told = [(topic, who, state if joining else None) for topic, who, state in changes[first : first + 1000]]
                began = time.perf_counter()
                await store.beat(
                    PresenceBeat(node="bench", number=number, first=number == 1, changes=told, max_members=10**6)
                )
                longest = max(longest, time.perf_counter() - began)
                calls += 1
            if joining:
                began = time.perf_counter()
                await store.members(TOPIC)
                listing = time.perf_counter() - began
                began = time.perf_counter()
                await store.count(TOPIC)
                counting = time.perf_counter() - began
        return {
            "calls": calls,
            "seconds": time.perf_counter() - start,
            "cpu_us_a_change": (time.thread_time() - ours) / members / 2 * 1e6,
            "server_cpu_us_a_change": (server_cpu(server) - theirs) / members / 2 * 1e6,
            "longest_call_ms": longest * 1000,
            "list_ms": listing * 1000,
            "count_ms": counting * 1000,
        }


async def renewals(members: int) -> dict[str, float]:
    """What it costs that they stay: an hour of virtual time in which nothing happens."""

    class Nothing:
        def normalise(self, topic: str) -> str:
            return topic

        def check(self, topic: str) -> None:
            pass

    async def publish(_: str, __: PresenceDiff) -> PublishResult:
        await trio.lowlevel.checkpoint()
        return PublishResult(ok=True)

    presence = Presence(max_members=10 * members)
    async with trio.open_nursery() as nursery:
        await nursery.start(presence.run, Nothing(), publish, lambda *_: None)
        for number in range(members):
            presence.enter(f"c{number}", f"user-{number}", TOPIC, None)
        await trio.sleep(60)
        beats, start = presence.statistics().beats, time.thread_time()
        await trio.sleep(3600)
        seconds = time.thread_time() - start
        beats = presence.statistics().beats - beats
        nursery.cancel_scope.cancel()
    return {"beats_an_hour": beats, "cpu_us_a_beat": seconds / beats * 1e6}


def virtual(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    result: dict[str, float] = trio.run(function, *arguments, clock=MockClock(autojump_threshold=0))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer members, one round: does it run?")
    parser.add_argument("--without-redis", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    members, rounds = (500, 1) if options.quick else (10_000, 2)
    runs: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for watchers in (0, 10, 30):
                for name, debounce in (("joined by the debounce", 0.5), ("one message for each", None)):
                    figures = virtual(in_an_app, members, watchers, debounce)
                    runs.setdefault(f"{name}, {watchers} watch", []).append(figures)
            runs.setdefault("nothing happens", []).append(virtual(renewals, members))
            if not options.without_redis:
                with Server(Path(folder)) as server:
                    runs.setdefault("on Valkey", []).append(trio.run(on_redis, server, members))
    best = {name: {key: min(run[key] for run in some) for key in some[0]} for name, some in runs.items()}
    print(f"{members:,} members, Python {platform.python_version()}, best of {rounds}")
    for name, figures in best.items():
        print(f"  {name}")
        for key, value in figures.items():
            print(f"    {key:<24} {value:>12,.2f}")
    joined = best["joined by the debounce, 30 watch"]
    each = best["one message for each, 30 watch"]
    print(f"messages: {each['messages_a_watcher'] / joined['messages_a_watcher']:,.0f} times fewer")
    print(f"CPU: {each['cpu_us_a_change'] / joined['cpu_us_a_change']:.1f} times less")
    if options.json is not None:
        told = {"members": members, "rounds": rounds, "python": platform.python_version(), "best": best, "runs": runs}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
