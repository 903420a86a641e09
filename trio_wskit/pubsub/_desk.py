"""What the topics of all clients share: the driver, the rules, the policy, and how many places a topic has left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, final

from trio_wskit._core.patterns import TopicPattern, pattern_fault
from trio_wskit._core.terms import TermsBook
from trio_wskit._core.topics import TopicRules
from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import PubSubError, WsKitError
from trio_wskit.pubsub._policy import PubSubPolicy

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.pubsub._history import Histories

__all__ = ["Desk"]

logger = logging.getLogger("trio_wskit")


@final
class Desk:
    """One for each app.

    Args:
        driver: knows the subscriptions.
        rules: bounds of names and numbers.
        policy: who may do what.
        client_of: the client with this id; None once it has left.
        terms: what clients asked for when they subscribed.

    Attributes:
        histories: the topics that keep a history; None where none does.
    """

    __slots__ = ("_client_of", "_subscribers", "driver", "histories", "policy", "rules", "terms")

    def __init__(
        self,
        driver: PubSubDriver,
        rules: TopicRules,
        policy: PubSubPolicy,
        client_of: Callable[[str], Session | None],
        terms: TermsBook | None = None,
    ) -> None:
        self.driver: PubSubDriver = driver
        self.rules: TopicRules = rules
        self.policy: PubSubPolicy = policy
        self.terms: TermsBook = TermsBook() if terms is None else terms  # an empty one is false
        self.histories: Histories | None = None
        self._client_of = client_of
        self._subscribers: dict[str, int] = {}  # of each topic; only counted where there is a limit

    def normalise(self, topic: str) -> str:
        """The name that the topic is known by. A pattern stays one."""
        normalise = self.policy.normalise
        if normalise is None:
            return topic
        return TopicPattern(normalise(topic)) if isinstance(topic, TopicPattern) else normalise(topic)

    def check(self, topic: str) -> None:
        """Refuse what nobody can subscribe to.

        Raises:
            PubSubError: INVALID_TOPIC.
        """
        if isinstance(topic, TopicPattern):
            if "*" in topic:
                self.rules.check_pattern(topic, pattern_fault(topic))
                return
            raise PubSubError("INVALID_TOPIC", f"a pattern has a star, {topic!r} has none", {"why": "pattern"})
        self.rules.check(topic)

    async def authorise(self, client_id: str, topics: Iterable[str]) -> None:
        """Refuse what the client may not subscribe to.

        Raises:
            PubSubError: ACL_SUBSCRIBE; CONNECTION_CLOSED when the client has left.
        """
        allows = self.policy.authorise_subscribe
        if allows is None:
            return
        for topic in topics:
            client = self._client_of(client_id)
            if client is None:
                raise PubSubError("CONNECTION_CLOSED", "the client has left")
            if not await allows(client, topic):
                raise PubSubError("ACL_SUBSCRIBE", f"no right to subscribe to {topic!r}", {"topic": topic})

    async def revoked(self, client_id: str, topics: Iterable[str]) -> list[str]:
        """Those of the topics to which the client may not subscribe any more."""
        refused: list[str] = []
        for topic in topics:
            try:
                await self.authorise(client_id, (topic,))
            except WsKitError:
                refused.append(topic)
        return refused

    def take_places(self, topics: Iterable[str]) -> None:
        """Count one more subscriber of each topic, or of none.

        Raises:
            PubSubError: TOPIC_LIMIT_EXCEEDED.
        """
        limit = self.rules.max_subscribers
        if limit is None:
            return
        topics = tuple(topics)
        for topic in topics:
            if self._subscribers.get(topic, 0) >= limit:
                raise PubSubError(
                    "TOPIC_LIMIT_EXCEEDED",
                    f"{topic!r} has {limit} subscribers, and may have no more",
                    {"limit": limit, "topic": topic},
                )
        for topic in topics:
            self._subscribers[topic] = self._subscribers.get(topic, 0) + 1

    def free_places(self, topics: Iterable[str]) -> None:
        """Undo `take_places`."""
        if self.rules.max_subscribers is None:
            return
        for topic in topics:
            left = self._subscribers[topic] - 1
            if left:
                self._subscribers[topic] = left
            else:
                del self._subscribers[topic]

    def tell(self, client_id: str, subscribed: Iterable[str], unsubscribed: Iterable[str]) -> None:
        """What is unsubscribed has no terms any more; and call the policy's hooks."""
        self.terms.forget(client_id, unsubscribed)
        policy = self.policy
        if policy.on_subscribe is None and policy.on_unsubscribe is None:
            return
        client = self._client_of(client_id)
        if client is None:
            return
        for hook, topics in ((policy.on_unsubscribe, unsubscribed), (policy.on_subscribe, subscribed)):
            if hook is None:
                continue
            for topic in topics:
                try:
                    hook(client, topic)
                except Exception:
                    logger.exception("a hook failed for topic %s and client %s", topic, client_id)
