"""Who may watch, who may tell of changes, and who is present because it is subscribed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from trio_wskit._core.patterns import TopicPattern
from trio_wskit.errors import WsKitError
from trio_wskit.presence._messages import PresenceDiff

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.presence._presence import Presence
    from trio_wskit.pubsub._policy import PubSubPolicy

__all__ = ["guard"]


def guard(
    presence: Presence, policy: PubSubPolicy, prefix: str, subscribers: Callable[[Session, str], object] | None
) -> PubSubPolicy:
    """The same rules, and on top of them those of presence.

    The right to subscribe to a topic is the right to watch it. Only the app itself publishes changes. Whoever is not
    subscribed any more is not present any more.

    Args:
        presence: whose rules they are.
        policy: the app's.
        prefix: of the topics to which changes are published.
        subscribers: gives the state of who subscribes; see `Presence`.
    """
    may_subscribe, may_publish = policy.authorise_subscribe, policy.authorise_publish
    subscribed, unsubscribed = policy.on_subscribe, policy.on_unsubscribe

    async def authorise_subscribe(client: Session, topic: str) -> bool:
        assert may_subscribe is not None
        if topic.startswith(prefix):
            watched = topic[len(prefix) :]
            topic = TopicPattern(watched) if isinstance(topic, TopicPattern) else watched
        return await may_subscribe(client, topic)

    async def authorise_publish(client: Session | None, topic: str, message: object) -> bool:
        if topic.startswith(prefix):
            return client is None and isinstance(message, PresenceDiff)
        return may_publish is None or await may_publish(client, topic, message)

    def on_subscribe(client: Session, topic: str) -> None:
        if subscribed is not None:
            subscribed(client, topic)
        if subscribers is None or topic.startswith(prefix) or isinstance(topic, TopicPattern):
            return
        state = subscribers(client, topic)
        if state is not None:
            try:
                presence.enter(client.client_id, client.identity, topic, state)
            except WsKitError as error:  # it is subscribed all the same, and the client is told
                client.refuse(error, None)

    def on_unsubscribe(client: Session, topic: str) -> None:
        presence.exit(client.client_id, topic)
        if unsubscribed is not None:
            unsubscribed(client, topic)

    return attrs.evolve(
        policy,
        authorise_subscribe=None if may_subscribe is None else authorise_subscribe,
        authorise_publish=authorise_publish,
        on_subscribe=on_subscribe,
        on_unsubscribe=on_unsubscribe,
    )
