"""What is known to be refused without asking: a bucket was seen empty, and only time can fill it."""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from trio_wskit._core.bucket import Decision
from trio_wskit.limiter._wire import TICKS_PER_SECOND, WirePolicy

__all__ = ["DenyCache"]


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
        # Key -> (policy, its instant in grains, its present in ticks, and when that was asked for, in our seconds).
        self._seen: OrderedDict[str, tuple[WirePolicy, int, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def refused(self, key: str, policy: WirePolicy, full_at: int, now: int, asked: float) -> None:
        """Remember what a refusal has shown."""
        self._seen[key] = (policy, full_at, now, asked)
        self._seen.move_to_end(key)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)

    def forget(self, key: str) -> None:
        """The bucket may have more than was seen."""
        self._seen.pop(key, None)

    def refuse(self, key: str, cost: int, now: float) -> Decision | None:
        """The refusal of a request that cannot be granted yet, or None: ask.

        The server's time is taken to be as late as it can be, so nothing is refused that would be granted.
        """
        seen = self._seen.get(key)
        if seen is None:
            return None
        policy, full_at, then, asked = seen
        passed = now - asked
        tick = then + max(0, round(passed * TICKS_PER_SECOND) + 1)
        decision = policy.estimate(cost, full_at, tick, tick)
        if decision.allowed or passed > self._longest:
            del self._seen[key]
            return None
        return decision
