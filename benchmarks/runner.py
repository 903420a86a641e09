"""Rounds: every server once in each, so that a noisy minute touches all alike; then medians and ratios."""

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

__all__ = ["Result", "ask"]


@dataclass(slots=True)
class Result:
    """All runs of one question on one server."""

    question: Question
    server: Server
    versions: dict[str, str]
    runs: list[Measured] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [run.value for run in self.runs]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def detail(self) -> dict[str, float]:
        """Medians of what was measured besides."""
        names = self.runs[0].detail
        return {name: round(statistics.median(run.detail[name] for run in self.runs), 3) for name in names}

    def as_json(self, machine: dict[str, str | int]) -> dict[str, object]:
        return {
            "question": self.question.name,
            "server": self.server.name,
            "cpu_us_per_message": round(self.median, 3) if self.question.is_cpu else None,
            "value": round(self.median, 3),
            "minimum": min(self.values),
            "unit": self.question.unit,
            "runs": self.values,
            "detail": self.detail(),
            "generator": generator.kind(),
            "machine": machine,
            "versions": self.versions,
        }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ask(question: Question, servers: Sequence[Server], rounds: int, seconds: float) -> list[Result]:
    """Ask one question of each server, several times over.

    A server that is not installed, or that fails, is left out from then on, with the reason printed.
    """
    taking_part: dict[str, Result] = {}
    for server in servers:
        if question.mode not in server.answers:
            continue
        try:
            server.command(question.mode, 0)
            taking_part[server.name] = Result(question, server, server.versions())
        except Unavailable as why:
            _say(f"  {server.name} is left out: {why}")
    for round_ in range(rounds):
        for name, result in list(taking_part.items()):
            try:
                result.runs.append(question.measure(result.server, seconds))
            except ServerFailed as why:
                _say(f"  {name} is left out: {why}")
                del taking_part[name]
            else:
                _say(f"  {round_ + 1}/{rounds} {name:<22} {result.runs[-1].value:8.2f} {question.unit}")
    return list(taking_part.values())
