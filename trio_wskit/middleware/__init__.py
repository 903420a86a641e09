"""Middleware that many apps need, one file each: ``router.use(require_authenticated())``."""

from __future__ import annotations

from trio_wskit.middleware.auth import require_authenticated as require_authenticated
from trio_wskit.middleware.auth import require_permission as require_permission
from trio_wskit.middleware.counts import RateLimitCounts as RateLimitCounts
from trio_wskit.middleware.handshakes import HandshakeLimit as HandshakeLimit
from trio_wskit.middleware.handshakes import limit_handshakes as limit_handshakes
from trio_wskit.middleware.handshakes import remote_address as remote_address
from trio_wskit.middleware.keys import address_key as address_key
from trio_wskit.middleware.keys import per_address as per_address
from trio_wskit.middleware.keys import per_connection as per_connection
from trio_wskit.middleware.keys import per_user as per_user
from trio_wskit.middleware.keys import per_user_per_type as per_user_per_type
from trio_wskit.middleware.rate_limit import Budget as Budget
from trio_wskit.middleware.rate_limit import Cost as Cost
from trio_wskit.middleware.rate_limit import Key as Key
from trio_wskit.middleware.rate_limit import RateLimit as RateLimit
from trio_wskit.middleware.rate_limit import rate_limit as rate_limit
