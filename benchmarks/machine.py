"""This machine: its cores, its description, and what a process uses of it. Linux only, as the generator is."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

__all__ = ["allow_many_files", "cores", "describe", "memory_kib"]


_ALLOWED = sorted(os.sched_getaffinity(0))
"""As we were started: later we pin ourselves to one of them."""


def cores() -> tuple[int, int]:
    """The core for the server, and the one for the generator; the same if there is only one."""
    return _ALLOWED[0], _ALLOWED[-1]


def allow_many_files() -> int:
    """Raise the limit of open files as far as it goes, for us and all we start; return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def memory_kib(pid: int) -> int:
    """What a process holds in memory, shared pages counted in proportion (PSS), in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"no Pss line for process {pid}")


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n")[0]


def describe() -> dict[str, str | int]:
    """The machine as it goes into the results: no name, no address."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "processor": model,
        "cores": len(_ALLOWED),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": sys.version.split()[0],
        "node": (_first_line("node", "--version") or "none").lstrip("v"),
        "compiler": _first_line("cc", "--version") or "none",
    }
