"""Results as they are kept: a list of entries in JSON, and what can be read from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, cast

from benchmarks.install import HERE

__all__ = ["COMMITTED", "Entry", "by_question", "committed", "load", "save", "table"]

COMMITTED = HERE / "results"


class Entry(TypedDict):
    """One question, asked of one server."""

    question: str
    title: str
    server: str
    server_title: str
    cpu_us_per_message: float | None
    """The median, where the question is about CPU time; else null."""
    value: float | None
    """The median, whatever the unit is; null if the server failed."""
    minimum: float | None
    unit: str
    runs: list[float]
    detail: dict[str, float]
    """Medians of what was measured besides. server_busy and generator_busy are shares of a core."""
    failed: str | None
    generator: str
    machine: dict[str, str | int]
    versions: dict[str, str]


def save(path: Path, entries: list[Entry]) -> None:
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> list[Entry]:
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def committed(folder: Path = COMMITTED) -> list[Entry]:
    """All that is kept in the repository, file after file. Other benchmarks keep results of another form there."""
    found: list[Entry] = []
    for path in sorted(folder.glob("*.json")):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            found += cast("list[Entry]", content)
    return found


def by_question(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry["question"], []).append(entry)
    return grouped


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """The best first, those that failed last."""
    return sorted(entries, key=lambda entry: (entry["value"] is None, entry["value"] or 0.0))


def table(entries: list[Entry], base: str) -> str:
    """The entries of one question for a terminal, with ratios to one server's (or to the best one's)."""
    best_first = ordered(entries)
    reference = next((entry for entry in best_first if entry["server"] == base), best_first[0])
    lines = [f"{reference['title']} ({reference['unit']}; ratios to {reference['server']})"]
    for entry in best_first:
        value = entry["value"]
        if value is None:
            lines.append(f"  {entry['server']:<22}   failed: {entry['failed']}")
            continue
        ratio = f"{value / reference['value']:7.2f}" if reference["value"] else ""
        detail = entry["detail"]
        busy = ""
        if "server_busy" in detail:
            busy = f"   busy: server {detail['server_busy']:4.0%}, generator {detail['generator_busy']:4.0%}"
        lines.append(f"  {entry['server']:<22}{value:9.2f}  min {entry['minimum']:8.2f} {ratio}{busy}")
    return "\n".join(lines)
