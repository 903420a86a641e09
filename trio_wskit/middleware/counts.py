"""What a rate limit has done so far: plain numbers that only grow, for a page of metrics to read when it is asked."""

from __future__ import annotations

from typing import final

import attrs

from trio_wskit._core.bucket import Decision

__all__ = ["RateLimitCounts"]


@final
@attrs.define(eq=False)
class RateLimitCounts:
    """The counters of one `rate_limit` or `limit_handshakes`; read them whenever you like.

    Each message or handshake is counted once, in one of the first four; one that is cancelled while it asks, in none.

    Attributes:
        passed: let through, what cost nothing among them.
        refused: came too soon; their clients were told when to come back.
        impossible: cost more than a bucket holds, and never pass.
        failed: were not decided: the limiter raised, or a function for key or cost did, or gave no cost.
        spent: tokens paid, all budgets together.
    """

    passed: int = 0
    refused: int = 0
    impossible: int = 0
    failed: int = 0
    spent: int = 0

    def turned_away(self, decision: Decision) -> None:
        """Count a refusal: for now, or for good."""
        if decision.retry_after is None:
            self.impossible += 1
        else:
            self.refused += 1
