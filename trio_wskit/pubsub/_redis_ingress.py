"""The way in over Redis: what is subscribed to on the server follows what is wanted here, and what comes is handed on.

For each link there are two tasks. One reads: it never waits for anybody, for what it does not read grows in coredis,
without a bound; it puts what comes into a hand-over that has one, and where that is full the link is given up. The
other makes the server's subscriptions what they should be, a batch at a time, and pings. Whatever goes wrong with a
link ends the run, and with it all links: whoever supervises it then begins a new epoch.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, final

import attrs
import trio

from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._core.redis_envelope import BadEnvelope, Fault, decode_envelope, slot_of
from trio_wskit.abc import Deliver
from trio_wskit.errors import PubSubError
from trio_wskit.pubsub._redis_link import Address, Command, Link, Refused, Servers, lost

__all__ = ["Ingress", "IngressCounts", "IngressLimits", "Name"]

logger = logging.getLogger("trio_wskit")

Kind = Literal["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"]

_ON: Final[dict[Kind, bytes]] = {"SUBSCRIBE": b"SUBSCRIBE", "PSUBSCRIBE": b"PSUBSCRIBE", "SSUBSCRIBE": b"SSUBSCRIBE"}
_OFF: Final[dict[Kind, bytes]] = {
    "SUBSCRIBE": b"UNSUBSCRIBE",
    "PSUBSCRIBE": b"PUNSUBSCRIBE",
    "SSUBSCRIBE": b"SUNSUBSCRIBE",
}
_BATCH: Final = 500  # names in one go: the server does nothing else meanwhile
_PASS: Final = 64  # envelopes after which others run, where none of them made us wait
_MAX_DEPTH: Final = 200


class Name(NamedTuple):
    """What the server is asked for: a channel, a pattern, or a channel of a shard."""

    kind: Kind
    name: str


@final
@attrs.frozen(kw_only=True)
class IngressLimits:
    """The bounds of a consumer.

    Attributes:
        max_wait: seconds that a topic may wait to be heard, from when it came, or from when the server fell silent.
        remember: a topic does not wait for a link that is down.
        check_every: seconds between pings; also how long the server may take to answer one.
        max_waiting: envelopes that have come and are not delivered yet.
        max_waiting_bytes: the same in bytes.
        max_envelope_bytes: the largest envelope that is read.
    """

    max_wait: float
    remember: bool
    check_every: float
    max_waiting: int
    max_waiting_bytes: int
    max_envelope_bytes: int


@final
@attrs.define
class IngressCounts:
    """What has come in.

    Attributes:
        received: envelopes that were handed on, those of this process among them.
        bad: messages that were no envelopes, by what was wrong with them.
        overflows: links that were given up because what came was more than what could be delivered.
    """

    received: int = 0
    bad: dict[str, int] = attrs.field(factory=dict[str, int])
    overflows: int = 0


@final
class _Wait:
    """Somebody waits for a name to be heard."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = None


@final
class _Ear:
    """One link, and what the server at its end is subscribed to."""

    def __init__(self, link: Link, ingress: Ingress, *, by_slot: bool) -> None:
        self.link = link
        self.heard: set[Name] = set()
        self.changed: dict[Name, None] = {}
        self.wake = trio.Event()
        self._ingress = ingress
        self._by_slot = by_slot
        self._leaving: dict[bytes, int] = {}
        self.silent_since = math.inf  # the server was asked then, and has not answered yet

    def touch(self, name: Name) -> None:
        """Look at this name again: it is wanted, or no more."""
        self.changed[name] = None
        self.wake.set()

    async def settle(self) -> None:
        """Make the server's subscriptions what is wanted.

        Raises:
            PubSubError: the link is lost, or the server refused a name for which nobody waits.
        """
        while self.changed:
            batch = list(islice(self.changed, _BATCH))
            for name in batch:
                del self.changed[name]
            wanted = self._ingress.wanted
            on = [name for name in batch if name in wanted and name not in self.heard]
            off = [name for name in batch if name not in wanted and name in self.heard]
            self.heard.difference_update(off)
            for name in off:
                if name.kind == "SSUBSCRIBE":
                    channel = name.name.encode()
                    self._leaving[channel] = self._leaving.get(channel, 0) + 1
            commands = [*self._commands(_OFF, off), *self._commands(_ON, on)]
            if not commands:
                continue
            errors = await self._fence(commands)
            if not errors:
                self._is_heard(on)
                continue
            for name in on:  # which of them is it?
                errors = await self._fence(self._commands(_ON, [name]))
                if errors and errors[0].moved:
                    raise lost("a slot of the cluster has moved to another node") from errors[0]
                if errors:
                    self._ingress.refused(name, errors[0])
                else:
                    self._is_heard([name])

    async def _fence(self, commands: Sequence[Command]) -> list[Refused]:
        self.silent_since = trio.current_time()
        errors = await self.link.fence(commands, self._ingress.limits.check_every)
        self.silent_since = math.inf
        self._ingress.pause()  # while an answer waited, `read` could not tell
        return errors

    def _is_heard(self, names: Iterable[Name]) -> None:
        for name in names:
            self.heard.add(name)
            self._ingress.is_heard(name)

    def _commands(self, by_kind: dict[Kind, bytes], names: Iterable[Name]) -> list[Command]:
        """One command for each kind; in a cluster one for each slot, for there no command reaches over two."""
        groups: dict[tuple[Kind, int], list[str]] = {}
        for kind, name in names:
            groups.setdefault((kind, slot_of(name) if self._by_slot else 0), []).append(name)
        return [(by_kind[kind], tuple(group)) for (kind, _), group in groups.items()]

    async def tend(self) -> None:
        """Settle whenever something has changed, and ping when nothing does, until the link is lost.

        Raises:
            PubSubError: the link is lost, or the server does not answer in time.
        """
        every = self._ingress.limits.check_every
        while True:
            if not self.changed:
                self.wake = trio.Event()
                with trio.move_on_after(every) as idle:
                    await self.wake.wait()
                if idle.cancelled_caught:
                    await self._fence(())
            await self.settle()

    async def read(self) -> None:
        """Take in what comes, until the link is lost.

        Raises:
            PubSubError: the link is lost, or was given up: more comes than can be delivered, or a slot has moved away.
        """
        await self.link.read(self._take, self._ingress.pause)

    def _take(self, push: list[Any]) -> None:
        kind: bytes = push[0]
        if kind in (b"message", b"smessage"):
            self._ingress.take(push[1], push[2])
        elif kind == b"pmessage":
            self._ingress.take(push[2], push[3])
        elif kind == b"sunsubscribe":
            channel: bytes = push[1]
            left = self._leaving.pop(channel, 0)
            if left > 1:
                self._leaving[channel] = left - 1
            elif not left:
                raise lost("a slot of the cluster has moved to another node")


@final
class Ingress:
    """What is wanted, the links while there are any, and the hand-over.

    Attributes:
        wanted: what the server shall send. Change it by `want` and `leave`.
        limits: the bounds.
        counts: what has come in.
    """

    def __init__(
        self, servers: Servers, limits: IngressLimits, *, prefix: str, is_sharded: bool, foreign: bool
    ) -> None:
        self._servers = servers
        self._prefix = prefix
        self._is_sharded = is_sharded
        self._foreign = foreign
        self.limits = limits
        self.counts = IngressCounts()
        self.wanted: set[Name] = set()
        self._waits: dict[Name, list[_Wait]] = {}
        self._ear_of: Callable[[Name], _Ear] | None = None
        self._down_since: float | None = None  # None: it has never run
        self._is_running = False
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._something = trio.Event()

    # --- what is wanted ----------------------------------------------------------------------------------------------

    async def want(self, name: Name) -> None:
        """Have the server send this too. Before the first run it is only remembered.

        Raises:
            PubSubError: ADAPTER_ERROR: the server refused, or it is not heard within `max_wait`, because the link is
                down or the server slow. It is still wanted, until `leave`.

        Cancelled: the same.
        """
        await trio.lowlevel.checkpoint()
        self.wanted.add(name)
        ear = None if self._ear_of is None else self._ear_of(name)
        if ear is not None:
            silent_since = ear.silent_since
            if name in ear.heard:  # taken out before the server is told to stop, so it is still sent
                return
            ear.touch(name)
        elif self.limits.remember or self._down_since is None:
            return
        else:
            silent_since = self._down_since
        # Many may come for a topic one after another: together they wait no longer than one of them.
        deadline = min(trio.current_time(), silent_since) + self.limits.max_wait
        wait = _Wait()
        waits = self._waits.setdefault(name, [])
        waits.append(wait)
        try:
            with trio.move_on_at(deadline):
                await wait.done.wait()
        finally:
            waits.remove(wait)
            if not waits and self._waits.get(name) is waits:
                del self._waits[name]
        if wait.error is not None:
            raise PubSubError("ADAPTER_ERROR", "the broker refuses this topic") from wait.error
        if not wait.done.is_set():
            raise PubSubError("ADAPTER_ERROR", "the broker has not confirmed the topic in time")

    def leave(self, name: Name) -> None:
        """Have the server send this no more, as soon as may be. Never waits, and never fails."""
        self.wanted.discard(name)
        if self._ear_of is not None:
            with suppress(PubSubError):  # no node has it: then none sends it
                self._ear_of(name).touch(name)

    def is_heard(self, name: Name) -> None:
        """The server has confirmed it."""
        for wait in self._waits.get(name, ()):
            wait.done.set()

    def refused(self, name: Name, error: Exception) -> None:
        """The server will not send it.

        Raises:
            PubSubError: nobody waits who could be told.
        """
        waits = self._waits.get(name)
        if not waits:
            if name not in self.wanted:
                return
            raise lost(f"Redis refuses {name.kind} {name.name!r}: {error}") from error
        for wait in waits:
            wait.error = error
            wait.done.set()

    # --- what comes --------------------------------------------------------------------------------------------------

    def take(self, channel: bytes, data: bytes) -> None:
        """Put a message into the hand-over.

        Raises:
            PubSubError: it is full.
        """
        waiting = self._waiting
        limits = self.limits
        self._waiting_bytes += len(data)
        if len(waiting) >= limits.max_waiting or self._waiting_bytes > limits.max_waiting_bytes:
            self.counts.overflows += 1
            raise lost(
                f"more comes from Redis than is delivered: {len(waiting)} messages of {self._waiting_bytes} bytes wait"
            )
        waiting.append((channel, data))
        if len(waiting) >= _PASS:
            self._something.set()

    def pause(self) -> None:
        """Nothing more has come just now: hand on what there is.

        To hand on a batch costs a task switch; to hand on each message by itself costs one each.
        """
        self._something.set()

    async def _hand_on(self, deliver: Deliver) -> None:
        waiting = self._waiting
        until_pass = _PASS
        while True:
            while waiting:
                channel, data = waiting.popleft()
                self._waiting_bytes -= len(data)
                envelope = self._read(channel, data)
                if envelope is not None:
                    self.counts.received += 1
                    await deliver(envelope)
                until_pass -= 1
                if not until_pass:
                    until_pass = _PASS
                    await trio.lowlevel.checkpoint()
            self._something = trio.Event()
            await self._something.wait()

    def _read(self, channel: bytes, data: bytes) -> PublishEnvelope | None:
        fault: Fault | Literal["another channel"]
        try:
            envelope = decode_envelope(
                data, foreign=self._foreign, max_bytes=self.limits.max_envelope_bytes, max_depth=_MAX_DEPTH
            )
            if (self._prefix + envelope.topic).encode() == channel:
                return envelope
            fault = "another channel"
        except BadEnvelope as bad:
            fault = bad.fault
        times = self.counts.bad[fault] = self.counts.bad.get(fault, 0) + 1
        if not times & (times - 1):  # whoever sends one sends more: tell 1, 2, 4, 8, …
            logger.warning("skipped what came over Redis on %r: %s; %d so far", channel[:200], fault, times)
        return None

    # --- the links ---------------------------------------------------------------------------------------------------

    async def run(self, deliver: Deliver, task_status: trio.TaskStatus[None]) -> None:
        """Connect, subscribe to all that is wanted, and hand on what comes, until a link is lost.

        Raises:
            PubSubError: ADAPTER_ERROR: the link is lost, or could not be opened.
            RuntimeError: it runs already.

        Cancelled: the links are closed.
        """
        if self._is_running:
            raise RuntimeError("it runs already: one run() at a time")
        self._is_running = True
        if self._down_since is None:
            self._down_since = trio.current_time()
        ended: list[Exception] = []

        async def guard(work: Callable[[], Any]) -> None:
            try:
                await work()
            except Exception as error:
                ended.append(error)
                nursery.cancel_scope.cancel()

        async def main() -> None:
            await self._listen(nursery, guard)
            task_status.started()
            await self._hand_on(deliver)

        try:
            async with trio.open_nursery() as nursery:
                await guard(main)
        finally:
            if self._ear_of is not None:
                self._ear_of = None
                self._down_since = trio.current_time()
            self._is_running = False
            self._waiting.clear()
            self._waiting_bytes = 0
        if ended:
            raise ended[0]

    async def _listen(self, nursery: trio.Nursery, guard: Callable[[Callable[[], Any]], Any]) -> None:
        """Open the links, and return when all that is wanted is heard."""
        link = await self._servers.connect(nursery)
        slots = await self._servers.slots(link) if self._is_sharded else None
        ears: dict[Address | None, _Ear] = {}
        if slots is None:
            ears[None] = _Ear(link, self, by_slot=False)
        else:
            link.cut()
            for address in dict.fromkeys(address for _, _, address in slots):
                ears[address] = _Ear(await self._servers.connect(nursery, address), self, by_slot=True)

        def ear_of(name: Name) -> _Ear:
            if slots is None:
                return ears[None]
            slot = slot_of(name.name)
            for lowest, highest, address in slots:
                if lowest <= slot <= highest:
                    return ears[address]
            raise lost(f"no node of the cluster has slot {slot}")

        for ear in ears.values():
            nursery.start_soon(guard, ear.read)
        for name in self.wanted:
            ear_of(name).touch(name)
        self._ear_of = ear_of
        for ear in ears.values():
            await ear.settle()
            nursery.start_soon(guard, ear.tend)
