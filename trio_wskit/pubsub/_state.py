"""What one client has of topics, and what an operation changed."""

from __future__ import annotations

from typing import final

import attrs

from trio_wskit.pubsub._turns import Turns

__all__ = ["State", "TopicChange"]


@final
@attrs.frozen
class TopicChange:
    """What a batch changed.

    Attributes:
        added: topics that are new.
        removed: topics that are gone.
        total: topics that the client has now.
    """

    added: int
    removed: int
    total: int


@final
class State:
    """What a client has from its first subscription on."""

    __slots__ = ("doubtful", "names", "scopes", "turns")

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.turns = Turns()
        self.doubtful: set[str] | None = None  # the driver may think otherwise
        self.scopes: dict[str, tuple[int, bool]] | None = None  # how many, and whether it was subscribed before them

    def is_new(self, name: str) -> bool:
        """True where the driver must be asked to subscribe."""
        return name not in self.names or (self.doubtful is not None and name in self.doubtful)

    def is_held(self, name: str) -> bool:
        """True where the driver must be asked to unsubscribe."""
        return name in self.names or (self.doubtful is not None and name in self.doubtful)
