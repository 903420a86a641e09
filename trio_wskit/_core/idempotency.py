"""Which answers are remembered, and for how long: a window over idempotency keys, bounded in every direction.

Rules
- A key is forgotten when it is older than `max_age`, or when there is no room: the oldest goes first.
- The present is what the caller says. A clock that goes back makes nothing younger: entries stay in the order in which
  they came, and each leaves after those before it.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Any, Final, NamedTuple, cast, final

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.json_text import dumps, loads
from trio_wskit.errors import CODES, PayloadInvalid, WsKitError

__all__ = ["Recorded", "Window", "answer_for", "fingerprint", "is_final"]

_OVERHEAD: Final = 400
"""Bytes that an entry takes beside its key and its answer, counted so that many small ones are bounded, too."""


class Recorded(NamedTuple):
    """What is known of a key.

    Attributes:
        fingerprint: of the request that the answer belongs to; see `fingerprint`.
        answer: the whole encoded answer, with the meta that the first caller got.
    """

    fingerprint: bytes
    answer: bytes


@final
class Window:
    """The answers of the last while.

    Args:
        max_keys: how many answers are kept.
        max_bytes: how many bytes they take together; an answer that is larger alone is not kept.
        max_age: seconds.
    """

    __slots__ = ("_bytes", "_entries", "_max_age", "_max_bytes", "_max_keys", "_order")

    def __init__(self, max_keys: int, max_bytes: int, max_age: float) -> None:
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._entries: dict[str, Recorded] = {}
        self._order: deque[tuple[float, str]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What the entries take."""
        return self._bytes

    def find(self, key: str, now: float) -> Recorded | None:
        """What is recorded of the key, if anything."""
        self._forget_old(now)
        return self._entries.get(key)

    def add(self, key: str, recorded: Recorded, now: float) -> None:
        """Record an answer; the first one of a key stays."""
        self._forget_old(now)
        size = _size(key, recorded)
        if key in self._entries or size > self._max_bytes:
            return
        while len(self._entries) >= self._max_keys or self._bytes + size > self._max_bytes:
            self._forget_oldest()
        self._entries[key] = recorded
        self._order.append((now, key))
        self._bytes += size

    def _forget_old(self, now: float) -> None:
        order = self._order
        while order and now - order[0][0] >= self._max_age:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, key = self._order.popleft()
        self._bytes -= _size(key, self._entries.pop(key))


def _size(key: str, recorded: Recorded) -> int:
    return _OVERHEAD + len(key) + len(recorded.answer)


def fingerprint(envelope: Envelope) -> bytes:
    """What makes two requests the same: the type and the payload, whatever the order of its keys."""
    text = dumps(_sorted([envelope.type, envelope.payload is ABSENT, _plain(envelope.payload)]))
    return blake2b(text, digest_size=16).digest()


def _plain(payload: Any) -> Any:
    return None if payload is ABSENT else payload


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return {key: _sorted(items[key]) for key in sorted(items)}
    if isinstance(value, list):
        each: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return [_sorted(one) for one in each]
    return value


def answer_for(answer: bytes, correlation_id: str | None, timestamp_ms: int) -> bytes:
    """The recorded answer, addressed to who asks now."""
    message: dict[str, Any] = loads(answer)
    meta: dict[str, Any] = message["meta"]
    meta["timestamp"] = timestamp_ms
    meta.pop("correlationId", None)
    if correlation_id is not None:
        meta["correlationId"] = correlation_id
    return dumps(message)


def is_final(error: WsKitError) -> bool:
    """Whether the same request would fail in the same way again, so that this is its answer for good.

    Not what may be tried again, what the server is to blame for, what was cancelled, or what never reached the handler.
    """
    if error.retryable is not None:
        return not error.retryable
    if isinstance(error, PayloadInvalid) or error.code == "CANCELLED":
        return False
    rule = CODES.get(error.code)
    return rule is None or rule.retryable is False
