"""Every check of the project, as `make test` runs them; `--static` stops before the tests.

First the static checks, and the coverage of each core module by its own test file, two at a time. Then the whole test
run by itself, because some tests keep real time. Then the bar on the package's coverage. A check that fails does not
stop those after it: one run tells everything that is wrong.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import coverage
import trio
from coverage.exceptions import NoDataError

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "trio_wskit"
LINES_AT_LEAST: Final = 95.0  # per cent of the package's lines

PYTHON: Final = (sys.executable, "-m")
# --verifytypes reads no configuration: it asks the first `python` on PATH where modules are, and that one's .pth files,
# which an editable installation needs, it does not follow.
VERIFY: Final = (
    *("env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", f"PYTHONPATH={ROOT}"),
    *(*PYTHON, "basedpyright", "--verifytypes", PACKAGE.name, "--ignoreexternal"),
)
STATIC: Final[Mapping[str, Sequence[str]]] = {
    "format": (*PYTHON, "ruff", "format", "--check", "--output-format", "concise"),
    "lint": (*PYTHON, "ruff", "check", "--output-format", "concise"),
    "layers": (str(Path(sys.prefix, "bin", "lint-imports")), "--no-logo"),
    "types: mypy": (*PYTHON, "mypy"),
    "types: pyright": (*PYTHON, "basedpyright"),
    "types: public interface": VERIFY,
    "coverage: each core module by its own tests": (sys.executable, "tools/core_coverage.py"),
}


async def run_check(name: str, command: Sequence[str], *, limiter: trio.CapacityLimiter, failed: list[str]) -> None:
    """Run one check without a terminal: a line when it is well, all that it said when it is not."""

    async def kill_all(process: trio.Process) -> None:
        # In a session of its own it does not get the terminal's Ctrl-C, and its children (node) end with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async with limiter:
        began = trio.current_time()
        done = await trio.run_process(
            command,
            cwd=ROOT,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            start_new_session=True,
            deliver_cancel=kill_all,
        )
    seconds = trio.current_time() - began
    if done.returncode == 0:
        print(f"ok      {name} ({seconds:.1f} s)", flush=True)
    else:
        failed.append(name)
        print(f"FAILED  {name} ({seconds:.1f} s)\n{done.stdout.decode(errors='replace').strip()}\n", flush=True)


async def run_tests() -> bool:
    """Run pytest on the terminal, under coverage, and say whether it passed."""

    async def kill_if_slow(process: trio.Process) -> None:
        # Ctrl-C reached it as well: it may end its tests and their servers, for as long as a person waits.
        await trio.sleep(1.5)
        process.kill()

    measured = coverage.Coverage()
    measured.erase()  # and what a run that was broken off has left
    command = [*PYTHON, "coverage", "run", "-m", "pytest"]
    return (await trio.run_process(command, cwd=ROOT, check=False, deliver_cancel=kill_if_slow)).returncode == 0


def package_is_covered() -> bool:
    """Put together what all processes of the test run measured, and hold it against the bar."""
    measured = coverage.Coverage()
    try:
        measured.combine()
    except NoDataError:  # pytest came to a bad end, and has said so
        return False
    measured.save()
    lines = missed = 0
    for path in PACKAGE.rglob("*.py"):
        _, statements, _, missing, _ = measured.analysis2(str(path))
        lines += len(statements)
        missed += len(missing)
    percent = 100 * (lines - missed) / lines
    if percent < LINES_AT_LEAST:
        measured.report(show_missing=True, skip_covered=True)
    print(f"\ncoverage of the package: {percent:.1f} % of {lines} lines (at least {LINES_AT_LEAST} %)", flush=True)
    return percent >= LINES_AT_LEAST


async def main(*, static_only: bool) -> int:
    """Run the checks and return the exit code."""
    os.chdir(ROOT)
    failed: list[str] = []
    run = partial(run_check, limiter=trio.CapacityLimiter(2), failed=failed)
    async with trio.open_nursery() as nursery:
        for name, command in STATIC.items():
            nursery.start_soon(run, name, command)
    if not static_only:
        print(flush=True)
        if not await run_tests():
            failed.append("tests")
        if not package_is_covered():
            failed.append("coverage of the package")
    if failed:
        print("FAILED: " + ", ".join(failed), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(trio.run(partial(main, static_only="--static" in sys.argv[1:])))
    except* KeyboardInterrupt:
        sys.exit(130)
