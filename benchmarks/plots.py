"""A bar chart as SVG, without a library: one question, a bar for each server, light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

from benchmarks.results import Entry, by_question, ordered

__all__ = ["bar_chart", "write_plots"]

WIDTH, LABEL, VALUE, ROW, BAR, TOP = 760, 236, 78, 28, 16, 64
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .unit, .value { fill: #57606a }
  .bar { fill: #9fb3c8 }
  .ours { fill: #2f6f4f }
  .name-ours { font-weight: 600 }
  .range { stroke: #24292f; stroke-opacity: .55; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .unit, .value { fill: #9da7b1 }
    .bar { fill: #4a5a6b }
    .ours { fill: #5bb98c }
    .range { stroke: #e6edf3 }
  }
"""


def _row(entry: Entry, y: int, scale: float) -> list[str]:
    ours = entry["server"].startswith("wskit-") and entry["server"] != "wskit-bun"
    middle = y + ROW / 2
    css = "name-ours" if ours else "name"
    label = f'<text x="{LABEL - 10}" y="{middle + 4:g}" text-anchor="end" class="{css}">'
    parts = [f"{label}{escape(entry['server_title'])}</text>"]
    value = entry["value"]
    if value is None:
        return [
            *parts,
            f'<text x="{LABEL}" y="{middle + 4:g}" class="value">{escape((entry["failed"] or "failed")[:60])}</text>',
        ]
    low, high = min(entry["runs"]) * scale, max(entry["runs"]) * scale
    end = max(value * scale, high)
    parts.append(
        f'<rect x="{LABEL}" y="{middle - BAR / 2:g}" width="{max(value * scale, 1):.1f}" height="{BAR}" rx="2" '
        f'class="{"ours" if ours else "bar"}"/>'
    )
    if high - low > 1:
        parts.append(
            f'<line x1="{LABEL + low:.1f}" x2="{LABEL + high:.1f}" y1="{middle:g}" y2="{middle:g}" class="range"/>'
        )
    digits = 2 if value < 10 else 1 if value < 100 else 0
    parts.append(f'<text x="{LABEL + end + 8:.1f}" y="{middle + 4:g}" class="value">{value:,.{digits}f}</text>')
    return parts


def bar_chart(entries: list[Entry]) -> str:
    """The entries of one question, the best first; the line in a bar goes from the lowest run to the highest."""
    best_first = ordered(entries)
    most = max((max(entry["runs"]) for entry in best_first if entry["value"] is not None), default=1.0)
    scale = (WIDTH - LABEL - VALUE) / (most or 1.0)
    height = TOP + ROW * len(best_first) + 12
    title, unit = escape(best_first[0]["title"]), escape(best_first[0]["unit"])
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">'
        ),
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        f'<text x="16" y="26" class="title">{title}</text>',
        f'<text x="16" y="46" class="unit">{unit}, lower is better (median; the line: lowest to highest run)</text>',
    ]
    for index, entry in enumerate(best_first):
        lines += _row(entry, TOP + ROW * index, scale)
    return "\n".join([*lines, "</svg>", ""])


def write_plots(entries: list[Entry], folder: Path) -> list[Path]:
    """Write a chart for each question into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for question, answers in by_question(entries).items():
        path = folder / f"{question}.svg"
        path.write_text(bar_chart(answers), encoding="utf-8")
        written.append(path)
    return written
