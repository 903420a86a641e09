"""Publishing at most once a window: a topic's last message, or all of them in one.

Rules
- A topic's first message goes at once, and begins a window. What comes while the window is open is kept, and goes when
  it ends, which begins the next one. A window in which nothing came is the topic's last.
- One task publishes, one message at a time: windows are due in the order in which they were begun.
- What is kept is bounded, and `publish` waits where there is no room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, Literal, TypeVar, final

import trio

from trio_wskit._core.publishing import PublishResult
from trio_wskit.errors import ConfigError

__all__ = ["ThrottleMode", "ThrottledPublisher", "open_throttled"]

M = TypeVar("M")
ThrottleMode = Literal["last", "batch"]

_CHUNK: Final = 64  # windows that end at the same time still let others run


@final
class _Window(Generic[M]):
    __slots__ = ("due", "messages")

    def __init__(self, due: float) -> None:
        self.due = due
        self.messages: list[M] = []


@final
class ThrottledPublisher(Generic[M]):
    """Publishes at most one message a window to each topic; see `App.throttled`, which makes and runs one.

    Args:
        publish: ``async def (topic, message)``, such as `App.publish`.
        window: seconds, above 0.
        mode: ``last`` publishes the last message of a window; ``batch`` what `join` makes of all of them.
        join: from a list of messages, oldest first, to one; for ``batch``.
        max_topics: whose windows may be open at the same time.
        max_messages: that may be kept for each topic, in ``batch`` mode.

    Attributes:
        published: messages that were published.
        replaced: messages that gave way to a later one of their window.
        joined: messages that were published as a part of another.
        failed: publishes whose result was not ok.

    Raises:
        ConfigError: an argument is of the wrong kind.
    """

    def __init__(
        self,
        publish: Callable[[str, M], Awaitable[PublishResult]],
        window: float,
        mode: ThrottleMode = "last",
        *,
        join: Callable[[Sequence[M]], M] | None = None,
        max_topics: int = 10_000,
        max_messages: int = 1000,
    ) -> None:
        _check(publish, window, mode, join, max_topics, max_messages)
        self._publish = publish
        self._window = window
        self._join = join
        self._max_topics = max_topics
        self._max_messages = max_messages
        self._windows: dict[str, _Window[M]] = {}  # open, in the order in which they end
        self._fresh: dict[str, _Window[M]] = {}  # not begun yet: these go at once
        self._arrived = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._closing = False
        self.published: int = 0
        self.replaced: int = 0
        self.joined: int = 0
        self.failed: int = 0

    @property
    def kept(self) -> int:
        """Messages that wait for the end of their window."""
        return sum(len(window.messages) for windows in (self._fresh, self._windows) for window in windows.values())

    def publish_nowait(self, topic: str, message: M) -> None:
        """Like `publish`, but never waits.

        Raises:
            trio.WouldBlock: as many topics, or messages of this topic, as may be are kept.
            trio.ClosedResourceError: it has been closed.
        """
        if self._closing:
            raise trio.ClosedResourceError("this throttled publisher is closed")
        window = self._windows.get(topic) or self._fresh.get(topic)
        if window is None:
            if len(self._windows) + len(self._fresh) >= self._max_topics:
                raise trio.WouldBlock
            self._fresh[topic] = window = _Window[M](-math.inf)
            self._arrived.set()
        if self._join is not None and len(window.messages) >= self._max_messages:
            raise trio.WouldBlock
        if self._join is None and window.messages:
            window.messages.pop()
            self.replaced += 1
        window.messages.append(message)

    async def publish(self, topic: str, message: M) -> None:
        """Have a message published, now or at the end of its topic's window. Waits for room to keep it.

        Nobody learns what comes of it but the observers, and the counters: the publisher has gone on.

        Raises:
            trio.ClosedResourceError: it has been closed; the message is not published.

        Cancelled: the message is not published.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self.publish_nowait(topic, message)
            except trio.WouldBlock:
                await self._room.park()
            else:
                return

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish until `aclose`, and then what is kept.

        Raises whatever `publish` and `join` raise; then nothing more can be published.

        Cancelled: what is kept is not published.
        """
        task_status.started()
        try:
            while not (self._closing and not self.kept):
                await self._wait()
                await self._publish_due()
        finally:
            self.close()

    async def _wait(self) -> None:
        """Wait for the next end of a window."""
        if self._closing or self._fresh:
            await trio.lowlevel.checkpoint()
            return
        due = next(iter(self._windows.values())).due if self._windows else math.inf
        self._arrived = trio.Event()
        with trio.move_on_at(due):
            await self._arrived.wait()

    def _due(self) -> list[str]:
        now = math.inf if self._closing else trio.current_time()
        over = itertools.takewhile(lambda item: item[1].due <= now, self._windows.items())
        return [*(topic for topic, _ in over), *self._fresh]

    async def _publish_due(self) -> None:
        for done, topic in enumerate(self._due(), 1):
            window = self._fresh.pop(topic, None) or self._windows.pop(topic)
            if not window.messages:
                self._room.unpark_all()
                continue
            self._windows[topic] = _Window[M](trio.current_time() + self._window)
            self._room.unpark_all()
            message = window.messages[-1]
            if self._join is not None and len(window.messages) > 1:
                self.joined += len(window.messages)
                message = self._join(window.messages)
            result = await self._publish(topic, message)
            self.published += 1
            self.failed += not result.ok
            if done % _CHUNK == 0:
                await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Take nothing more. What is kept is published at once, by `run`. Who waits for room gets an error."""
        self._closing = True
        self._arrived.set()
        self._room.unpark_all()


def _check(publish: object, window: Any, mode: object, join: object, max_topics: object, max_messages: object) -> None:
    if not callable(publish):
        raise ConfigError(f"a throttled publisher takes an async function to publish with, not {publish!r}")
    if not isinstance(window, (int, float)) or isinstance(window, bool) or not 0 < window < math.inf:
        raise ConfigError(f"a throttled publisher takes a window of a finite number of seconds above 0, not {window!r}")
    if mode not in ("last", "batch"):
        raise ConfigError(f"a throttled publisher takes the mode 'last' or 'batch', not {mode!r}")
    if (mode == "batch") != callable(join):
        raise ConfigError("a throttled publisher takes join= with the mode 'batch', and only with that")
    for name, value in (("max_topics", max_topics), ("max_messages", max_messages)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"a throttled publisher takes {name} as a whole number above 0, not {value!r}")


@asynccontextmanager
async def open_throttled(publisher: ThrottledPublisher[M]) -> AsyncGenerator[ThrottledPublisher[M]]:
    """Run a throttled publisher in a task of its own; at the end of the block publish what is kept, and wait for that.

    Raises whatever its `publish` and `join` raise, from the block.

    Cancelled, or left by an exception: what is kept is not published.
    """
    failed: BaseException | None = None
    broken: Exception | None = None

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal broken
        try:
            await publisher.run(task_status=task_status)
        except Exception as error:
            broken = error
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield publisher
        except BaseException as error:  # it leaves below, without the group that the nursery would make of it
            failed = error
            nursery.cancel_scope.cancel()
        publisher.close()
    if broken is not None and (failed is None or isinstance(failed, trio.Cancelled)):
        raise broken
    if failed is not None:
        raise failed
