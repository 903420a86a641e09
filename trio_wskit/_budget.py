"""The bytes that may wait for sockets in a whole process, and who goes when there are more.

Rules
- Only an outbox whose socket did not take everything owes bytes; it says how many whenever that changes.
- Debtors stand in the order of their last progress. Over the budget, the first of them is disconnected, then the next,
  until the rest is within it: whoever takes anything at all outlives those that take nothing.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Final, Protocol, final

from trio_wskit.errors import ConfigError

__all__ = ["DEFAULT_MAX_BYTES", "ByteBudget", "Debtor"]

logger = logging.getLogger("trio_wskit")

DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024


class Debtor(Protocol):
    """An outbox whose socket did not take everything."""

    charged: int

    def evict(self, used: int, limit: float) -> None:
        """Disconnect its client and forget what is queued. Never waits."""
        ...


@final
class ByteBudget:
    """What may wait for the sockets of an App, or of all Apps that share it, in bytes.

    A message that waits in many outboxes counts in each of them, although it is there once: what they keep alive is at
    most so much.

    Args:
        max_bytes: a whole number above 0, or ``math.inf`` for no bound but that of each outbox.

    Attributes:
        max_bytes: the bound.
        evicted: how many connections were disconnected for it.

    Raises:
        ConfigError: `max_bytes` is something else.
    """

    def __init__(self, max_bytes: float = DEFAULT_MAX_BYTES) -> None:
        given: Any = max_bytes
        if given != math.inf and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise ConfigError(f"ByteBudget takes a whole number of bytes above 0, or math.inf, not {given!r}")
        self.max_bytes: float = max_bytes
        self.evicted: int = 0
        self._used = 0
        self._debtors: dict[Debtor, None] = {}  # least progress first

    @property
    def used(self) -> int:
        """Bytes that wait now."""
        return self._used

    @property
    def behind(self) -> int:
        """Connections whose socket does not take everything."""
        return len(self._debtors)

    def charge(self, debtor: Debtor, size: int) -> None:
        """So much waits in this outbox now; 0 when its socket has taken everything. It may be disconnected here."""
        before = debtor.charged
        debtor.charged = size
        self._used += size - before
        if not size:
            self._debtors.pop(debtor, None)
        elif not before:
            self._debtors[debtor] = None  # it has just taken something
        if size > before and self._used > self.max_bytes:
            self._relieve()

    def progressed(self, debtor: Debtor) -> None:
        """The socket of this outbox took something."""
        if debtor in self._debtors:
            del self._debtors[debtor]
            self._debtors[debtor] = None

    def _relieve(self) -> None:
        while self._used > self.max_bytes and self._debtors:
            debtor = next(iter(self._debtors))
            used = self._used
            del self._debtors[debtor]
            self._used -= debtor.charged
            debtor.charged = 0
            self.evicted += 1
            try:
                debtor.evict(used, self.max_bytes)
            except Exception:  # a transport's bug: one connection's failure touches no other
                logger.exception("a connection could not be disconnected")
