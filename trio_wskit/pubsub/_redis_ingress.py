"""The way in over Redis: what is subscribed to on the server follows what is wanted here, and what comes is handed on.

For each link there are two tasks. One reads: it never waits for anybody, for what it does not read grows in coredis,
without a bound; it puts what comes into a hand-over that has one, and where that is full the link is given up. The
other makes the server's subscriptions what they should be, a batch at a time, and pings. Whatever goes wrong with a
link ends the run, and with it all links: whoever supervises it then begins a new epoch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal, TypeAlias, final

import attrs
import trio

from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._core.redis_envelope import BadEnvelope, Fault, decode_envelope
from trio_wskit._core.sharding import slot_of
from trio_wskit.abc import Deliver
from trio_wskit.errors import PubSubError
from trio_wskit.pubsub._redis_ear import Ear, Name
from trio_wskit.pubsub._redis_link import Address, Servers, Slots, lost

__all__ = ["Ingress", "IngressCounts", "IngressLimits"]

logger = logging.getLogger("trio_wskit")

_PASS: Final = 64  # envelopes after which others run, where none of them made us wait
_MAX_DEPTH: Final = 200


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


Guard: TypeAlias = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Runs a task whose failure ends the run."""


@final
class _Wait:
    """Somebody waits for a name to be heard."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = None


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
        self.limits: IngressLimits = limits
        self.counts: IngressCounts = IngressCounts()
        self.wanted: set[Name] = set()
        self._waits: dict[Name, list[_Wait]] = {}
        self._ear_of: Callable[[Name], Ear] | None = None
        self._down_since: float | None = None  # None: it has never run
        self._is_running = False
        self._is_hearing = False  # from `started` to the end
        self._wake_at = max(1, min(_PASS, limits.max_waiting // 2))
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
        ear: Ear | None = None
        if self._ear_of is not None:
            try:
                ear = self._ear_of(name)
            except PubSubError:
                if self.limits.remember:
                    return
                raise
        if ear is not None:
            silent_since = ear.silent_since
            if self._is_hearing and name in ear.heard:
                return  # it is taken out of there before the server is told to stop: so it is still sent
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
        """The server has confirmed it. Before `started` that is not enough: see `take`."""
        if not self._is_hearing:
            return
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

        What comes before `started` belongs to no epoch, and cannot be delivered. It is dropped: to keep it would be to
        overflow where there is much to subscribe to, and never to start.

        Raises:
            PubSubError: it is full.
        """
        if not self._is_hearing:
            return
        waiting = self._waiting
        limits = self.limits
        self._waiting_bytes += len(data)
        if len(waiting) >= limits.max_waiting or self._waiting_bytes > limits.max_waiting_bytes:
            self.counts.overflows += 1
            raise lost(
                f"more comes from Redis than is delivered: {len(waiting)} messages of {self._waiting_bytes} bytes wait"
            )
        waiting.append((channel, data))
        if len(waiting) >= self._wake_at:
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

        async def guard(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except Exception as error:
                ended.append(error)
                nursery.cancel_scope.cancel()

        async def main() -> None:
            await self._listen(nursery, guard)
            self._is_hearing = True
            task_status.started()
            for name in self._waits:
                with suppress(PubSubError):  # its shard is not there
                    if self._ear_of is not None and name in self._ear_of(name).heard:
                        self.is_heard(name)
            await self._hand_on(deliver)

        try:
            async with trio.open_nursery() as nursery:
                await guard(main)
        finally:
            if self._ear_of is not None:
                self._ear_of = None
                self._down_since = trio.current_time()
            self._is_running = self._is_hearing = False
            self._waiting.clear()
            self._waiting_bytes = 0
        if ended:
            raise ended[0]

    async def _listen(self, nursery: trio.Nursery, guard: Guard) -> None:
        """Open the links, and return when all that is wanted is heard."""
        link = await self._servers.connect(nursery)
        slots = await self._servers.slots(link) if self._is_sharded else None
        ears: dict[Address | None, Ear]
        if slots is None:
            ears = {None: Ear(link, self, by_slot=False, patience=self.limits.check_every)}
        else:
            link.cut()
            ears = await self._open_shards(nursery, guard, slots)
        for ear in ears.values():
            nursery.start_soon(guard, ear.read)
        self._ear_of = partial(_ear_of, ears, slots)
        for name in self.wanted:
            with suppress(PubSubError):  # its shard is not there: see `_watch`
                self._ear_of(name).touch(name)
        for ear in ears.values():
            await ear.settle()
            nursery.start_soon(guard, ear.tend)

    async def _open_shards(self, nursery: trio.Nursery, guard: Guard, slots: Slots) -> dict[Address | None, Ear]:
        """Open a link to each node that has slots. One that is not there is waited for, and the others go on."""
        ears: dict[Address | None, Ear] = {}
        missing: dict[Address, PubSubError] = {}

        async def open_shard(address: Address) -> None:
            try:
                link = await self._servers.connect(nursery, address)
            except PubSubError as error:
                missing[address] = error
            else:
                ears[address] = Ear(link, self, by_slot=True, patience=self.limits.check_every)

        async with trio.open_nursery() as opening:
            for address in dict.fromkeys(address for _, _, address in slots):
                opening.start_soon(open_shard, address)
        if not ears:
            raise next(iter(missing.values()), lost("the cluster has no slots"))
        if missing:
            logger.warning("deaf to a part of the cluster: %s", "; ".join(str(error) for error in missing.values()))
            nursery.start_soon(guard, partial(self._watch, slots, list(missing)))
        return ears

    async def _watch(self, slots: Slots, missing: Sequence[Address]) -> None:
        """Wait until a node that was not there is there, or another one in its place.

        Raises:
            PubSubError: so it is. The run ends: what that shard has to say may have been missed.
        """
        is_back = False
        while not is_back:
            await trio.sleep(min(1.0, self.limits.check_every))
            async with trio.open_nursery() as trying:
                with suppress(PubSubError):
                    link = await self._servers.connect(trying)
                    is_back = await self._servers.slots(link) != slots
                for address in missing:
                    with suppress(PubSubError):
                        await self._servers.connect(trying, address)
                        is_back = True
                trying.cancel_scope.cancel()
        raise lost("a part of the cluster that was not there is back")


def _ear_of(ears: dict[Address | None, Ear], slots: Slots | None, name: Name) -> Ear:
    if slots is None:
        return ears[None]
    slot = slot_of(name.name)
    for lowest, highest, address in slots:
        if lowest <= slot <= highest and address in ears:
            return ears[address]
    raise lost("the part of the cluster that has this topic is not there")
