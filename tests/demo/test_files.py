"""What the demo's two files promise to their readers."""

from __future__ import annotations

import re
from pathlib import Path

import trio_wskit.demo

DEMO = Path(trio_wskit.demo.__file__).parent


def test_the_server_is_read_in_one_sitting() -> None:
    assert len((DEMO / "chat.py").read_text().splitlines()) <= 150


def test_the_server_uses_public_names_only() -> None:
    for line in (DEMO / "chat.py").read_text().splitlines():
        assert not re.search(r"(\bfrom|\bimport|\.)\s*_[a-z]", line) or "__future__" in line, line


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = (DEMO / "page.html").read_text()
    assert set(re.findall(r"https?://[^'\" >]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "default-src 'none'" in page


def test_the_page_never_makes_markup_of_text() -> None:
    page = (DEMO / "page.html").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "srcdoc"):
        assert way not in page
