"""The bars: what we hold ourselves to, each a ratio within one run or a figure of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Entry

__all__ = ["BARS", "Bar", "Verdict", "judge"]

BUN = "wskit-bun"
WEBSOCKETS = "websockets-asyncio"
PICOWS = "picows-uvloop"
PLAIN = "trio-websocket-plain"
ON_TRIO_WEBSOCKET = "wskit-trio-websocket"
BEST_PYTHON = "the best Python peer"
PYTHON_PEERS = {
    PICOWS,
    WEBSOCKETS,
    PLAIN,
    "websockets-trio",
    "aiohttp-uvloop",
    "fastapi-uvicorn",
    "socketio-uvicorn",
}


@dataclass(frozen=True, slots=True)
class Bar:
    question: str
    at_most: float
    against: str | None
    """A server, or `BEST_PYTHON`; None if the bar is the figure itself."""
    against_question: str | None = None
    ours: str = "wskit-native"


@dataclass(frozen=True, slots=True)
class Verdict:
    bar: Bar
    figure: float

    @property
    def holds(self) -> bool:
        return self.figure <= self.bar.at_most

    def __str__(self) -> str:
        bar = self.bar
        what = f"of {bar.against}" if bar.against else "in itself"
        if bar.against_question:
            what += f" at {bar.against_question}"
        mark = "holds" if self.holds else "MISSED"
        return f"  {mark:<7}{bar.ours} at {bar.question}: {self.figure:.2f} {what} (at most {bar.at_most:g})"


BARS = (
    Bar("fanout-1000", 0.9, BUN),
    Bar("fanout-1000", 0.5, WEBSOCKETS),
    Bar("fanout-1000", 1.1, PICOWS),
    Bar("fanout-burst", 0.2, BUN),
    Bar("fanout-burst", 0.2, BEST_PYTHON),
    Bar("routed-echo-16", 0.35, BUN),
    Bar("routed-echo-16", 0.6, BEST_PYTHON),
    Bar("routed-echo-1", 1.0, BUN),
    Bar("routed-echo-1", 0.6, WEBSOCKETS),
    Bar("routed-echo-1", 1.6, PICOWS),
    Bar("raw-echo-1", 0.6, WEBSOCKETS),
    Bar("raw-echo-1", 0.2, PLAIN),
    Bar("idle-memory", 10.0, None),
    Bar("idle-memory", 1.0, WEBSOCKETS),
    Bar("stalled-tenth", 1.1, None),
    Bar("stalled-one", 1.1, None),
    Bar("routed-echo-1", 1.3, ON_TRIO_WEBSOCKET, "raw-echo-1", ours=ON_TRIO_WEBSOCKET),
    Bar("routed-echo-16", 1.3, ON_TRIO_WEBSOCKET, "raw-echo-16", ours=ON_TRIO_WEBSOCKET),
    Bar("fanout-1000", 0.25, PLAIN, ours=ON_TRIO_WEBSOCKET),
)


def judge(entries: Iterable[Entry]) -> list[Verdict]:
    """Every bar for which there are figures."""
    values = {(entry["question"], entry["server"]): entry["value"] for entry in entries if entry["value"] is not None}
    verdicts: list[Verdict] = []
    for bar in BARS:
        ours = values.get((bar.question, bar.ours))
        theirs: float | None = 1.0
        if bar.against == BEST_PYTHON:
            theirs = min(
                (v for (q, server), v in values.items() if q == bar.question and server in PYTHON_PEERS), default=None
            )
        elif bar.against:
            theirs = values.get((bar.against_question or bar.question, bar.against))
        if ours is not None and theirs:
            verdicts.append(Verdict(bar, round(ours / theirs, 3)))
    return verdicts
