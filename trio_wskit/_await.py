"""Await a coroutine, and learn of its first wait before it happens."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["go_on", "run_until_wait"]

T = TypeVar("T")


@types.coroutine
def run_until_wait(coroutine: Coroutine[Any, Any, T], on_first_wait: Callable[[], object]) -> Generator[Any, Any, T]:
    """Await `coroutine`; call `on_first_wait` just before it gives control to the scheduler for the first time.

    Most handlers never wait. Those that do not cost no task, no cancel scope and no wake-up; for those that do, the
    first wait is the moment to send what they have said so far and to let the next message be served beside them.

    This is ``await coroutine`` with one step of it written out (PEP 380 has the expansion).
    """
    try:
        trap = coroutine.send(None)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]
    on_first_wait()
    return (yield from _rest(coroutine, trap))


def _rest(coroutine: Coroutine[Any, Any, T], trap: object) -> Generator[Any, Any, T]:
    while True:
        try:
            answer = yield trap
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                trap = coroutine.throw(error)
            except StopIteration as finished:
                return finished.value  # type: ignore[no-any-return]
        else:
            try:
                trap = coroutine.send(answer)
            except StopIteration as finished:
                return finished.value  # type: ignore[no-any-return]


@types.coroutine
def go_on(coroutine: Coroutine[Any, Any, T], trap: object) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that was stepped once by ``send(None)``, and gave `trap`.

    For the dispatcher, which takes the first step in its own loop: `run_until_wait` costs as much as a small handler.
    """
    return (yield from _rest(coroutine, trap))
