"""Rounds: every server once in each, so that a noisy minute touches all alike; then medians."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import generator
from benchmarks.install import Unavailable
from benchmarks.process import ServerFailed
from benchmarks.questions import Measured, Question
from benchmarks.registry import Server
from benchmarks.results import Entry

__all__ = ["ask"]


@dataclass(slots=True)
class _Part:
    """One server's part in one question."""

    server: Server
    versions: dict[str, str]
    runs: list[Measured] = field(default_factory=list[Measured])
    failed: str | None = None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _entry(question: Question, part: _Part, machine: dict[str, str | int]) -> Entry:
    values = [run.value for run in part.runs]
    median = round(statistics.median(values), 3) if values and not part.failed else None
    names = part.runs[0].detail if part.runs else ()
    return Entry(
        question=question.name,
        title=question.title,
        server=part.server.name,
        server_title=part.server.title,
        cpu_us_per_message=median if question.is_cpu else None,
        value=median,
        minimum=min(values, default=None),
        unit=question.unit,
        runs=values,
        detail={name: round(statistics.median(run.detail[name] for run in part.runs), 3) for name in names},
        failed=part.failed,
        generator=generator.kind(),
        machine=machine,
        versions=part.versions,
    )


def ask(
    question: Question, servers: Sequence[Server], rounds: int, seconds: float, machine: dict[str, str | int]
) -> list[Entry]:
    """Ask one question of each server, several times over.

    A server that is not installed is left out, with the reason printed; one that fails is not asked again.
    """
    parts: list[_Part] = []
    for server in servers:
        if question.mode not in server.answers:
            continue
        try:
            server.command(question.mode, 0)
            parts.append(_Part(server, server.versions()))
        except Unavailable as why:
            _say(f"  {server.name} is left out: {why}")
    for round_ in range(rounds):
        first = round_ % len(parts) if parts else 0
        for part in parts[first:] + parts[:first]:
            if part.failed:
                continue
            try:
                run = question.measure(part.server, seconds)
            except ServerFailed as why:
                _say(f"  {part.server.name} failed: {why}")
                part.failed = str(why).splitlines()[0]
            else:
                part.runs.append(run)
                _say(f"  {round_ + 1}/{rounds} {part.server.name:<22} {run.value:8.2f} {question.unit}")
    return [_entry(question, part, machine) for part in parts]
