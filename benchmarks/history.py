"""Many clients that resume at once, and what everybody else notices of it.

    python -m benchmarks.history [--clients 10000] [--messages 100] [--json FILE]

An app in this process has so many sessions, on links that take all that is written. They ask for what they missed as
the native transport would hand their messages on, up to 128 in a pass of the scheduler. A *pause* is the CPU time of a
pass: for so long no other task ran. The bar is 5 ms. Python's garbage collector makes pauses of its own, which grow
with all that is alive (here 10,000 tasks at once), whatever we do: they are taken out, and told apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from trio_wskit import App, History, Limits, Position, Request, Router, Session, message, open_app
from trio_wskit.errors import ConnectionClosed

TOPIC = "room:1"
PER_PASS = 128
BAR = 0.005


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
        self.took: list[float] = []
        self.collected: list[float] = []
        self._began: float | None = None
        self._collecting = 0.0
        self._collector = 0.0  # in this pass

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.thread_time()
        self._collector = 0.0

    def before_io_wait(self, timeout: float) -> None:
        if self._began is not None:
            self.took.append(time.thread_time() - self._began - self._collector)

    def collector(self, phase: str, info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            took = time.thread_time() - self._collecting
            self._collector += took
            self.collected.append(took)


async def resume(session: Session, since: Position, messages: int) -> None:
    recovery = await session.topics.subscribe(TOPIC, since=since)
    assert recovery.recovered, recovery
    assert recovery.replayed == messages, recovery


async def measure(clients: int, messages: int) -> dict[str, Any]:
    app = App(Router(), limits=Limits(ping_interval=math.inf), history={"room:*": History(messages)})
    drains = [Drain() for _ in range(clients)]
    passes = Passes()
    async with open_app(app), trio.open_nursery() as nursery:
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
    pauses = sorted(passes.took)
    return {
        "clients": clients,
        "messages": messages,
        "seconds": took,
        "cpu_us_per_resume": cpu / clients * 1e6,
        "passes": len(pauses),
        "pause_ms_median": pauses[len(pauses) // 2] * 1e3,
        "pause_ms_p999": pauses[len(pauses) * 999 // 1000] * 1e3,
        "pause_ms_max": pauses[-1] * 1e3,
        "passes_over_bar": sum(pause > BAR for pause in pauses),
        "collector_ms_max": max(passes.collected, default=0.0) * 1e3,
        "collector_seconds": sum(passes.collected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = trio.run(lambda: measure(asked.clients, asked.messages))
    for name, value in figures.items():
        print(f"{name:20} {value:,.3f}" if isinstance(value, float) else f"{name:20} {value:,}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
