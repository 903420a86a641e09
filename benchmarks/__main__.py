"""The command line: `python -m benchmarks [question …] [--peers …]`."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType

from benchmarks import process, quick
from benchmarks.bars import judge
from benchmarks.flame import recording
from benchmarks.machine import allow_many_files, describe
from benchmarks.page import write_page
from benchmarks.plots import write_plots
from benchmarks.questions import QUESTIONS, Question
from benchmarks.registry import SERVERS, Server
from benchmarks.results import Entry, save, table
from benchmarks.runner import ask


def choose_questions(names: list[str], *, only_main: bool) -> list[Question]:
    if not names:
        return [question for question in QUESTIONS.values() if question.main or not only_main]
    chosen: set[str] = set()
    for name in names:
        found = {name} & set(QUESTIONS) or {known for known in QUESTIONS if known.startswith(name)}
        if not found:
            raise SystemExit(f"no question {name}; there are {', '.join(QUESTIONS)}")
        chosen |= found
    return [question for question in QUESTIONS.values() if question.name in chosen]


def choose_servers(peers: str | None, only: str | None) -> list[Server]:
    if only is None and peers is None:
        return list(SERVERS.values())
    names = [name for name in (only or peers or "").split(",") if name]
    if unknown := [name for name in names if name not in SERVERS]:
        raise SystemExit(f"no server {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    return [server for server in SERVERS.values() if server.name in names or (server.ours and only is None)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure trio-wskit beside its peers, on one core, on 127.0.0.1.",
        epilog=f"questions: {', '.join(QUESTIONS)}. servers: {', '.join(SERVERS)}.",
    )
    parser.add_argument("questions", nargs="*", metavar="question", help="names or their beginnings; none: all")
    parser.add_argument("--peers", help="names with commas between, ours always take part; not given: all; '': none")
    parser.add_argument("--only", help="names with commas between: these servers and no other")
    parser.add_argument("--rounds", type=int, help="how often each server is started and asked (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="of load, at most, in each run (1.5; quick: 0.6)")
    parser.add_argument("--base", default="wskit-native", help="the server that ratios refer to")
    parser.add_argument(
        "--quick", action="store_true", help="the main questions against one peer, and what has changed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw a chart (SVG) for each question")
    parser.add_argument(
        "--flame", type=Path, metavar="FILE", help="profile the server (for --only one in Python, and one question)"
    )
    parser.add_argument("--page", action="store_true", help="build the page of the docs from the committed results")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[Entry]:
    peers = (options.peers or quick.PEER) if options.quick else options.peers
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = options.seconds or (0.6 if options.quick else 1.5)
    servers, machine = choose_servers(peers, options.only), describe()
    entries: list[Entry] = []
    for question in choose_questions(options.questions, only_main=options.quick):
        print(question.title, file=sys.stderr)
        found = ask(question, servers, rounds, seconds, machine)
        if found:
            print(table(found, options.base), flush=True)
        entries += found
        if options.json:
            save(options.json, entries)
    if options.quick:
        print(quick.compare(entries, peers.split(",")[0]))
    return entries


def stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def main() -> int:
    options = arguments()
    if options.page:
        print(write_page())
        return 0
    signal.signal(signal.SIGTERM, stop)
    allow_many_files()
    if options.flame:
        process.watch = partial(recording, options.flame)
    entries = measure(options)
    if options.plots:
        write_plots(entries, options.plots)
    for verdict in judge(entries):
        print(verdict)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
