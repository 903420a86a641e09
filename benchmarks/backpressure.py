"""Backpressure: what policies, the byte budget and one that does not read cost all others; memory of subscriptions.

    python -m benchmarks.backpressure [--quick] [--json FILE]

Everything is in one process, in CPU seconds of its one thread, and rounds are interleaved: each of them measures every
candidate once, in another order. So what else the machine does is in no ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import socket
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import trio

from trio_wskit import App, ByteBudget, Limits, Request, Router, message, open_app
from trio_wskit._core.overflow import Overflow, block, conflate
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._core.terms import Terms, TermsBook
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Outbox
from trio_wskit.abc import Transport
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.pubsub._hub import Hub
from trio_wskit.pubsub._topics import Topics
from trio_wskit.transports._socket_link import SocketTransport
from trio_wskit.transports.memory import memory_link

SMALL = b'{"type":"SAID","meta":{"timestamp":1795302433729},"payload":{"roomId":"r1","seq":1}}'
LARGE = b'{"type":"SAID","payload":"' + b"x" * 4000 + b'"}'
ENVELOPE = PublishEnvelope("t", "SAID")


class Takes:
    """A transport that takes everything, or nothing."""

    def __init__(self, room: bool = True) -> None:
        self.room = room

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        return () if self.room else frames


class Subscriber:
    __slots__ = ("outbox",)

    def __init__(self, transport: Any, flusher: Flusher) -> None:
        self.outbox = Outbox(cast("Transport", transport), Limits(), flusher, lambda: True, lambda _: None)

    def too_slow(self) -> None: ...

    def evicted(self, used: int, limit: float) -> None: ...


class Crowd:
    """Subscribers of the topic "t"."""

    def __init__(
        self, overflow: Overflow | Callable[[str], Overflow] = "disconnect", terms: Terms | None = None
    ) -> None:
        self.driver = MemoryPubSub()
        self.book = TermsBook()
        self.hub = Hub(self.driver, overflow, budget=ByteBudget(2**40), terms=self.book)
        self.flusher = Flusher()
        self.terms = terms
        self.subscribers: list[Subscriber] = []

    async def fill(self, count: int, make: Callable[[], Any]) -> Crowd:
        for n in range(count):
            subscriber = Subscriber(make(), self.flusher)
            self.subscribers.append(subscriber)
            self.hub.join(str(n), subscriber)
            await self.driver.subscribe(str(n), "t")
            if self.terms is not None:
                self.book.set(str(n), "t", self.terms)
        return self

    def flush(self) -> None:
        dirty: list[Outbox] = vars(self.flusher)["_dirty"]
        for outbox in dirty:
            outbox.flush()
        dirty.clear()

    async def publish(self, text: bytes) -> float:
        """CPU seconds until every outbox has been flushed."""
        start = time.thread_time()
        await self.hub.publish(ENVELOPE, text)
        self.flush()
        return time.thread_time() - start


async def interleaved(crowds: dict[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in crowds}
    names = list(crowds)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            found[name].append(await crowds[name]())
    return found


async def policies(rounds: int) -> dict[str, float]:
    """Fan-out to 1,000 who all read: the median of each round's ratio to the plain one."""
    candidates = {
        "plain": Crowd(),
        "a policy for each topic, by a function": Crowd(lambda _: "drop_oldest"),
        "conflate for all": Crowd(conflate(lambda m: m.payload["seq"])),
        "block for all": Crowd(block(1)),
        "every subscription its own policy and gap notices": Crowd(terms=Terms(conflate(), gaps=True)),
    }
    for crowd in candidates.values():
        await crowd.fill(1000, Takes)
    found = await interleaved({name: (lambda c=crowd: c.publish(SMALL)) for name, crowd in candidates.items()}, rounds)
    best = {name: min(times) for name, times in found.items()}
    print("\nfan-out to 1,000 who read, CPU ns a delivery, and beside the plain one (best of rounds, median of ratios)")
    ratios: dict[str, float] = {}
    for name, times in found.items():
        ratio = statistics.median(one / plain for one, plain in zip(times, found["plain"], strict=True))
        ratios[name] = round(best[name] / best["plain"], 3)
        print(f"  {name:<52} {best[name] * 1e6:7.0f}   {ratios[name]:5.2f} {ratio:5.2f}")
    return ratios


async def behind(rounds: int) -> dict[str, float]:
    """What one that is behind costs a publish, by policy, with a full queue of 1,024."""
    costs: dict[str, float] = {}
    print("\na subscriber whose queue of 1,024 is full, CPU µs a publish")
    for name, policy, gaps in (
        ("drop_newest", "drop_newest", False),
        ("drop_newest with gap notices", "drop_newest", True),
        ("drop_oldest", "drop_oldest", False),
        ("drop_oldest with gap notices", "drop_oldest", True),
        ("conflate, 100 keys", conflate(lambda m: m.payload["seq"]), False),
    ):
        crowd = await Crowd(cast("Overflow", policy), Terms(gaps=gaps)).fill(100, lambda: Takes(False))
        for n in range(1200):
            await crowd.publish(SMALL.replace(b'"seq":1', b'"seq":%d' % (n % 100)))
        times = [await crowd.publish(SMALL) for _ in range(rounds)]
        costs[name] = round(min(times) * 1e6 / 100, 2)
        print(f"  {name:<52} {costs[name]:7.2f}")
    return costs


async def stalled(rounds: int) -> dict[str, float]:
    """1,000 on real sockets, of whom one stalls or none: CPU until all others have it, p50 and p99 of the publishes."""
    ends: list[tuple[socket.socket, socket.socket]] = []

    def make() -> SocketTransport:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ends.append((ours, theirs))
        return SocketTransport(ours)

    found: dict[str, list[float]] = {}
    crowds: dict[str, Crowd] = {}
    readers: dict[str, list[socket.socket]] = {}
    for name in ("without", "with"):
        del ends[:]
        crowds[name] = await Crowd("drop_oldest", Terms(gaps=True)).fill(1000, make)
        readers[name] = [theirs for _, theirs in (ends if name == "without" else ends[1:])]

    async def once(name: str) -> float:
        seconds = await crowds[name].publish(LARGE)
        for reader in readers[name]:
            reader.recv(1 << 17)
        return seconds

    for name in crowds:
        for _ in range(300):  # its socket and its queue are full by then
            await once(name)
    found = await interleaved({name: (lambda n=name: once(n)) for name in crowds}, rounds)
    ratios: dict[str, float] = {}
    print("\nfan-out of 4 KB to 1,000 on sockets, CPU ms until all others have it: without, and with one that stalls")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        without, with_one = (sorted(found[one])[int(rounds * share)] for one in ("without", "with"))
        ratios[name] = round(with_one / without, 3)
        print(f"  {name} {without * 1000:6.2f} {with_one * 1000:6.2f}   {ratios[name]:.3f}")
    return ratios


async def passes(count: int, rounds: int) -> float:
    """A fan-out to many: the longest that another task does not run, in CPU milliseconds; the best of rounds."""
    crowd = await Crowd().fill(count, Takes)
    longest = 0.0

    async def other() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    worst: list[float] = []
    for _ in range(rounds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            longest = 0.0
            await crowd.hub.publish(ENVELOPE, SMALL)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        worst.append(longest * 1000)
        crowd.flush()
    print(f"\nfan-out to {count:,}: no task waits longer than {min(worst):.2f} ms of CPU (limit 5)")
    return round(min(worst), 3)


async def subscriptions(clients: int, each: int) -> dict[str, float]:
    """Bytes of each subscription, of so many clients to so many topics each, in a crowd of 1,000 topics."""
    found: dict[str, float] = {}
    print(f"\nmemory of {clients * each:,} subscriptions, {each} of each client, 1,000 topics in all")
    for name, gaps in (("without terms", False), ("with gaps=True", True)):
        driver = MemoryPubSub()
        topics = [Topics(f"0192f2c3-7b1e-7000-8000-{n:012d}", driver) for n in range(clients)]
        names = [f"room:{n:06d}" for n in range(1000)]
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for n, mine in enumerate(topics):
            for k in range(each):
                await mine.subscribe(names[(n * 7 + k) % 1000], gaps=gaps)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        found[name] = round(size / (clients * each), 1)
        print(f"  {name:<20} {size / 2**20:6.1f} MiB, {found[name]:.0f} bytes each")
    return found


@message("SAID")
class Said:
    text: str = ""


async def crowd_comes_and_goes(clients: int, each: int) -> dict[str, float]:
    """Connections in memory that subscribe, receive and leave, with nothing left."""
    driver = MemoryPubSub()
    app = App(Router(), pubsub=driver, limits=Limits(ping_interval=10**9))
    start = time.thread_time()
    async with open_app(app), trio.open_nursery() as nursery:
        peers = []
        for _ in range(clients):
            transport, peer = memory_link()
            peers.append(peer)
            nursery.start_soon(app.serve_session, transport, Request())
        while len(app.sessions) < clients:
            await trio.lowlevel.checkpoint()
        for n, session in enumerate(app.sessions):
            await session.topics.subscribe_many(f"room:{(n * 7 + k) % 1000}" for k in range(each))
        delivered = 0
        for room in range(1000):
            delivered += (await app.publish(f"room:{room}", Said(str(room)))).delivered
        assert delivered == clients * each, delivered
        heard = 0
        for peer in peers:
            for _ in range(each):
                await peer.receive()
                heard += 1
            peer.close()
        assert heard == delivered
        while app.sessions:
            await trio.lowlevel.checkpoint()
        left = len(driver.list_topics()) + app.budget.used
    seconds = time.thread_time() - start
    print(f"\n{clients:,} connections came to {each} topics each, heard {heard:,} messages, left: {seconds:.1f} s CPU")
    print(f"  left behind: {left}")
    assert left == 0
    return {"seconds": round(seconds, 2), "messages": heard, "left": left}


async def measure(quick: bool) -> dict[str, Any]:
    rounds = 100 if quick else 500
    return {
        "policies": await policies(rounds),
        "behind": await behind(rounds // 5),
        "stalled": await stalled(rounds * 2),
        "pass ms": {count: await passes(count, 5) for count in (10_000, 50_000)},
        "subscription bytes": await subscriptions(1000 if quick else 10_000, 10),
        "crowd": await crowd_comes_and_goes(1000 if quick else 10_000, 20),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backpressure", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller crowds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, trio {version('trio')}")
    figures = trio.run(measure, options.quick)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
