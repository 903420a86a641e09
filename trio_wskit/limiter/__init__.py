"""Rate limiters: who may spend how much, decided exactly. One file a store.

`MemoryRateLimiter` is for one process; `trio_wskit.limiter.redis.open_redis_limiter` for many (it needs coredis, so it
is not imported here). See `trio_wskit.abc.RateLimiter` for what every store promises, and
`trio_wskit.testing.check_rate_limiter` for the proof.
"""

from __future__ import annotations

from trio_wskit._core.bucket import Decision as Decision
from trio_wskit._core.bucket import Decisions as Decisions
from trio_wskit._core.bucket import Policy as Policy
from trio_wskit._core.bucket import Spend as Spend
from trio_wskit._core.reservations import Reservation as Reservation
from trio_wskit.limiter.memory import MemoryRateLimiter as MemoryRateLimiter
