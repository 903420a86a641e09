"""Whether each core module is covered by its own test file: `python tools/core_coverage.py [MODULE …]`.

For trio_wskit/_core/codec.py it runs tests/core/test_codec.py alone, which must pass and reach every line and every
branch of that module. Tests of other modules do not count: what a module promises stands in one place.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "trio_wskit" / "_core"
AT_ONCE = 2
# Most of a short test run is the time that these take to load; so that is done once, before the forks.
LOADED_BEFORE = ("hypothesis.strategies", "trio.testing")


def measure(module: str) -> int:
    """Run the tests of one module, and return an exit code: 0 if they pass and reach all of it."""
    tests = ROOT / "tests" / "core" / f"test_{module}.py"
    if not tests.exists():
        print(f"{tests.relative_to(ROOT)} does not exist")
        return 1
    measured = coverage.Coverage(data_file=None, branch=True)
    for option, value in {"source_pkgs": [], "patch": [], "include": [str(CORE / f"{module}.py")]}.items():
        measured.set_option(f"run:{option}", value)
    ignore = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # it is about LOADED_BEFORE
    with measured.collect():
        code = pytest.main(["-q", "--no-header", *ignore, str(tests)])
    return int(code) or int(measured.report(show_missing=True) < 100)


def main(modules: list[str]) -> int:
    """Measure each module in a process of its own, and print what those have to say that fail."""
    for name in LOADED_BEFORE:
        import_module(name)
    failed = False
    running: dict[int, tuple[str, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while modules or running:
            while modules and len(running) < AT_ONCE:
                module = modules.pop(0)
                said = Path(folder, module)
                if not (pid := os.fork()):
                    with said.open("w") as file:
                        os.dup2(file.fileno(), 1)
                        os.dup2(file.fileno(), 2)
                        code = measure(module)
                        sys.stdout.flush()
                    os._exit(code)
                running[pid] = (module, said)
            pid, status = os.wait()
            module, said = running.pop(pid)
            if status:
                failed = True
                print(f"_core/{module}.py\n{said.read_text()}")
    return int(failed)


if __name__ == "__main__":
    every = sorted(path.stem for path in CORE.glob("*.py") if path.stat().st_size)
    sys.exit(main(sys.argv[1:] or every))
