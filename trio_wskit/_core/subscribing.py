"""The default messages by which a client subscribes and unsubscribes; servers and clients share them."""

from __future__ import annotations

from trio_wskit._core.history import Position
from trio_wskit._core.schema import Rpc, message

__all__ = ["Subscribe", "Subscribed", "Unsubscribe", "Unsubscribed"]


@message("SUBSCRIBED")
class Subscribed:
    """The answer to `Subscribe`.

    Attributes:
        topic: its name.
        recovered: whether all that came after ``since`` is on its way; None where that was not asked for.
        epoch: of the position; None where the topic keeps no history, or nobody knows.
        offset: of the newest message that the client gets, or has missed.
    """

    topic: str
    recovered: bool | None = None
    epoch: str | None = None
    offset: int | None = None


@message("SUBSCRIBE")
class Subscribe(Rpc[Subscribed]):
    """The default message that asks for a topic. The server's handler calls ``ctx.topics.subscribe``.

    Attributes:
        topic: its name.
        since: what the client has had; only for topics of which it knows that they keep a history.
    """

    topic: str
    since: Position | None = None


@message("UNSUBSCRIBED")
class Unsubscribed:
    """The answer to `Unsubscribe`."""

    topic: str


@message("UNSUBSCRIBE")
class Unsubscribe(Rpc[Unsubscribed]):
    """The default message that ends what `Subscribe` began."""

    topic: str
