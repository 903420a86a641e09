"""How hypothesis looks for examples, and what Ctrl-C does, in every test."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow data: the machine's speed is not what is tested.
# A failure prints what repeats it. `HYPOTHESIS_PROFILE=thorough` looks much longer.
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Let Ctrl-C in an async test end the run: Trio wraps it in a group, which pytest takes for a failed test."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
