"""Handlers for the messages by which `trio_wskit.client` subscribes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_wskit._core.subscribing import Subscribe, Subscribed, Unsubscribe, Unsubscribed

if TYPE_CHECKING:
    from trio_wskit._context import Context
    from trio_wskit._router import Router

__all__ = ["default_subscriptions"]


def default_subscriptions(router: Router, *, gaps: bool = True) -> None:
    """Answer ``SUBSCRIBE`` and ``UNSUBSCRIBE``, so that ``client.subscribed(topic, …)`` works as it is.

    Every client may then ask for every topic by its name: let `PubSubPolicy.authorise_subscribe` decide who gets it.

    ``SUBSCRIBE {topic, since?: {epoch, offset}}`` is answered with ``SUBSCRIBED {topic, recovered?, epoch?, offset?}``.
    ``recovered`` is there where ``since`` was: true where all that was missed went out before this answer, in order.
    ``epoch`` and ``offset`` are there where the topic keeps a history.

    Args:
        router: gets the two handlers.
        gaps: tell subscribers of topics without a history by ``$ws:gap`` where messages are missing. With a history
            they see it by the offsets.

    Raises:
        ConfigError: it has handlers for these types.
    """

    async def subscribe(ctx: Context[Subscribe]) -> Subscribed:
        topic, since = ctx.payload.topic, ctx.payload.since
        if ctx.topics.keeps_history(topic):  # then the client sees by the offsets what is missing
            recovery = await ctx.topics.subscribe(topic, since=since)
        else:  # maybe it keeps none any more: the client shall know that, and get what is new
            recovery = await ctx.topics.subscribe(topic, gaps=gaps)
        recovered = None if since is None else recovery.recovered
        if recovery.position is None:
            return Subscribed(topic, recovered)
        return Subscribed(topic, recovered, recovery.position.epoch, recovery.position.offset)

    async def unsubscribe(ctx: Context[Unsubscribe]) -> Unsubscribed:
        await ctx.topics.unsubscribe(ctx.payload.topic)
        return Unsubscribed(ctx.payload.topic)

    router.rpc(Subscribe)(subscribe)
    router.rpc(Unsubscribe)(unsubscribe)
