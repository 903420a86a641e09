"""What a client counts."""

from __future__ import annotations

from typing import final

import attrs

__all__ = ["ClientStats"]


@final
@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has counted.

    Attributes:
        attempts: to connect.
        connects: connections that were opened.
        pending: requests that wait for their answer.
        queued: messages in the offline queue.
        queue_dropped: messages that the offline queue dropped or refused.
        late: answers that came twice, or after their request had been settled.
        unhandled: messages that nobody wanted.
        refused: messages that could not be read, or did not fit their class.
        retries: requests that were sent again.
    """

    attempts: int
    connects: int
    pending: int
    queued: int
    queue_dropped: int
    late: int
    unhandled: int
    refused: int
    retries: int
