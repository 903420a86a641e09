"""What the tests of histories share."""

from __future__ import annotations

from typing import Any, Final

from tests.sessions import Client, House, Said
from trio_wskit._core.history import History, Position

__all__ = ["KEEP", "T", "offsets", "say"]

KEEP: Final = {"kept:*": History(size=5, ttl=60)}
T: Final = "kept:1"


async def say(house: House, *texts: str, topic: str = T, **options: Any) -> Position:
    """Publish some, and give the position of the last."""
    position = None
    for text in texts:
        result = await house.app.publish(topic, Said(text), **options)
        assert result.ok, result
        position = result.position
    assert position is not None
    return position


async def offsets(client: Client) -> list[int]:
    """Of each message among what was heard."""
    return [one["meta"]["offset"] for one in await client.heard()]
