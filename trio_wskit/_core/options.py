"""The bounds that an App puts on its connections. Plain values, checked when they are made."""

from __future__ import annotations

from typing import Any, Literal, final

import attrs

from trio_wskit._core.bucket import Policy
from trio_wskit.errors import ConfigError

__all__ = ["Limits"]


def _positive(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"Limits({field.name}=…) takes a number above 0, not {value!r}")


def _count(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"Limits({field.name}=…) takes a whole number above 0, not {value!r}")


def _choice(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("send", "close", "custom"):
        raise ConfigError(f"Limits({field.name}=…) takes 'send', 'close' or 'custom', not {value!r}")


def _rate(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, Policy):
        raise ConfigError(f"Limits({field.name}=…) takes a Policy or None, not {value!r}")


@final
@attrs.frozen(kw_only=True)
class Limits:
    """The bounds of one App. Sizes are in bytes, times in seconds; ``math.inf`` switches a time limit off.

    Attributes:
        max_payload_bytes: the largest message taken, in bytes of UTF-8. A frame that announces more than four times
            as much is refused from its header, with close code 1009.
        on_exceeded: what a message gets that is too large, or too many: ``send`` an error and go on; ``close``,
            with 1009 for the size and 1013 for the rate; or ``custom``: nothing but the ``on_limit_exceeded`` hook.
        max_depth: how deep arrays and objects of a message may nest.
        max_protocol_errors: malformed messages that one connection may send before it is closed with 1008.
        max_in_flight: concurrent calls of one connection; one more is refused with RESOURCE_EXHAUSTED.
        max_calls: concurrent calls of the whole App; None means no limit. One more is refused with RESOURCE_EXHAUSTED.
        max_detached: handlers of detached routes that run in the whole App; one more is refused likewise.
        max_pending: messages of one connection that were read and not yet dispatched; one more is refused with
            RESOURCE_EXHAUSTED. None: nothing is refused, reading stops instead, see `max_waiting_batches`.
        message_rate: how many messages one connection may send, ``Policy(burst, per_second)``; None means no limit. One
            more gets what `on_exceeded` says. Aborts count, but are always obeyed.
        byte_rate: the same in bytes; a message above the burst costs all of it.
        max_waiting_batches: batches read from the socket but not yet dispatched; when they are all in use, reading
            stops, and TCP pushes back on the client. A batch is at most what one read gives (64 KiB).
        outbox_messages: frames that may wait for a connection's socket.
        outbox_bytes: bytes that may wait for a connection's socket.
        max_connections: connections of this App; None means no limit. One more is refused with 429.
        max_connections_per_address: the same for each remote address.
        max_connections_per_identity: the same for each identity; see ``App(identity=…)``.
        handshake_timeout: seconds from accepting a TCP connection to the end of its handshake.
        write_timeout: seconds that one write may wait for the peer to read; then the connection is aborted.
        call_timeout: seconds that a call may take, whatever its client asks for; then it is cancelled and answered with
            DEADLINE_EXCEEDED.
        close_timeout: seconds that a closing handshake may take; then the connection is aborted.
        ping_interval: seconds between the server's pings.
        ping_timeout: seconds that a pong may take; then the connection is aborted.
    """

    max_payload_bytes: int = attrs.field(default=1_000_000, validator=_count)
    on_exceeded: Literal["send", "close", "custom"] = attrs.field(default="send", validator=_choice)
    max_depth: int = attrs.field(default=64, validator=_count)
    max_protocol_errors: int = attrs.field(default=10, validator=_count)
    max_in_flight: int = attrs.field(default=32, validator=_count)
    max_calls: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    max_detached: int = attrs.field(default=100, validator=_count)
    max_pending: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    message_rate: Policy | None = attrs.field(default=None, validator=_rate)
    byte_rate: Policy | None = attrs.field(default=None, validator=_rate)
    max_waiting_batches: int = attrs.field(default=4, validator=_count)
    outbox_messages: int = attrs.field(default=1024, validator=_count)
    outbox_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=_count)
    max_connections: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    max_connections_per_address: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    max_connections_per_identity: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    handshake_timeout: float = attrs.field(default=10.0, validator=_positive)
    write_timeout: float = attrs.field(default=30.0, validator=_positive)
    call_timeout: float = attrs.field(default=30.0, validator=_positive)
    close_timeout: float = attrs.field(default=5.0, validator=_positive)
    ping_interval: float = attrs.field(default=30.0, validator=_positive)
    ping_timeout: float = attrs.field(default=5.0, validator=_positive)

    @property
    def max_frame_bytes(self) -> int:
        """The largest message that is read at all: above it, the connection is closed from the frame's header."""
        return 4 * self.max_payload_bytes
