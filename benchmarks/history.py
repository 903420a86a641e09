"""Many clients that resume at once, and what everybody else notices of it.

    python -m benchmarks.history [--clients 10000] [--messages 100] [--rounds 3] [--json FILE]

An app has so many sessions, on links that take all that is written. They ask for what they missed as the native
transport would hand their messages on, up to 128 in a pass of the scheduler. A *pause* is the CPU time of a pass: for
so long no other task ran. The bar is 5 ms. It is told with what Python's garbage collector takes of a pass, and
without; and the collector's work by its generations. The third one walks through all that is alive, whoever made it.

Each run is a process of its own, in which the collector is as Python sets it, or as an application may set it:

- frozen: `gc.freeze()` when the app is open and nobody is connected;
- by hand: full collections only when the application asks for one, which it does not here.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio

from benchmarks.machine import describe
from trio_wskit import App, History, Limits, Position, Request, Router, Session, message, open_app
from trio_wskit.errors import ConnectionClosed

TOPIC = "room:1"
PER_PASS = 128
BAR = 0.005
COLLECTORS = ("as Python sets it", "frozen", "by hand")


@message("SAID")
class Said:
    text: str


class Drain:
    """A transport that takes everything, and says nothing."""

    def __init__(self) -> None:
        self.frames = 0
        self._closed = trio.Event()

    async def receive(self) -> list[bytes]:
        await self._closed.wait()
        raise ConnectionClosed(1000, "")

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        b"".join(frames)  # a real one copies them, too
        self.frames += len(frames)
        return ()

    async def write(self, frames: Sequence[bytes]) -> None:
        raise AssertionError("it takes everything at once")

    async def ping(self) -> None:
        await trio.sleep_forever()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self._closed.set()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        self._closed.set()


class Passes(trio.abc.Instrument):
    """How long each pass of the scheduler took, and how long the garbage collector in it."""

    def __init__(self) -> None:
        self.took: list[float] = []  # with the collector
        self.ours: list[float] = []  # without
        self.collected: defaultdict[int, list[float]] = defaultdict(list)  # by generation
        self._began: float | None = None
        self._collecting = 0.0
        self._collector = 0.0  # in this pass

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.thread_time()
        self._collector = 0.0

    def before_io_wait(self, timeout: float) -> None:
        if self._began is not None:
            took = time.thread_time() - self._began
            self.took.append(took)
            self.ours.append(took - self._collector)

    def collector(self, phase: str, info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            took = time.thread_time() - self._collecting
            self._collector += took
            self.collected[info["generation"]].append(took)


async def resume(session: Session, since: Position, messages: int) -> None:
    recovery = await session.topics.subscribe(TOPIC, since=since)
    assert recovery.recovered, recovery
    assert recovery.replayed == messages, recovery


def set_collector(how: str) -> None:
    gc.collect()
    if how == "frozen":
        gc.freeze()
    elif how == "by hand":
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, 10**6)


async def measure(clients: int, messages: int, collector: str) -> dict[str, Any]:
    app = App(Router(), limits=Limits(ping_interval=math.inf), history={"room:*": History(messages)})
    drains = [Drain() for _ in range(clients)]
    passes = Passes()
    async with open_app(app), trio.open_nursery() as nursery:
        set_collector(collector)
        for number, drain in enumerate(drains):
            nursery.start_soon(app.serve_session, drain, Request())
            if number % PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        while len(app.sessions) < clients:
            await trio.lowlevel.checkpoint()
        first = await app.publish(TOPIC, Said("0"))
        assert first.position is not None
        since = Position(first.position.epoch, 1)
        for number in range(messages):
            await app.publish(TOPIC, Said(f"{number:0100}"))
        sessions = app.sessions
        gc.collect()
        alive = len(gc.get_objects())
        await trio.sleep(0.1)
        trio.lowlevel.add_instrument(passes)
        gc.callbacks.append(passes.collector)
        began, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as resuming:
            for number, session in enumerate(sessions):
                resuming.start_soon(resume, session, since, messages)
                if number % PER_PASS == PER_PASS - 1:
                    await trio.lowlevel.checkpoint()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        trio.lowlevel.remove_instrument(passes)
        gc.callbacks.remove(passes.collector)
        await trio.sleep(0.1)
        assert sum(drain.frames for drain in drains) == clients * messages
        nursery.cancel_scope.cancel()
    pauses, ours = sorted(passes.took), sorted(passes.ours)
    return {
        "seconds": took,
        "cpu_us_per_resume": cpu / clients * 1e6,
        "passes": len(pauses),
        "pause_ms_median": pauses[len(pauses) // 2] * 1e3,
        "pause_ms_max": pauses[-1] * 1e3,
        "passes_over_bar": sum(pause > BAR for pause in pauses),
        "without_collector_ms_p999": ours[len(ours) * 999 // 1000] * 1e3,
        "without_collector_ms_max": ours[-1] * 1e3,
        "without_collector_over_bar": sum(pause > BAR for pause in ours),
        "objects_walked": alive,
        **{
            f"generation_{generation}": {"collections": len(some), "ms_max": max(some) * 1e3, "seconds": sum(some)}
            for generation, some in sorted(passes.collected.items())
        },
    }


def in_a_process(clients: int, messages: int, collector: str) -> dict[str, Any]:
    words = ["--clients", str(clients), "--messages", str(messages), "--one", collector]
    done = subprocess.run([sys.executable, "-m", "benchmarks.history", *words], capture_output=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def show(runs: Sequence[dict[str, Any]]) -> None:
    """Each figure's median, and its lowest and highest."""
    for name, first in runs[0].items():
        if isinstance(first, dict):
            for part in first:
                show_line(f"{name} {part}", [run.get(name, {}).get(part, 0) for run in runs])
        else:
            show_line(name, [run[name] for run in runs])


def show_line(name: str, values: Sequence[float]) -> None:
    median, least, most = statistics.median(values), min(values), max(values)
    print(f"    {name:28} {median:12,.2f}  ({least:,.2f} to {most:,.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--one", choices=COLLECTORS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(trio.run(measure, asked.clients, asked.messages, asked.one)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in COLLECTORS}
    load = [os.getloadavg()[0]]
    for _ in range(asked.rounds):
        for name in COLLECTORS:
            runs[name].append(in_a_process(asked.clients, asked.messages, name))
            load.append(os.getloadavg()[0])
    print(f"{asked.clients:,} clients resume {asked.messages} messages each; median of {asked.rounds}; load {load}")
    for name, some in runs.items():
        print(f"  the collector {name}")
        show(some)
    if asked.json is not None:
        told = {
            "machine": describe(),
            "packages": {name: version(name) for name in ("trio", "attrs", "orjson")},
            "load": load,
            "clients": asked.clients,
            "messages": asked.messages,
            "bar_ms": BAR * 1e3,
            "runs": runs,
        }
        asked.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
