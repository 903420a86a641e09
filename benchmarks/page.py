"""The page of the docs, built from the results that are committed: `python -m benchmarks --page`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bars import judge
from benchmarks.install import HERE
from benchmarks.plots import write_plots
from benchmarks.results import Entry, by_question, committed, ordered

__all__ = ["write_page"]

REFERENCE = HERE.parent / "docs" / "reference"

HEAD = """# Benchmarks

<!-- Written by `python -m benchmarks --page` from benchmarks/results/. Change those, not this. -->

How much of a server's core one message costs, here and elsewhere. Every server does the same work (it is described in
`benchmarks/work.py`, and the programs are in `benchmarks/servers/` and `benchmarks/peers/`), validates what comes in by
the means usual for it, and runs alone on one core. How to run them: [how to measure](../howto/benchmarks.md).

Read ratios, not figures: they come from rounds in which all servers took turns on one machine, and another machine
has other figures. A bar is the median of the runs. CPU time is user and system time of the whole server process.
"""

GENERATOR = """## The load, and why it is not the bottleneck

The load comes from `benchmarks/load.c`: one thread, epoll, frames made once, answers counted from their headers. It has
the other core to itself. For each message it makes the same two system calls as any server, and does next to nothing
besides; the table says how busy both were. Where the generator is idle for a good part of the time, it was waiting for
the server. Where neither is near 100 %, they wait for each other in turns (one message in flight for each connection),
and the server's CPU time includes going to sleep and waking up, as it does in life.

| question | server | server busy | generator busy |
|---|---|---|---|
"""


def _number(value: float) -> str:
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _section(question: str, entries: list[Entry]) -> list[str]:
    best_first = ordered(entries)
    ours = next((entry["value"] for entry in best_first if entry["server"] == "wskit-native"), None)
    lines = [f"## {best_first[0]['title']}", "", f"![{best_first[0]['title']}](benchmarks/{question}.svg)", ""]
    lines += [f"| server | {best_first[0]['unit']} | lowest run | ratio to ours |", "|---|---|---|---|"]
    for entry in best_first:
        value, lowest = entry["value"], entry["minimum"]
        if value is None or lowest is None:
            lines.append(f"| {entry['server_title']} | failed: {entry['failed']} | | |")
            continue
        ratio = f"{value / ours:.2f}" if ours else ""
        lines.append(f"| {entry['server_title']} | {_number(value)} | {_number(lowest)} | {ratio} |")
    return [*lines, ""]


def _machine(entries: list[Entry]) -> list[str]:
    lines = ["## Where, and with what", ""]
    machines = {tuple(entry["machine"].items()): None for entry in entries}
    lines += ["- " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine) for machine in machines]
    lines += ["", "| server | versions |", "|---|---|"]
    versions = {entry["server_title"]: entry["versions"] for entry in entries}
    lines += [f"| {title} | {', '.join(f'{n} {v}' for n, v in found.items())} |" for title, found in versions.items()]
    return [*lines, ""]


def write_page(folder: Path = REFERENCE, entries: list[Entry] | None = None) -> Path:
    """Write benchmarks.md and its charts into a folder of the docs, from the committed results or from others."""
    entries = committed() if entries is None else entries
    lines = [HEAD]
    if not entries:
        lines.append("No results are committed yet.")
        return _write(folder, lines)
    if verdicts := judge(entries):
        lines += [
            "## The bars we set ourselves",
            "",
            "| ours | question | against | ratio | at most | |",
            "|---|---|---|---|---|---|",
        ]
        for verdict in verdicts:
            bar = verdict.bar
            against = bar.against or "the figure itself"
            if bar.against_question:
                against += f" at {bar.against_question}"
            holds = "holds" if verdict.holds else "**missed**"
            lines.append(
                f"| {bar.ours} | {bar.question} | {against} | {verdict.figure:.2f} | {bar.at_most:g} | {holds} |"
            )
        lines.append("")
    for question, answers in by_question(entries).items():
        lines += _section(question, answers)
    shares = [(entry, entry["detail"]) for entry in entries if "server_busy" in entry["detail"]]
    busy = [
        f"| {entry['question']} | {entry['server']} | {share['server_busy']:.0%} | {share['generator_busy']:.0%} |"
        for entry, share in shares
    ]
    lines += [GENERATOR + "\n".join(busy), "", *_machine(entries)]
    write_plots(entries, folder / "benchmarks")
    return _write(folder, lines)


def _write(folder: Path, lines: list[str]) -> Path:
    page = folder / "benchmarks.md"
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page
