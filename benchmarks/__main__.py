"""The command line: `python -m benchmarks [question …] [--peers …]`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks.machine import allow_many_files, describe
from benchmarks.questions import QUESTIONS, Question
from benchmarks.registry import SERVERS, Server
from benchmarks.runner import Result, ask


def _table(question: Question, results: list[Result], base: str) -> str:
    by_name = {result.server.name: result for result in results}
    against = by_name.get(base) or (results[0] if results else None)
    lines = [f"{question.title} ({question.unit})"]
    for result in sorted(results, key=lambda r: r.median):
        ratio = f"{result.median / against.median:8.2f}" if against and against.median else ""
        busy = result.detail().get("server_busy")
        share = f"   server {busy:4.0%}, generator {result.detail()['generator_busy']:4.0%}" if busy else ""
        lines.append(f"  {result.server.name:<22}{result.median:9.2f}  min {min(result.values):8.2f} {ratio}{share}")
    if against:
        lines.append(f"  (ratios to {against.server.name})")
    return "\n".join(lines)


def _choose_questions(names: list[str], *, quick: bool) -> list[Question]:
    if not names:
        return [question for question in QUESTIONS.values() if question.quick or not quick]
    chosen: set[str] = set()
    for name in names:
        found = {name} & set(QUESTIONS) or {known for known in QUESTIONS if known.startswith(name)}
        if not found:
            raise SystemExit(f"no question {name}; there are {', '.join(QUESTIONS)}")
        chosen |= found
    return [question for question in QUESTIONS.values() if question.name in chosen]


def _choose_servers(peers: str | None) -> list[Server]:
    if peers is None:
        return list(SERVERS.values())
    names = [name for name in peers.split(",") if name]
    if unknown := [name for name in names if name not in SERVERS]:
        raise SystemExit(f"no server {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    return [server for server in SERVERS.values() if server.ours or server.name in names]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="question", help="names or their beginnings; all if none given")
    parser.add_argument("--peers", help="names, with commas between; ours always take part; all if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of load, in each run")
    parser.add_argument("--base", default="wskit-native", help="the server that the ratios refer to")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    allow_many_files()
    machine = describe()
    results: list[Result] = []
    for question in _choose_questions(options.questions, quick=False):
        print(question.title, file=sys.stderr)
        found = ask(question, _choose_servers(options.peers), options.rounds, options.seconds)
        print(_table(question, found, options.base), flush=True)
        results += found
    if options.json:
        options.json.write_text(json.dumps([result.as_json(machine) for result in results], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
