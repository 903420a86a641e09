"""The peers' own environments, made when they are first needed: a virtual one for Python, node_modules for the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

__all__ = ["HERE", "Unavailable", "bun", "node", "npm_versions", "own_version", "package_versions", "peer_python"]

HERE = Path(__file__).parent
VENV = HERE / ".venv"
NODE_MODULES = HERE / "peers" / "node_modules"


class Unavailable(Exception):
    """This server cannot be run here; the message says why."""


def _run(*command: str | Path, cwd: Path = HERE) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Unavailable(f"`{' '.join(map(str, command))}` failed: {' / '.join(tail)}")


def _up_to_date(made: Path, source: Path) -> bool:
    return made.exists() and made.read_bytes() == source.read_bytes()


@cache
def peer_python() -> Path:
    """The interpreter of the peers' environment, which is made from requirements.txt when that has changed."""
    python, wanted, stamp = VENV / "bin" / "python", HERE / "requirements.txt", VENV / "made-from.txt"
    if not _up_to_date(stamp, wanted):
        print("installing the Python peers …", file=sys.stderr)
        if not python.exists():
            _run(sys.executable, "-m", "venv", VENV)
        _run(python, "-m", "pip", "install", "--quiet", "--requirement", wanted)
        shutil.copy(wanted, stamp)
    return python


@cache
def _node_modules() -> Path:
    lock, stamp = HERE / "peers" / "package-lock.json", NODE_MODULES / "made-from.json"
    if not _up_to_date(stamp, lock):
        npm = shutil.which("npm")
        if npm is None:
            raise Unavailable("there is no npm")
        print("installing the peers from npm …", file=sys.stderr)
        _run(npm, "ci", "--no-audit", "--no-fund", cwd=HERE / "peers")
        shutil.copy(lock, stamp)
    return NODE_MODULES


def node() -> Path:
    """Node itself, with its packages beside the programs."""
    program = shutil.which("node")
    if program is None:
        raise Unavailable("there is no node")
    _node_modules()
    return Path(program)


def bun() -> Path:
    """Bun, as npm installs it: in place of a stub if install scripts run, in a package for the platform if not."""
    modules = _node_modules()
    found = [*modules.glob("bun/bin/bun.exe"), *modules.glob("@oven/bun-*/bin/bun")]
    for program in found:
        if program.stat().st_size > 1_000_000:
            return program
    raise Unavailable("npm did not install a bun for this platform")


def package_versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python packages in an environment."""
    code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Unavailable(f"not installed: {', '.join(names)} ({done.stderr.strip().splitlines()[-1]})")
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def npm_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages in node_modules."""
    return {name: json.loads((_node_modules() / name / "package.json").read_text())["version"] for name in names}


def own_version() -> str:
    """Ours, from the tree that is measured, which need not be installed."""
    version: str = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
    return version
