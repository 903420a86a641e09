"""Whether a core module is covered by its own test file: `python tools/core_coverage.py codec`.

Runs tests/core/test_codec.py alone, and fails unless it passes and reaches every line and every branch of
trio_wskit/_core/codec.py. Tests of other modules do not count: what a module promises stands in one place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent


def main(module: str) -> int:
    """Return the exit code: 0 if all is covered."""
    tests = ROOT / "tests" / "core" / f"test_{module}.py"
    if not tests.exists():
        print(f"{tests.relative_to(ROOT)} does not exist")
        return 1
    measured = coverage.Coverage(data_file=None, branch=True)
    for option, value in {"source_pkgs": [], "patch": [], "include": [f"trio_wskit/_core/{module}.py"]}.items():
        measured.set_option(f"run:{option}", value)
    with measured.collect():
        code = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(tests)])
    percent = measured.report(show_missing=True)
    return int(code) or int(percent < 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
