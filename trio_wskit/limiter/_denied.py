"""What is known to be refused without asking: a bucket was seen empty, and only time can fill it."""

from __future__ import annotations

from collections import OrderedDict
from typing import final

import attrs

from trio_wskit._core.bucket import Decision
from trio_wskit.limiter._wire import TICKS_PER_SECOND, WirePolicy

__all__ = ["DenyCache"]


@final
@attrs.frozen
class _Seen:
    policy: WirePolicy
    full_at: int
    tick: int
    asked: float
    answered: float


@final
class DenyCache:
    """The last refusals. Others can only have made those buckets emptier, except by giving back or by a reset.

    Args:
        size: how many are remembered, at least 0; the oldest is forgotten first.
        longest: seconds for which a refusal is believed at most, because of what others may have given back.
    """

    __slots__ = ("_longest", "_seen", "_size")

    def __init__(self, size: int, longest: float) -> None:
        self._size = size
        self._longest = longest
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def refused(self, key: str, policy: WirePolicy, full_at: int, tick: int, *, asked: float, answered: float) -> None:
        """Remember what a refusal has shown.

        Args:
            key: the bucket's name.
            policy: its policy.
            full_at: its instant, in grains.
            tick: its present: some time between our asking and the answer.
            asked: when that was, in our seconds.
            answered: and when the answer came.
        """
        self._seen[key] = _Seen(policy, full_at, tick, asked, answered)
        self._seen.move_to_end(key)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)

    def forget(self, key: str) -> None:
        """The bucket may have more than was seen."""
        self._seen.pop(key, None)

    def refuse(self, key: str, cost: int, now: float) -> Decision | None:
        """The refusal of a request that cannot be granted yet, or None: ask.

        To tell whether it can be granted, the store's time is taken to be as late as it can be: nothing is refused that
        would be granted. To tell how long to wait, as early as it can be: after that, it is there.
        """
        seen = self._seen.get(key)
        if seen is None:
            return None
        latest = seen.tick + round((now - seen.asked) * TICKS_PER_SECOND)
        earliest = seen.tick + round((now - seen.answered) * TICKS_PER_SECOND)
        decision = seen.policy.estimate(cost, seen.full_at, latest, earliest)
        if decision.allowed or now - seen.asked > self._longest:
            del self._seen[key]
            return None
        return decision
