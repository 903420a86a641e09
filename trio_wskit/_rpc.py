"""One call: a request with a correlation id, and the one answer that it gets."""

from __future__ import annotations

from typing import final

__all__ = ["Call"]


@final
class Call:
    """What a context knows of its call.

    Attributes:
        correlation_id: the client's name for it; None where it gave none (it then gets an uncorrelated reply).
        answered: True from the one terminal answer on; nothing may follow it.
        answer: the frame of its reply, once there is one; for a store of answers.
        next_progress: `trio.current_time` before which a throttled progress is dropped.
    """

    __slots__ = ("answer", "answered", "correlation_id", "next_progress")

    def __init__(self, correlation_id: str | None) -> None:
        self.correlation_id: str | None = correlation_id
        self.answered: bool = False
        self.answer: bytes | None = None
        self.next_progress: float = float("-inf")
