"""The server's side of subscriptions, as a test plays it."""

from __future__ import annotations

from typing import Any

from tests.client.links import News, Server, settle
from trio_wskit.client import Client, Stream
from trio_wskit.client._gate import Gate

__all__ = ["asked", "confirm", "gate_of", "much_news", "news", "taken"]


def gate_of(client: Client) -> Gate:
    inside: Any = client
    gate: Gate = inside._receiver.gate
    return gate


async def asked(server: Server, kind: str = "SUBSCRIBE") -> tuple[dict[str, Any], str]:
    """The next question's payload and correlation id."""
    question = await server.receive()
    assert question["type"] == kind, question
    return question["payload"], question["meta"]["correlationId"]


async def confirm(server: Server, epoch: str | None = "e", offset: int = 0, **more: Any) -> dict[str, Any]:
    """Answer a subscription with a position, and give what was asked."""
    payload, name = await asked(server)
    position = {} if epoch is None else {"epoch": epoch, "offset": offset}
    server.send("SUBSCRIBED", {"topic": payload["topic"], **position, **more}, id=name)
    return payload


def news(server: Server, *offsets: int, epoch: str = "e", kind: str = "NEWS") -> None:
    """Send messages whose text is their offset."""
    for offset in offsets:
        server.send(kind, {"text": str(offset)}, meta={"epoch": epoch, "offset": offset})


async def much_news(server: Server, offsets: range, epoch: str = "e") -> None:
    """The same, more than a link holds at once."""
    for offset in offsets:
        news(server, offset, epoch=epoch)
        if offset % 500 == 0:
            await settle()
    await settle()


async def taken(stream: Stream[Any]) -> list[Any]:
    """All that has come; the texts of news."""
    await settle()
    return [
        item.text if isinstance(item, News) else item for item in [await stream.receive() for _ in range(len(stream))]
    ]
