"""What happens to a message for a subscriber that does not read fast enough: the policies, as values."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, Final, Literal, cast, final, get_args, overload

import attrs

from trio_wskit._core.codec import decode
from trio_wskit._core.envelope import Envelope
from trio_wskit.errors import ConfigError

__all__ = ["Block", "Conflate", "Overflow", "OverflowName", "block", "check_overflow", "conflate", "may_conflate"]

OverflowName = Literal["disconnect", "drop_oldest", "drop_newest"]
_NAMES: Final = get_args(OverflowName)
_MAX_DEPTH: Final = 1000  # what the JSON library reads


@final
@attrs.frozen
class Conflate:
    """Keep only the newest message of each key for a subscriber that is behind; see `conflate`.

    Attributes:
        key: a function of the message, or the key of all messages.
    """

    key: Callable[[Envelope], object] | object = None

    def key_of(self, message: bytes) -> object:
        """The key of a message as it was encoded. Raises whatever the function raises."""
        if not callable(self.key):
            return self.key
        size = len(message)
        return self.key(decode(message, max_bytes=size, max_depth=_MAX_DEPTH, from_server=True))


@final
@attrs.frozen
class Block:
    """Let the publisher wait for a subscriber that is behind; see `block`.

    Attributes:
        seconds: how long.
        then: what happens to a subscriber that has no room by then.
    """

    seconds: float
    then: Literal["drop_newest", "disconnect"] = "drop_newest"

    def __attrs_post_init__(self) -> None:
        given: Any = self.seconds
        if not isinstance(given, (int, float)) or isinstance(given, bool) or not isfinite(given) or given <= 0:
            raise ConfigError(f"block() takes a finite number of seconds above 0, not {given!r}")
        if self.then not in ("drop_newest", "disconnect"):
            raise ConfigError(f"block(then=…) takes 'drop_newest' or 'disconnect', not {self.then!r}")


Overflow = OverflowName | Conflate | Block
"""What an App, a topic or a subscription may ask for."""


@overload
def conflate(key: Callable[[Envelope], object]) -> Conflate: ...


@overload
def conflate(key: object = None) -> Conflate: ...


def conflate(key: Callable[[Envelope], object] | object = None) -> Conflate:
    """While a subscriber is behind, a newer message removes the queued ones of the same topic that have the same key.

    The newer one is queued at the end, so nothing is reordered. Where the outbox is full of other messages, it makes
    room as ``drop_oldest`` does.

    Args:
        key: a function of the message as it goes on the wire (``lambda m: m.payload["symbol"]``), so that it works
            alike for messages that come from other processes; its result is compared by ``==``. A message for which
            it raises has a key of its own. Anything that cannot be called is the key of all messages of the topic.
            Make the policy once, and not for each message: keys that were computed are remembered by it.
    """
    return Conflate(key)


def block(seconds: float, then: Literal["drop_newest", "disconnect"] = "drop_newest") -> Block:
    """Let `publish` wait until the subscriber has room. The only policy with which it waits for a subscriber at all.

    Those who have room get the message first; then all others are waited for at the same time.

    Args:
        seconds: above 0, and finite.
        then: ``drop_newest`` or ``disconnect`` where there is no room by then.

    Raises:
        ConfigError: an argument is something else.
    """
    return Block(seconds, then)


def check_overflow(value: object) -> Overflow:
    """Refuse what is no policy.

    Raises:
        ConfigError: and says what would be one.
    """
    if isinstance(value, (Conflate, Block)) or (isinstance(value, str) and value in _NAMES):
        return cast("Overflow", value)
    names = ", ".join(map(repr, _NAMES))
    raise ConfigError(f"overflow takes {names}, conflate(…) or block(…), not {value!r}")


def may_conflate(overflow: Overflow | Callable[[str], Overflow]) -> bool:
    """True where a subscriber that is behind must be looked at, even while it has room."""
    return isinstance(overflow, Conflate) or callable(overflow)
