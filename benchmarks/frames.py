"""What parsing frames costs, and what an idle parser holds: `python -m benchmarks.frames`, the table of ADR 0020."""

from __future__ import annotations

import gc
import timeit
import tracemalloc
from collections.abc import Callable
from unittest.mock import patch

from websockets.protocol import State
from websockets.server import ServerProtocol
from wsproto.connection import Connection, ConnectionType

from trio_wskit._core import frame_parser
from trio_wskit._core.frame_parser import FrameParser
from trio_wskit._core.frames import masked, text_frame
from trio_wskit._core.masking import apply_mask, apply_mask_by_integers

SMALL = masked(
    text_frame(b'{"type":"CHAT","meta":{"timestamp":1700000000000},"payload":{"roomId":"a","text":"hi"}}'), b"abcd"
)
LARGE = masked(text_frame(b"x" * 16384), b"abcd")

Feed = Callable[[bytes], object]
Make = Callable[[], Feed]


def ours() -> Feed:
    return FrameParser().feed


def of_websockets() -> Feed:
    protocol = ServerProtocol(state=State.OPEN)

    def feed(data: bytes) -> object:
        protocol.receive_data(data)
        return protocol.events_received()

    return feed


def of_wsproto() -> Feed:
    connection = Connection(ConnectionType.SERVER)

    def feed(data: bytes) -> object:
        connection.receive_data(data)
        return list(connection.events())

    return feed


def microseconds(feed: Feed, data: bytes, frames: int) -> float:
    """For each frame, in one short run."""
    number = max(1, 2000 // frames)
    return timeit.timeit(lambda: feed(data), number=number) / number / frames * 1e6


def idle_bytes(make: Make, count: int = 2000) -> float:
    """What one holds after it has seen a message."""
    make()(SMALL)
    gc.collect()
    tracemalloc.start()
    kept = [make() for _ in range(count)]
    for feed in kept:
        feed(SMALL)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / count


def main() -> None:
    """Print the table: the best of many rounds, in which all take turns, as the machine is not quiet."""
    makers = {"ours": ours, "ours, without C": ours, "websockets": of_websockets, "wsproto": of_wsproto}
    feeds = {name: make() for name, make in makers.items()}
    loads = {f"one frame of {len(SMALL)} B": (SMALL, 1), "16 in a read": (SMALL * 16, 16), "one of 16 KiB": (LARGE, 1)}
    best = {(name, load): float("inf") for name in makers for load in loads}
    for _ in range(30):
        for name, load in tuple(best):
            mask = apply_mask_by_integers if name.endswith("without C") else apply_mask
            with patch.object(frame_parser, "apply_mask", mask):
                best[name, load] = min(best[name, load], microseconds(feeds[name], *loads[load]))
    print(f"| parser | {' | '.join(loads)} | idle |")
    print("|---|---|---|---|---|")
    for name, make in makers.items():
        cells = " | ".join(f"{best[name, load]:.2f} µs" for load in loads)
        print(f"| {name} | {cells} | {idle_bytes(make):.0f} B |")


if __name__ == "__main__":
    main()
