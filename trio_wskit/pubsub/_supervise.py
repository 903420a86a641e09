"""A consumer is run, and run again when it ends, by rules that the application sets.

    starting ──started()──▶ hearing ──ended──▶ waiting ──back-off──▶ starting …
        └──────── ended, or start_timeout ──────▲  └──── attempts are used up ────▶ gone

An epoch is one time from `started` to the end. Each after the first begins with a notice that something was missed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, Final, Literal, final

import attrs
import trio

from trio_wskit._core.backoff import Backoff
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import BrokerConsumer, Deliver
from trio_wskit.errors import ConfigError, PubSubError

__all__ = ["ConsumerHealth", "ConsumerState", "RestartPolicy", "Supervisor", "name_of"]

logger = logging.getLogger("trio_wskit")

ConsumerState = Literal["stopped", "starting", "hearing", "waiting", "gone"]


_BACKOFF: Final = Backoff(initial_delay=0.1, max_delay=10.0)


def _is_backoff(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, Backoff):
        raise ConfigError(f"RestartPolicy(backoff=…) takes a Backoff, not {value!r}")


def _attempts(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"RestartPolicy(max_attempts=…) takes a whole number above 0 or None, not {value!r}")


def _seconds(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"RestartPolicy({field.name}=…) takes seconds above 0, not {value!r}")


def _end(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("deaf", "fail"):
        raise ConfigError(f"RestartPolicy(then=…) takes 'deaf' or 'fail', not {value!r}")


@final
@attrs.frozen(kw_only=True)
class RestartPolicy:
    """When a consumer that has ended is run again, and for how long that goes on.

    Attributes:
        backoff: how long to wait before the next attempt.
        max_attempts: attempts in a row that may fail; None for no limit. One that heard for `settled_after` begins a
            new row.
        then: what happens after the last: ``deaf``: the app goes on, and is not ready; ``fail``: the app fails.
        start_timeout: seconds that an attempt has to call ``started()``; inf for as long as it takes.
        settled_after: seconds of hearing after which a consumer counts as well again; inf for never.
    """

    backoff: Backoff = attrs.field(default=_BACKOFF, validator=_is_backoff)
    max_attempts: int | None = attrs.field(default=None, validator=_attempts)
    then: Literal["deaf", "fail"] = attrs.field(default="deaf", validator=_end)
    start_timeout: float = attrs.field(default=10.0, validator=_seconds)
    settled_after: float = attrs.field(default=10.0, validator=_seconds)


@final
@attrs.frozen(kw_only=True)
class ConsumerHealth:
    """How a consumer is doing.

    Attributes:
        name: its class, or the name it has.
        state: ``hearing`` is the good one; ``starting``, ``waiting`` for the next attempt, ``gone`` for good,
            ``stopped`` while the app is not open.
        epoch: how many times it has begun to hear.
        failures: attempts in a row that have failed.
        error: what ended the last attempt; None before the first end.
    """

    name: str
    state: ConsumerState
    epoch: int
    failures: int
    error: Exception | None


def name_of(consumer: BrokerConsumer) -> str:
    """What logs call it: its ``name``, or that of its class."""
    return str(getattr(consumer, "name", None) or type(consumer).__name__)


@final
class _Attempt:
    """What one run of the consumer is given. It is a `trio.TaskStatus`."""

    def __init__(self, heard: Deliver, started: Callable[[], None]) -> None:
        self._heard = heard
        self._started = started
        self.is_hearing = False

    def started(self, value: None = None) -> None:
        if self.is_hearing:
            raise RuntimeError("started() was called twice")
        self.is_hearing = True
        self._started()

    async def deliver(self, envelope: PublishEnvelope) -> None:
        if not self.is_hearing:
            raise RuntimeError("deliver() was called before task_status.started()")
        await self._heard(envelope)


@final
class Supervisor:
    """Runs one consumer.

    Args:
        consumer: who is supervised.
        policy: when it is run again.
        changed: called after every change of its state. It never waits.
        missed: called at the beginning of each epoch but the first. It never waits.
        randomness: gives numbers from 0 to 1.
    """

    def __init__(
        self,
        consumer: BrokerConsumer,
        policy: RestartPolicy,
        changed: Callable[[], None],
        missed: Callable[[], None],
        randomness: Callable[[], float] = random.random,
    ) -> None:
        self._consumer = consumer
        self._policy = policy
        self._changed = changed
        self._missed = missed
        self._randomness = randomness
        self.name: Final = name_of(consumer)
        self.state: ConsumerState = "stopped"
        self.epoch = 0
        self.failures = 0
        self.error: Exception | None = None
        self.was_tried = False  # the first attempt has come to something

    @property
    def health(self) -> ConsumerHealth:
        """A snapshot."""
        return ConsumerHealth(
            name=self.name, state=self.state, epoch=self.epoch, failures=self.failures, error=self.error
        )

    def _become(self, state: ConsumerState) -> None:
        self.state = state
        self._changed()

    async def run(self, heard: Deliver) -> None:
        """Run the consumer until cancelled.

        Raises:
            PubSubError: the attempts are used up, and the policy says ``fail``.
        """
        policy = self._policy
        self.failures = 0
        try:
            while True:
                error = await self._attempt(heard)
                self.error = error
                self.failures += 1
                self.was_tried = True
                if policy.max_attempts is not None and self.failures >= policy.max_attempts:
                    break
                delay = policy.backoff.delay(self.failures, self._randomness())
                logger.warning(
                    "broker consumer %s has ended (epoch %d, failure %d), and runs again in %.2f s: %r",
                    self.name,
                    self.epoch,
                    self.failures,
                    delay,
                    error,
                    exc_info=error if self.failures == 1 else None,
                )
                self._become("waiting")
                await trio.sleep(delay)
            logger.error(
                "broker consumer %s is given up after %d failures", self.name, self.failures, exc_info=self.error
            )
            self._become("gone")
            if policy.then == "fail":
                details = {"consumer": self.name, "failures": self.failures}
                why = f"broker consumer {self.name} has failed {self.failures} times in a row"
                raise PubSubError("ADAPTER_ERROR", why, details) from self.error
            await trio.sleep_forever()
        finally:
            self.was_tried = False
            self._become("stopped")

    async def _attempt(self, heard: Deliver) -> Exception:
        """Run it once; what ended it."""
        since = 0.0

        def started() -> None:
            nonlocal since
            since = trio.current_time()
            patience.deadline = float("inf")
            self.epoch += 1
            self.was_tried = True
            if self.epoch > 1:
                self._missed()
            self._become("hearing")

        attempt = _Attempt(heard, started)
        self._become("starting")
        error: Exception | None = None
        timeout = self._policy.start_timeout
        with trio.CancelScope(deadline=trio.current_time() + timeout) as patience:
            try:
                await self._consumer.run(attempt.deliver, task_status=attempt)
            except Exception as raised:
                error = raised
        if attempt.is_hearing and trio.current_time() - since >= self._policy.settled_after:
            self.failures = 0
        if patience.cancelled_caught:
            return trio.TooSlowError(f"it did not call started() within {timeout} s")
        return error or EOFError("it returned")
