"""What one operation asks of the driver: all of it, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final, final

import trio

from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import PubSubError

__all__ = ["UNDO_SECONDS", "Errand"]

logger = logging.getLogger("trio_wskit")

UNDO_SECONDS: Final = 5.0  # for the driver to undo what was begun: whoever is cancelled waits no longer
_STEPS_PER_PASS: Final = 64  # a large batch still lets others run this often


@final
class Errand:
    """Has a driver unsubscribe and subscribe one client.

    Args:
        driver: is asked.
        client_id: who it is about.
        is_closed: True once the client has left.
        many: it is a batch, whose errors tell more.

    Attributes:
        doubtful: topics for which the driver did not undo what it had done; None for none.
    """

    __slots__ = ("_client_id", "_driver", "_is_closed", "_many", "doubtful")

    def __init__(self, driver: PubSubDriver, client_id: str, is_closed: Callable[[], bool], *, many: bool) -> None:
        self._driver = driver
        self._client_id = client_id
        self._is_closed = is_closed
        self._many = many
        self.doubtful: set[str] | None = None

    async def run(self, removes: Collection[str], adds: Collection[str]) -> None:
        """Have the driver do it all, or undo what it did.

        Raises:
            PubSubError: ADAPTER_ERROR: it failed; CONNECTION_CLOSED: the client left meanwhile.

        Cancelled: it is undone.
        """
        driver = self._driver
        done: list[tuple[str, bool]] = []
        topic, adding = "", False
        try:
            for topics, adding in ((removes, False), (adds, True)):
                act = driver.subscribe if adding else driver.unsubscribe
                for topic in topics:
                    await act(self._client_id, topic)
                    done.append((topic, adding))
                    if adds and self._is_closed():
                        break
                    if len(done) % _STEPS_PER_PASS == 0:
                        await trio.lowlevel.checkpoint()
            if adds and self._is_closed():
                raise self._left()
        except Exception as cause:
            failed = await self._undo(done)
            if adds and self._is_closed():  # it left while the driver was at work
                if not failed:
                    raise self._left() from None
                cause = next(iter(failed.values())) or cause
            raise self._failure(topic, adding, list(failed)) from cause
        except BaseException:  # cancelled: the driver may have done it, or not
            if not done or done[-1] != (topic, adding):
                done.append((topic, adding))
            await self._undo(done)
            raise

    @staticmethod
    def _left() -> PubSubError:
        return PubSubError("CONNECTION_CLOSED", "the client has left")

    def _failure(self, topic: str, adding: bool, failed: list[str]) -> PubSubError:
        what = "subscribe to" if adding else "unsubscribe from"
        details = {"rollbackFailed": bool(failed), "failedRollbackTopics": failed} if self._many else {}
        return PubSubError("ADAPTER_ERROR", f"the driver did not {what} {topic!r}", details)

    async def _undo(self, done: list[tuple[str, bool]]) -> dict[str, Exception | None]:
        """Undo in reverse order, whoever is cancelled meanwhile; tell for which topics that failed."""
        driver = self._driver
        if self._is_closed():  # then there is nothing to come back to
            done = [step for step in done if step[1]]
        failed: dict[str, Exception | None] = {}
        with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_SECONDS):
            while done:
                topic, added = done[-1]
                try:
                    await (driver.unsubscribe if added else driver.subscribe)(self._client_id, topic)
                except Exception as error:
                    logger.exception("topic %s of client %s is in doubt", topic, self._client_id)
                    failed[topic] = error
                done.pop()
        if done:
            logger.error("the driver took too long to undo: %d topics of client %s", len(done), self._client_id)
            failed |= {topic: None for topic, _ in reversed(done)}
        if failed and not self._is_closed():
            self.doubtful = set(failed)
        return failed
