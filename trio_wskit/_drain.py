"""The end of an app without a loss: nothing new starts, what runs may finish, then everybody is sent away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Final

import trio

from trio_wskit._work import Drain, DrainReport, Work

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["run_drain"]

_LAST_WORDS: Final = 1.0  # seconds for handlers that were cancelled to end, so that their clients are still told


async def run_drain(
    work: Work,
    drain: Drain,
    sessions: Callable[[], Collection[Session]],
    seconds: float,
    close_all: Callable[[], Awaitable[None]],
) -> DrainReport:
    """See `App.drain`, which has refused new handshakes already.

    Args:
        work: what the sessions share.
        drain: new, and not yet known to anybody.
        sessions: those connected now.
        seconds: for what runs.
        close_all: closes every session, and waits for that.
    """
    work.drain = drain
    for session in sessions():
        session.drain(drain)
    drain.watch(set(work.detached))
    with trio.move_on_after(seconds):
        await drain.idle()
    for runner in drain.running:
        runner.cancel("CANCELLED")
    with trio.move_on_after(_LAST_WORDS):
        await drain.idle()
    closed = len(sessions())
    await close_all()
    return DrainReport(
        finished=drain.finished,
        cancelled=drain.cancelled + len(drain.running),  # a shield may still hold some
        refused=drain.refused,
        closed=closed,
    )
