"""Where a message stands among all that were published to its topic, and what is known of those that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Final, cast, final

import attrs

from trio_wskit._core.json_text import dumps
from trio_wskit.errors import ConfigError, WsKitError

__all__ = [
    "GAP",
    "MAX_OFFSET",
    "NOT_KEPT",
    "POSITION",
    "Entry",
    "History",
    "InvalidPosition",
    "NoHistory",
    "Position",
    "Recovery",
    "Replay",
    "check_last",
    "check_since",
    "position_notice",
    "position_of",
    "stamp",
]

MAX_OFFSET: Final = 2**53 - 1  # the largest whole number that JSON's readers and Redis' scripts agree about
POSITION: Final = "$ws:position"
"""A server's notice: the topic's position is this one now, though you did not get the message that stands there."""
GAP: Final = "$ws:gap"
"""A server's notice: you did not get the messages of the topic from one offset to another."""

_MAX_EPOCH: Final = 64  # characters
_META: Final = b'"meta":{'


@final
class InvalidPosition(WsKitError, ValueError):
    """What was given as a position is none: INVALID_ARGUMENT."""


@final
class NoHistory(WsKitError):
    """The topic keeps no history: FAILED_PRECONDITION."""

    def __init__(self, topic: str) -> None:
        super().__init__("FAILED_PRECONDITION", f"the topic {topic!r} keeps no history")


def _epoch(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_EPOCH:
        raise InvalidPosition("INVALID_ARGUMENT", f"an epoch is a text of 1 to {_MAX_EPOCH} characters")


def _offset(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_OFFSET:
        raise InvalidPosition("INVALID_ARGUMENT", f"an offset is a whole number from 0 to {MAX_OFFSET}")


@final
@attrs.frozen
class Position:
    """A place in a topic's history.

    Attributes:
        epoch: names one unbroken history of one topic, 1 to 64 characters. When a history is lost, what follows has
            another epoch: offsets of different epochs do not compare.
        offset: the number of the message, from 1 on, without holes; 0 is the place before the first.

    Raises:
        InvalidPosition: INVALID_ARGUMENT: an epoch that is no such text, an offset that is no whole number from 0 to
            2**53 - 1. (It is a ValueError too.)
    """

    epoch: str = attrs.field(validator=_epoch)
    offset: int = attrs.field(validator=_offset)


def _count(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"History({field.name}=…) takes a whole number above 0, not {value!r}")


def _seconds(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.001 <= value < inf:
        raise ConfigError(f"History({field.name}=…) takes a finite number of seconds from 0.001 on, not {value!r}")


@final
@attrs.frozen
class History:
    """How much of a topic is kept.

    Attributes:
        size: messages, at least 1; then the oldest goes.
        ttl: seconds for which they are kept after the last publish, at least 0.001.
        keep_position: seconds for which an idle topic's position is remembered after its messages are gone, so that
            who has missed nothing is told so; counted from the last publish or subscription. Never less than `ttl`.
    """

    size: int = attrs.field(default=100, validator=_count)
    ttl: float = attrs.field(default=300.0, validator=_seconds)
    keep_position: float = attrs.field(default=86_400.0, validator=_seconds)

    @property
    def position_ttl(self) -> float:
        """The seconds of `keep_position`, or of `ttl` where that is more."""
        return max(self.ttl, self.keep_position)


@final
class Entry:
    """One message that is kept.

    Attributes:
        offset: its number.
        message: as it was given to the store.
        frame: what the server makes of it, the first time it is replayed. A store that gives out the same entry again
            saves making it again.
    """

    __slots__ = ("frame", "message", "offset")

    def __init__(self, offset: int, message: bytes) -> None:
        self.offset: int = offset
        self.message: bytes = message
        self.frame: Any = None

    def __repr__(self) -> str:
        return f"<Entry {self.offset}: {len(self.message)} bytes>"


@final
@attrs.frozen
class Replay:
    """What a store knows of a topic.

    Attributes:
        position: of its newest message.
        entries: what was asked for, complete and in order; None where the store cannot give all of it.
    """

    position: Position
    entries: Sequence[Entry] | None


@final
@attrs.frozen
class Recovery:
    """What came of a subscription.

    Attributes:
        recovered: True where everything that was asked for is on its way to the client, in order and complete, before
            what is published from now on; False where none of it is.
        position: of the newest message that the client gets or has missed: what is published from now on comes after
            it. None where the topic keeps no history, or its store does not answer.
        replayed: messages of the history that are on their way.
    """

    recovered: bool
    position: Position | None
    replayed: int = 0

    @property
    def start(self) -> Position | None:
        """The place from which on the client gets everything."""
        position = self.position
        return None if position is None else Position(position.epoch, position.offset - self.replayed)


NOT_KEPT: Final = Recovery(False, None)
"""What comes of a subscription without a history."""


def check_since(since: object) -> Position:
    """Refuse what is no position.

    Raises:
        WsKitError: INVALID_ARGUMENT.
    """
    if not isinstance(since, Position):
        raise WsKitError("INVALID_ARGUMENT", f"since takes a Position, not a {type(since).__name__}")
    return since


def check_last(last: object) -> int:
    """Refuse what is no number of messages.

    Raises:
        WsKitError: INVALID_ARGUMENT.
    """
    if not isinstance(last, int) or isinstance(last, bool) or last < 1:
        raise WsKitError("INVALID_ARGUMENT", f"last takes a whole number above 0, not {last!r}")
    return last


def position_of(epoch: object, offset: object) -> Position | None:
    """The position that these two are, if they are one."""
    try:
        return Position(cast("Any", epoch), cast("Any", offset))
    except InvalidPosition:
        return None


def stamp(message: bytes, position: Position) -> bytes:
    """Write a position into the meta of an envelope as `MessageSpec.encode` writes them."""
    # The type comes first, and quotes in it are escaped: the first such bytes are the key.
    at = message.index(_META) + len(_META)
    comma = b"" if message[at : at + 1] == b"}" else b","
    return b'%b"epoch":%b,"offset":%d%b%b' % (message[:at], dumps(position.epoch), position.offset, comma, message[at:])


def position_notice(topic: str, position: Position, timestamp: int) -> bytes:
    """The envelope that tells a client where a topic stands."""
    meta = {"timestamp": timestamp, "epoch": position.epoch, "offset": position.offset}
    return dumps({"type": POSITION, "meta": meta, "payload": {"topic": topic}})
