"""`--quick`: has a change made us slower? The main questions, one peer, and the ratios beside the committed ones."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.results import Entry, committed

__all__ = ["PEER", "compare"]

PEER = "websockets-asyncio"
"""Quick to install, runs everywhere, and changes seldom."""

TOLERANCE = 0.15
"""Of a ratio: less is noise, in rounds as short as these."""


def _ratios(entries: Iterable[Entry], peer: str) -> dict[tuple[str, str], float]:
    values = {(entry["question"], entry["server"]): entry["value"] for entry in entries}
    return {
        (question, server): value / theirs
        for (question, server), value in values.items()
        if server != peer and value and (theirs := values.get((question, peer)))
    }


def compare(entries: list[Entry], peer: str, kept: list[Entry] | None = None) -> str:
    """Our ratios to the peer now and in the committed results (or in `kept`), line by line."""
    before, now = _ratios(committed() if kept is None else kept, peer), _ratios(entries, peer)
    lines = [f"ratios to {peer}: committed, now (lower is better)"]
    for (question, server), ratio in now.items():
        old = before.get((question, server))
        verdict = "nothing committed to compare with"
        if old is not None:
            change = ratio / old - 1
            verdict = "same" if abs(change) <= TOLERANCE else f"{'SLOWER' if change > 0 else 'faster'} {change:+.0%}"
        lines.append(f"  {question:<16}{server:<22}{old or float('nan'):6.2f} {ratio:6.2f}  {verdict}")
    return "\n".join(lines)
