"""Middleware that many apps need, one file each: ``router.use(require_authenticated())``."""

from __future__ import annotations

from trio_wskit.middleware.auth import require_authenticated as require_authenticated
from trio_wskit.middleware.auth import require_permission as require_permission
