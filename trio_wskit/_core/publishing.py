"""What is published, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, final

import attrs

__all__ = ["Capability", "Matching", "Overflow", "PublishEnvelope", "PublishErrorCode", "PublishResult"]

Capability = Literal["exact", "estimate", "unknown"]
Matching = Literal["exact", "prefix", "pattern"]
Overflow = Literal["disconnect", "drop_oldest", "drop_newest"]
PublishErrorCode = Literal[
    "VALIDATION",
    "ACL_PUBLISH",
    "STATE",
    "BACKPRESSURE",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED",
    "CONNECTION_CLOSED",
    "ADAPTER_ERROR",
]

# ws-kit's table: would the same publish have a chance a moment later?
RETRYABLE: Final[Mapping[PublishErrorCode, bool]] = {
    "VALIDATION": False,
    "ACL_PUBLISH": False,
    "STATE": False,
    "BACKPRESSURE": True,
    "PAYLOAD_TOO_LARGE": False,
    "UNSUPPORTED": False,
    "CONNECTION_CLOSED": True,
    "ADAPTER_ERROR": True,
}


@final
@attrs.frozen
class PublishEnvelope:
    """One message on its way to a topic.

    Attributes:
        topic: where it goes.
        type: the message's type on the wire.
        payload: its payload as JSON bytes; None where it has none.
        meta: what the publisher added.
        exclude: the client id that shall not get it, if any.
        partition_key: messages with the same key keep their order, for drivers that divide their topics.
    """

    topic: str
    type: str
    payload: bytes | None = None
    meta: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    exclude: str | None = None
    partition_key: str | None = None


@final
@attrs.frozen(kw_only=True)
class PublishResult:
    """What came of a publish. A publish never raises for what can go wrong at run time: it is told here.

    Attributes:
        ok: True when the driver took the message.
        capability: how well the driver knows ``matched_local``: exact, estimate (at least so many), or unknown.
        matched_local: subscribers on this process; 0 when unknown.
        delivered: outboxes here that took the message.
        dropped: outboxes here that did not, by their overflow policy (a subscriber that was disconnected for being
            slow counts here, and one whose oldest message made room counts as delivered and dropped).
        conflated: outboxes here in which it took the place of an older message with the same key.
        matching: the widest kind of subscription among those that matched here: the topic's own name, a pattern whose
            only star is the ``**`` at its end, or any other pattern.
        error: on failure, why.
        retryable: on failure, whether the same publish may succeed later.
        details: on failure, more about it.
        cause: on failure, the exception behind it, if there was one.
    """

    ok: bool
    capability: Capability = "exact"
    matched_local: int = 0
    delivered: int = 0
    dropped: int = 0
    conflated: int = 0
    matching: Matching = "exact"
    error: PublishErrorCode | None = None
    retryable: bool = False
    details: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    cause: BaseException | None = None

    @staticmethod
    def failure(
        error: PublishErrorCode, cause: BaseException | None = None, details: Mapping[str, Any] | None = None
    ) -> PublishResult:
        """A failure with the retry rule of its code."""
        return PublishResult(
            ok=False,
            capability="unknown",
            error=error,
            retryable=RETRYABLE[error],
            details=details or {},
            cause=cause,
        )
