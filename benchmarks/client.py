"""Our client beside what people write by hand: requests a second, and CPU for each, on one core.

    python -m benchmarks.client [--quick] [--json FILE]

Every client asks the same server (ours, on another core) for the same users, validates what comes, and has a time limit
for each request; with one request at a time, and with 32. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.install import HERE, Unavailable, bun, npm_versions, own_version, package_versions, peer_python
from benchmarks.machine import cores, describe
from benchmarks.process import child, free_port, wait_until_it_listens

WINDOWS = (1, 32)


@dataclass
class Candidate:
    """A client, and what was measured of it: for each window, requests a second and CPU seconds for each."""

    name: str
    title: str
    command: Callable[[], list[str]]
    rates: dict[int, list[float]] = field(default_factory=lambda: {window: [] for window in WINDOWS})
    cpu: dict[int, list[float]] = field(default_factory=lambda: {window: [] for window in WINDOWS})


CANDIDATES = [
    Candidate("trio-wskit", "trio-wskit", lambda: [sys.executable, "-m", "benchmarks.clients.trio_wskit_client"]),
    Candidate(
        "websockets-trio",
        "websockets.trio, msgspec, by hand",
        lambda: [str(peer_python()), "-m", "benchmarks.clients.websockets_trio_client"],
    ),
    Candidate(
        "websockets-asyncio",
        "websockets.asyncio, uvloop, msgspec, by hand",
        lambda: [str(peer_python()), "-m", "benchmarks.clients.websockets_asyncio_client"],
    ),
    Candidate("bun", "Bun's WebSocket, zod, by hand", lambda: [str(bun()), str(HERE / "peers" / "client_bun.mjs")]),
]


def measure(candidate: Candidate, command: list[str], port: int, window: int, seconds: float) -> None:
    """Run a client once."""
    _, core = cores()
    with child([*command, str(port), str(window), str(seconds)], core, subprocess.PIPE, subprocess.PIPE) as process:
        said, wrong = process.communicate(timeout=seconds * 4 + 30)
    if process.returncode:
        raise SystemExit(f"{candidate.name}: {wrong[-2000:]}")
    found = json.loads(said)
    candidate.rates[window].append(found["requests"] / found["wall"])
    candidate.cpu[window].append(found["cpu"] / found["requests"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    rounds, seconds = (3, 1.0) if options.quick else (7, 3.0)
    commands: dict[str, list[str]] = {}
    for candidate in CANDIDATES:
        try:
            commands[candidate.name] = candidate.command()
        except Unavailable as error:
            print(f"{candidate.name} is left out: {error}", file=sys.stderr)
    port = free_port()
    server_core, _ = cores()
    server = [sys.executable, "-m", "benchmarks.clients.server", str(port)]
    with child(server, server_core, subprocess.DEVNULL, subprocess.DEVNULL) as process:
        os.sched_setaffinity(0, {server_core})
        wait_until_it_listens(process, port)
        for _ in range(rounds):
            for window in WINDOWS:
                for candidate in CANDIDATES:
                    if candidate.name in commands:
                        measure(candidate, commands[candidate.name], port, window, seconds)
    results = report([one for one in CANDIDATES if one.name in commands])
    if options.json:
        versions = {
            "trio-wskit": own_version(),
            **package_versions(peer_python(), ("trio", "uvloop", "websockets", "msgspec")),
            **npm_versions(("bun", "zod")),
        }
        options.json.write_text(json.dumps({"machine": describe(), "versions": versions, **results}, indent=2) + "\n")


def report(candidates: list[Candidate]) -> dict[str, object]:
    """Print the table, and give what is kept."""
    kept: dict[str, object] = {}
    for window in WINDOWS:
        print(f"\n{window} at a time{'':<34} requests/s   CPU µs each   lowest")
        ours = statistics.median(candidates[0].cpu[window])
        for one in candidates:
            cpu = statistics.median(one.cpu[window])
            print(
                f"{one.title:<46} {statistics.median(one.rates[window]):>10,.0f} {cpu * 1e6:>13.1f} "
                f"{min(one.cpu[window]) * 1e6:>8.1f}   {cpu / ours:.2f}"
            )
        kept[f"window-{window}"] = {
            one.name: {"title": one.title, "requests_a_second": one.rates[window], "cpu_seconds": one.cpu[window]}
            for one in candidates
        }
    return kept


if __name__ == "__main__":
    main()
