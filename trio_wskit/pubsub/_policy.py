"""Who may subscribe and publish, and what a topic is called: decided in one place for every way in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

import attrs

if TYPE_CHECKING:
    from trio_wskit._session import Session

__all__ = ["PubSubPolicy"]


@final
@attrs.frozen(kw_only=True)
class PubSubPolicy:
    """The rules of an App for its topics, the same for `Context`, `Session` and `App`.

    Attributes:
        normalise: gives the name that a topic is known by, such as ``str.lower``. It sees every topic and pattern
            first; what it returns is given to nothing else twice, so it need not be idempotent.
        authorise_subscribe: ``async def (client, topic) -> bool``; False refuses with ACL_SUBSCRIBE. It is asked for
            each new topic or pattern of a batch, before anything has changed. A `WsKitError` it raises is the refusal.
        authorise_publish: ``async def (client, topic, message) -> bool``; client is None where the App itself
            publishes. False, or whatever it raises, is a failure ACL_PUBLISH in the result.
        on_subscribe: called with the client and the topic once it is subscribed. It never waits; what it raises is
            logged.
        on_unsubscribe: the same, once it is unsubscribed; also when the client leaves.
    """

    normalise: Callable[[str], str] | None = None
    authorise_subscribe: Callable[[Session, str], Awaitable[bool]] | None = None
    authorise_publish: Callable[[Session | None, str, object], Awaitable[bool]] | None = None
    on_subscribe: Callable[[Session, str], object] | None = None
    on_unsubscribe: Callable[[Session, str], object] | None = None
