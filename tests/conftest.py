"""For every test: how hypothesis looks for examples, and how Ctrl-C and the time limit end a test that runs in Trio."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import trio
from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow data: the machine's speed is not what is tested.
# A failure prints what repeats it. `HYPOTHESIS_PROFILE=thorough` looks much longer.
_default = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _default)
settings.register_profile("thorough", _default, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What a script starts in its background ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

OVERDUE: Final = pytest.StashKey[float]()
SECONDS_TO_END: Final = 10.0  # for a test that was told to end; past that something is shielded, and the run is over


# pytest-timeout raises out of a signal handler, which leaves Trio in pieces, and the next tests among them. Ctrl-C is
# the one exception from outside that Trio delivers in order, so the limit is enforced by that.
@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Start the clock of a test; options, markers and default are still pytest-timeout's."""

    def interrupt(_number: int, frame: FrameType | None) -> None:
        item.stash[OVERDUE] = settings.timeout
        capture: Any = item.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture()
        sys.stderr.write(f"\n{item.nodeid} is not done after {settings.timeout:g} s:\n{_where(frame)}")
        faulthandler.dump_traceback_later(SECONDS_TO_END, exit=True)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer() -> bool:
    """Stop the clock."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    return True


def _where(frame: FrameType | None) -> str:
    """Where each task of the Trio run waits; without a run, where the test is."""
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return "".join(traceback.format_stack(frame, limit=5))
    lines: list[str] = []
    tasks = [root] if root else []
    while tasks:
        task = tasks.pop()
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        stack = traceback.StackSummary.extract(task.iter_await_frames())
        ours = [line for line in stack if not line.filename.startswith(str(Path(trio.__file__).parent))]
        lines += [f"task {task.name}\n", *traceback.format_list(ours)]
    return "".join(lines)


def pytest_enter_pdb() -> None:
    """Nobody hurries a person who is looking."""
    pytest_timeout_cancel_timer()


@contextmanager
def _interrupts(item: pytest.Item) -> Generator[None]:
    """Tell Ctrl-C, which Trio wraps in a group and pytest would take for a failure, from the end of a test's time."""
    try:
        yield
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and not error.subgroup(KeyboardInterrupt):
            raise
        if OVERDUE in item.stash:
            late = f"not done after {item.stash[OVERDUE]:g} s; where it waited is printed above"
            raise pytest.fail.Exception(late, pytrace=False) from None
        raise KeyboardInterrupt from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _interrupts(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with _interrupts(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with _interrupts(item):
        return (yield)
