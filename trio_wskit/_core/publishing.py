"""What is published, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, final

import attrs

from trio_wskit._core.history import Position
from trio_wskit._core.json_text import dumps, loads

__all__ = [
    "LOCAL_META",
    "Capability",
    "Matching",
    "PublishEnvelope",
    "PublishErrorCode",
    "PublishResult",
    "Written",
    "message_of",
]

Capability = Literal["exact", "estimate", "unknown"]
Matching = Literal["exact", "prefix", "pattern"]
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


LOCAL_META: Final = "excludeClientId"
"""ws-kit's servers tell one another by it whom to leave out; no client may see it."""


@final
class Written:
    """A message as it was encoded, from which its payload can be cut: that costs nothing until somebody asks.

    Args:
        message: the whole message, its keys in the order type, meta, payload.
        type_name: its type.
        meta: its meta.
    """

    __slots__ = ("_message", "_meta", "_type")

    def __init__(self, message: bytes, type_name: str, meta: Mapping[str, Any]) -> None:
        self._message = message
        self._type = type_name
        self._meta = meta

    @property
    def payload(self) -> bytes | None:
        """The payload, byte for byte; None where the message has none."""
        head = _head(self._type, self._meta)
        message = self._message
        if not message.startswith(head):  # somebody has changed the meta since
            root: dict[str, Any] = loads(message)
            return dumps(root["payload"]) if "payload" in root else None
        rest = message[len(head) : -1]
        return rest[len(_PAYLOAD) :] if rest else None


_PAYLOAD: Final = b',"payload":'


def _head(type_name: str, meta: Mapping[str, Any]) -> bytes:
    return b'{"type":%b,"meta":%b' % (dumps(type_name), dumps(dict(meta)))


def message_of(type_name: str, meta: Mapping[str, Any], payload: bytes | None) -> bytes:
    """Put a message together again: what it was before its payload was cut out, byte for byte.

    Raises:
        TypeError: the meta is not JSON.
    """
    if payload is None:
        return _head(type_name, meta) + b"}"
    return b"%b%b%b}" % (_head(type_name, meta), _PAYLOAD, payload)


def _cut(payload: bytes | Written | None) -> bytes | None:
    return payload.payload if isinstance(payload, Written) else payload


@final
@attrs.frozen
class PublishEnvelope:
    """One message on its way to a topic.

    Attributes:
        topic: where it goes.
        type: the message's type on the wire.
        meta: what the publisher added, as plain JSON values.
        exclude: the client id that shall not get it, if any.
        partition_key: messages with the same key keep their order, for drivers that divide their topics.
        origin: the process that published it, by an id of its own; None where nobody else needs to know.
        id: with `origin`, which of all messages this is; None where that is not known.
    """

    topic: str
    type: str
    _payload: bytes | Written | None = attrs.field(default=None, alias="payload", eq=_cut, repr=False)
    meta: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    exclude: str | None = None
    partition_key: str | None = None
    origin: str | None = None
    id: str | None = None

    @property
    def payload(self) -> bytes | None:
        """The payload as the bytes of its JSON; None where the message has none.

        On the side of the publisher it is cut out of the encoded message when it is asked for, so ask once.
        """
        return _cut(self._payload)

    def stamped(self, origin: str, id: str) -> PublishEnvelope:  # noqa: A002 - the attribute's name
        """The same with an origin and an id."""
        return PublishEnvelope(
            self.topic, self.type, self._payload, self.meta, self.exclude, self.partition_key, origin, id
        )


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
        blocked: outboxes here for which the publish had to wait.
        written: outboxes here that had handed it to the system when the publish was over; None where no quorum was
            asked for.
        matching: the widest kind of subscription among those that matched here: the topic's own name, a pattern whose
            only star is the ``**`` at its end, or any other pattern.
        error: on failure, why.
        retryable: on failure, whether the same publish may succeed later.
        details: on failure, more about it.
        cause: on failure, the exception behind it, if there was one.
        position: where it stands in the topic's history; None where there is none, or where that has failed.
    """

    ok: bool
    capability: Capability = "exact"
    matched_local: int = 0
    delivered: int = 0
    dropped: int = 0
    conflated: int = 0
    blocked: int = 0
    written: int | None = None
    matching: Matching = "exact"
    error: PublishErrorCode | None = None
    retryable: bool = False
    details: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    cause: BaseException | None = None
    position: Position | None = None

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
