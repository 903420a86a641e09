"""The buckets of one policy, in memory: a dict of integers, cut into shards so that nothing ever takes long.

Rules:
- A bucket that is full again is the same as no bucket: `full_at` in the past means full, and so does absence.
- Every shard is a dict of a few thousand buckets. To sweep it is to copy what is not full, about a millisecond; no
  other step visits more than one bucket. (One dict of a million keys stops everything for 50 ms when it grows.)
- A shard is swept when it has doubled since its last sweep, so a new key pays for looking at one old one; and all of
  them in turn, as time passes, so that buckets which nobody uses any more go as well.
- A bucket with open reservations leaves its shard for `_ledgers`, so the quick path has nothing to check.
- No await, and so no lock: every method is one atomic step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

import attrs

from trio_wskit._core.bucket import Decision, Grid, Policy, check_cost, seconds_until, take
from trio_wskit._core.reservations import Ledger
from trio_wskit.limiter._run_clock import clock_of_this_run

__all__ = ["Buckets", "Ticket"]

TICKS_PER_SECOND: Final = 1e9
_SHARD_KEYS: Final = 4096
_SMALL: Final = 64
_MILLISECOND: Final = 1_000_000
# A decision that allows says how much is left and nothing else, so it need not be made anew each time.
_ALLOWED: Final = tuple(Decision(True, remaining, 0.0) for remaining in range(1024))
# CPython has one 1, so the usual cost is told from all others by identity, and no bool passes for it. Where an
# interpreter has several, a cost of 1 takes the longer way.
_ONE: Final = 1
# Half the time of calling the class, which is a function around this.
_new: Callable[[type[Decision], tuple[bool, int, float | None]], Decision]
_new = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@final
@attrs.frozen
class Ticket:
    """An open reservation: which bucket, which ledger, which number in it."""

    key: str
    ledger: Ledger
    number: int


class Buckets:
    """All buckets of one policy. `MemoryRateLimiter`, its public face, says what the arguments mean."""

    __slots__ = (
        "__weakref__",
        "_burst",
        "_clock",
        "_cursor",
        "_grid",
        "_latest",
        "_ledgers",
        "_limit",
        "_mask",
        "_next_full",
        "_per_tick",
        "_per_token",
        "_policy",
        "_room",
        "_run",
        "_run_of",
        "_shards",
        "_sweep_at",
        "_sweep_every",
        "_tick",
    )

    def __init__(
        self, policy: Policy, clock: Callable[[], float], max_keys: int, run_of: Callable[[], object] | None = None
    ) -> None:
        self._policy = policy
        self._clock = clock
        # Whose time it is: where that is another's, everything begins anew, and that run's own clock is read until it
        # ends. None: it is always the same.
        self._run_of = run_of
        self._run: object = None
        grid = self._grid = Grid.of(policy, round(TICKS_PER_SECOND))
        self._per_tick = grid.grains_per_tick
        self._per_token = grid.grains_per_token
        self._burst = grid.burst
        shards = 1
        while shards * _SHARD_KEYS < max_keys:
            shards *= 2
        self._mask = shards - 1
        self._limit = max_keys // shards
        self._shards: list[dict[str, int]] = [{} for _ in range(shards)]
        self._room = [min(_SMALL, self._limit)] * shards
        self._next_full = [0] * shards
        self._ledgers: dict[str, Ledger] = {}
        # The present: the latest that the clock has shown, for a clock that goes back stands still here. In ticks it is
        # set by `_set_clock` alone; the quick path has no use for that.
        self._latest: float = -math.inf
        self._tick = 0
        # Once round in the time that an empty bucket takes to fill, but neither in a hurry nor idle.
        fill = grid.burst // (grid.grains_per_tick * shards)
        self._sweep_every = min(max(fill, 20 * _MILLISECOND), 1000 * _MILLISECOND) / TICKS_PER_SECOND
        self._sweep_at: float = -math.inf
        self._cursor = 0

    def consume_nowait(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` tokens of the bucket `key` if they are there, at once: `consume` for callers that cannot wait.

        Args:
            key: which bucket. One that was never heard of is full.
            cost: tokens, at least 0; 0 spends nothing and tells how much is left.

        Raises:
            WsKitError: INVALID_ARGUMENT: the cost is not an integer, or below 0.
        """
        # This is `bucket.take`, written out: it is called for every message. So is `round`, which looks for the method
        # by its name each time, and takes three times as long.
        now = self._clock()
        grains = self._per_token
        if cost is not _ONE:
            if cost.__class__ is not int or cost < 1:
                return self._look(key, check_cost(cost), now)
            grains *= cost
        if self._latest <= now < self._sweep_at:
            self._latest = now
            tick = (now * 1e9).__round__()
        else:
            tick = self._set_clock(now)
        instant = tick * self._per_tick
        place = hash(key) & self._mask
        shard = self._shards[place]
        full_at = shard.get(key)
        if full_at is None:
            if key in self._ledgers or len(shard) >= self._room[place]:
                return self._take_slowly(key, cost, now)
            full_at = instant
        elif full_at < instant:
            full_at = instant
        full_at += grains
        spare = instant + self._burst - full_at
        if spare >= 0:
            shard[key] = full_at
            remaining = spare // self._per_token
            return _ALLOWED[remaining] if remaining < 1024 else _new(Decision, (True, remaining, 0.0))
        remaining = spare // self._per_token + cost
        if cost > self._grid.capacity:
            return _new(Decision, (False, remaining, None))
        tick -= spare // self._per_tick
        wait = (tick - (now * 1e9).__round__()) / 1e9
        if ((now + wait) * 1e9).__round__() < tick:
            wait = seconds_until(tick, now, 1e9)
        return _new(Decision, (False, remaining, wait))

    def reset_nowait(self, key: str) -> None:
        """Make the bucket `key` full. What is reserved of it then has nothing to give back."""
        self._ledgers.pop(key, None)
        self._shards[hash(key) & self._mask].pop(key, None)

    def sweep_nowait(self) -> int:
        """Drop every bucket that is full again; returns how many there were.

        Small sweeps happen by themselves when the limiter is used. This one visits all buckets at once, a second for
        ten million: for a limiter that was busy and may never be used again.
        """
        before = self.keys_held()
        self._set_clock(self._clock())
        for place in range(len(self._shards)):
            self._sweep(place)
        return before - self.keys_held()

    def keys_held(self) -> int:
        """How many buckets take up memory: those that are not full, and those that were not when last looked at."""
        return sum(map(len, self._shards)) + len(self._ledgers)

    # --- for the limiter that is made of this: atomic steps at a time that it names ---

    def _look(self, key: str, cost: int, now: float) -> Decision:
        """What spending would be answered; with a cost of 0, how much is left. Nothing is spent."""
        self._set_clock(now)
        instant = self._tick * self._per_tick
        place = hash(key) & self._mask
        ledger = self._ledgers.get(key)
        full_at = self._shards[place].get(key) if ledger is None else ledger.full_at
        if full_at is None:
            full_at = instant
            wants_place = 0 < cost <= self._grid.capacity and len(self._shards[place]) >= self._room[place]
            if wants_place and not self._make_room(place):
                tick = -(-self._next_full[place] // self._per_tick)
                return Decision(False, 0, seconds_until(tick, now, TICKS_PER_SECOND))
        taken = take(self._grid, full_at, self._tick, cost)[1]
        if taken.allowed:
            return Decision(True, taken.remaining, 0.0)
        if taken.due is None:
            return Decision(False, taken.remaining, None)
        return Decision(False, taken.remaining, seconds_until(taken.due, now, TICKS_PER_SECOND))

    def _spend(self, key: str, cost: int) -> None:
        """Spend what `_look` allowed in this same step, even where no place is left for another bucket."""
        instant = self._tick * self._per_tick
        ledger = self._ledgers.get(key)
        if ledger is not None:
            ledger.spend(instant, cost * self._per_token)
            return
        full_at = self._shards[hash(key) & self._mask].get(key, instant)
        self._put(key, max(full_at, instant) + cost * self._per_token)

    def _reserve(self, key: str, cost: int, now: float) -> tuple[Decision, Ticket | None]:
        """Spend on approval. The ticket, there when it is allowed, goes to `_settle`."""
        decision = self._look(key, cost, now)
        if not decision.allowed:
            return decision, None
        instant = self._tick * self._per_tick
        ledger = self._ledgers.get(key)
        if ledger is None:
            full_at = self._shards[hash(key) & self._mask].pop(key, instant)
            ledger = self._ledgers[key] = Ledger(full_at)
        return decision, Ticket(key, ledger, ledger.reserve(instant, cost * self._per_token))

    def _settle(self, ticket: Ticket, cost: int) -> None:
        """Close a reservation as if it had been for `cost`. After a reset there is nothing to close."""
        key, ledger = ticket.key, ticket.ledger
        ledger.settle(ticket.number, cost * self._per_token)
        if ledger.open == 0 and self._ledgers.get(key) is ledger:
            del self._ledgers[key]
            self._put(key, ledger.full_at)

    def follow(self, clock: Callable[[], float]) -> None:
        """Read this clock from now on; but not where it is closed, and reads none."""
        if self._run_of is not None:
            self._clock = clock
            self._run = None
            self._sweep_at = -math.inf

    def _clear(self) -> None:
        """Forget every bucket."""
        self._shards = [{} for _ in self._shards]
        self._room = [min(_SMALL, self._limit)] * len(self._shards)
        self._ledgers = {}

    # --- the rare cases ---

    def _set_clock(self, now: float) -> int:
        """Set the present, and sweep if it is time; returns the present in ticks."""
        if not self._latest <= now < self._sweep_at:
            # The first call comes here, a clock that went back, and before long every new run.
            if self._run_of is not None and (run := self._run_of()) is not self._run:
                # Another time, which has nothing to do with the one before.
                self._run = run
                self._latest = self._sweep_at = -math.inf
                self._clear()
                self._clock = clock_of_this_run(self)
            now = max(now, self._latest)
        self._latest = now
        self._tick = round(now * TICKS_PER_SECOND)
        if now >= self._sweep_at:
            self._sweep_at = now + self._sweep_every
            self._cursor = (self._cursor + 1) & self._mask
            self._sweep(self._cursor)
        return self._tick

    def _take_slowly(self, key: str, cost: int, now: float) -> Decision:
        decision = self._look(key, cost, now)
        if decision.allowed:
            self._spend(key, cost)
        return decision

    def _put(self, key: str, full_at: int) -> None:
        place = hash(key) & self._mask
        self._shards[place][key] = full_at
        self._next_full[place] = 0

    def _make_room(self, place: int) -> bool:
        """See to it that the shard has room for one more key; False when all it may hold are in use."""
        crowded = len(self._shards[place]) >= self._limit
        if crowded and self._next_full[place] > self._tick * self._per_tick:
            return False
        self._sweep(place)
        return len(self._shards[place]) < self._limit

    def _sweep(self, place: int) -> None:
        instant = self._tick * self._per_tick
        kept = {key: full_at for key, full_at in self._shards[place].items() if full_at > instant}
        self._shards[place] = kept
        self._room[place] = min(max(2 * len(kept), _SMALL), self._limit)
        # In a crowded shard no bucket can be full before this: none comes in, and those in it are only spent from.
        self._next_full[place] = min(kept.values()) if len(kept) >= self._limit else 0
