"""Every exception of the package, and the error codes of the wire.

TrioWskitError
├── ConfigError             a definition or an option is wrong: raised while registering, never at run time
├── WsKitError              a failure with a wire code: raise it in a handler, and the peer is told
│   ├── MalformedMessage        not JSON, not an envelope, a reserved type          INVALID_ARGUMENT
│   ├── PayloadInvalid          the payload or the meta does not fit its schema     INVALID_ARGUMENT
│   │   └── ValidationError         it is the answer to a request that does not
│   ├── MessageTooBig           more bytes than the limit                           RESOURCE_EXHAUSTED
│   ├── ServerError             a client got an ERROR
│   │   └── RpcError                or the RPC_ERROR that answers its request
│   └── PubSubError             a topic operation was refused (see its ``reason``)
├── ConnectionClosed        the connection is closed, with code and reason
│   └── ConnectFailed           a client could not open it, with the HTTP status where there was one
├── ProtocolError           RFC 6455 was broken
│   ├── LocalProtocolError      by us: a bug of the caller
│   └── RemoteProtocolError     by the peer; has the close code that answers it
├── Reject                  raise it in ``authenticate`` to answer the handshake with an HTTP status
└── CloseError              raise it in ``on_open`` to close with a code and a reason
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, final

import attrs

__all__ = [
    "CODES",
    "CloseError",
    "CodeRule",
    "ConfigError",
    "ConnectFailed",
    "ConnectionClosed",
    "ErrorCode",
    "LocalProtocolError",
    "MalformedMessage",
    "MessageTooBig",
    "PayloadInvalid",
    "ProtocolError",
    "PubSubError",
    "PubSubReason",
    "Reject",
    "RemoteProtocolError",
    "RpcError",
    "ServerError",
    "TrioWskitError",
    "ValidationError",
    "WsKitError",
]

ErrorCode = Literal[
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "UNIMPLEMENTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "ABORTED",
    "INTERNAL",
]


@final
@attrs.frozen
class CodeRule:
    """What a wire code means to a client that wonders whether to try again.

    Attributes:
        message: what is sent when the raiser gave no text.
        retryable: True or False; None where only the application knows (INTERNAL).
        retry_after: seconds suggested before the next try; None where a retry is pointless.
    """

    message: str
    retryable: bool | None
    retry_after: float | None = None


# The 13 codes are gRPC's; the texts and the suggested waits are ws-kit's.
CODES: Final[Mapping[str, CodeRule]] = {
    "UNAUTHENTICATED": CodeRule("Auth token missing, expired, or invalid", False),
    "PERMISSION_DENIED": CodeRule("Authenticated but lacks rights", False),
    "INVALID_ARGUMENT": CodeRule("Input validation or semantic violation", False),
    "FAILED_PRECONDITION": CodeRule("State requirement not met", False),
    "NOT_FOUND": CodeRule("Target resource absent", False),
    "ALREADY_EXISTS": CodeRule("Uniqueness or idempotency replay violation", False),
    "UNIMPLEMENTED": CodeRule("Feature not supported or deployed", False),
    "CANCELLED": CodeRule("Call cancelled", False),
    "DEADLINE_EXCEEDED": CodeRule("RPC timed out", True, 0.050),
    "RESOURCE_EXHAUSTED": CodeRule("Rate limit, quota, or buffer overflow", True, 0.100),
    "UNAVAILABLE": CodeRule("Transient infrastructure error", True, 0.100),
    "ABORTED": CodeRule("Concurrency conflict", True, 0.050),
    "INTERNAL": CodeRule("Unexpected server error", None, 0.200),
}


class TrioWskitError(Exception):
    """The base of every exception that this package defines."""


class ConfigError(TrioWskitError):
    """A definition, a registration or an option is wrong; the message says which, and what would be right."""


class WsKitError(TrioWskitError):
    """A failure with a wire code. Raised in a handler, it becomes the ERROR or RPC_ERROR that the client gets.

    Args:
        code: one of the 13 codes, or a code of the application's own (any non-empty text).
        message: for the reader at the other end; None means the code's own text.
        details: JSON-compatible values for the client; secret-looking keys are removed before sending.
        retryable: sent only when it is not None.
        retry_after: seconds, at least 0; None means the code's own suggestion, if it has one.
    """

    def __init__(
        self,
        code: ErrorCode | str,
        message: str | None = None,
        details: Mapping[str, Any] | None = None,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        rule = CODES.get(code)
        if message is None:
            message = rule.message if rule else code
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retryable = retryable
        self.retry_after: float | None = retry_after if retry_after is not None or rule is None else rule.retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class MalformedMessage(WsKitError):
    """What came is not a message: not JSON, not an object, no type, or a type that is reserved."""

    def __init__(self, message: str, *, correlation_id: str | None = None) -> None:
        super().__init__("INVALID_ARGUMENT", message)
        self.correlation_id = correlation_id


_ISSUES_SHOWN: Final = 3


class PayloadInvalid(WsKitError):
    """A payload or a meta does not fit its schema.

    Attributes:
        issues: all of them, each ``{"path": "items[2].unitPrice", "message": "…"}`` with the path as it is on the wire.
    """

    def __init__(self, type_name: str, issues: Sequence[Mapping[str, str]]) -> None:
        self.issues: list[Mapping[str, str]] = list(issues)
        super().__init__(
            "INVALID_ARGUMENT", f"Validation failed for {type_name}", {"issues": [dict(one) for one in self.issues]}
        )

    def __str__(self) -> str:
        shown = [f"{one['path'] or 'the payload'}: {one['message']}" for one in self.issues[:_ISSUES_SHOWN]]
        if len(self.issues) > _ISSUES_SHOWN:
            shown.append(f"and {len(self.issues) - _ISSUES_SHOWN} more")
        return f"{super().__str__()} ({'; '.join(shown)})" if shown else super().__str__()


class ValidationError(PayloadInvalid):
    """What a server answered is not what the request declares: another type, or a payload that does not fit.

    Asking again does not help: `retryable` is False.
    """

    def __init__(self, type_name: str, issues: Sequence[Mapping[str, str]]) -> None:
        super().__init__(type_name, issues)
        self.retryable = False


class ServerError(WsKitError):
    """What a client was told in an ERROR.

    Attributes:
        retryable: what the server said; else what its code means; None where only the application knows.
        retry_after: seconds, as the server said; else its code's suggestion. None where waiting does not help.
        correlation_id: of the request; None for an error that answers none.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        details: Mapping[str, Any] | None = None,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        correlation_id: str | None = None,
    ) -> None:
        rule = CODES.get(code)
        if retryable is None and rule is not None:
            retryable = rule.retryable
        super().__init__(code, message, details, retryable=retryable, retry_after=retry_after)
        if retryable is False:
            self.retry_after: float | None = None
        self.correlation_id = correlation_id


class RpcError(ServerError):
    """What a client was told in the RPC_ERROR that answers its request; or DEADLINE_EXCEEDED, when no answer came."""


class MessageTooBig(WsKitError):
    """A message has more bytes than the limit; ``details`` holds ``observed`` and ``limit``, in bytes."""

    def __init__(self, observed: int, limit: int) -> None:
        super().__init__(
            "RESOURCE_EXHAUSTED",
            f"Message of {observed} bytes is larger than the limit of {limit} bytes",
            {"observed": observed, "limit": limit},
            retryable=False,
        )
        self.observed = observed
        self.limit = limit


PubSubReason = Literal["ACL_SUBSCRIBE", "INVALID_TOPIC", "TOPIC_LIMIT_EXCEEDED", "CONNECTION_CLOSED", "ADAPTER_ERROR"]

_PUBSUB_CODES: Final[Mapping[PubSubReason, ErrorCode]] = {
    "ACL_SUBSCRIBE": "PERMISSION_DENIED",
    "INVALID_TOPIC": "INVALID_ARGUMENT",
    "TOPIC_LIMIT_EXCEEDED": "RESOURCE_EXHAUSTED",
    "CONNECTION_CLOSED": "UNAVAILABLE",
    "ADAPTER_ERROR": "UNAVAILABLE",
}


class PubSubError(WsKitError):
    """A topic operation was refused; nothing has changed unless ``details`` says otherwise.

    Attributes:
        reason: ws-kit's name for why. On the wire the error has the nearest of the 13 codes, and the reason in its
        details.
    """

    def __init__(self, reason: PubSubReason, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(_PUBSUB_CODES[reason], message, {"reason": reason, **(details or {})})
        self.reason: PubSubReason = reason


class ConnectionClosed(TrioWskitError):
    """The connection is closed.

    Attributes:
        code: the close code of RFC 6455 section 7.4; 1006 when the link broke without a close frame.
        reason: the peer's or our own text; may be empty.
        retry_after: seconds after which the server wants to see us again; None where it did not say.
    """

    retry_after: float | None = None

    def __init__(self, code: int = 1006, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    @property
    def retryable(self) -> bool | None:
        """Whether another connection may fare better; None for codes that only the application knows."""
        return None if 3000 <= self.code <= 4999 else self.code in _TRANSIENT

    def __str__(self) -> str:
        return f"connection closed with {self.code}" + (f" ({self.reason})" if self.reason else "")


# Going away, none, broken, internal, restart, try again later, bad gateway: the IANA registry of close codes.
_TRANSIENT: Final = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014})


class ConnectFailed(ConnectionClosed):
    """A client could not open the connection. The code is 1006, as for a link that broke.

    Attributes:
        reason: why, without the query of the URL and without a token.
        status: the HTTP status with which the server or the proxy refused; None where it was something else.
        retry_after: what the refusal's ``Retry-After`` says, in seconds.
    """

    def __init__(self, reason: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(1006, reason)
        self.status = status
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool | None:
        """False where the server refused for good: an HTTP status from 300 to 499 other than 408, 425 and 429."""
        return self.status is None or self.status >= 500 or self.status in (408, 425, 429)

    def __str__(self) -> str:
        return self.reason


class ProtocolError(TrioWskitError):
    """RFC 6455 was broken; see the two kinds."""


class LocalProtocolError(ProtocolError):
    """The caller asked for what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer did what the protocol forbids.

    Attributes:
        close_code: what RFC 6455 section 7.4.1 says to close with (1002, 1007 or 1009).
    """

    def __init__(self, message: str, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class Reject(TrioWskitError):
    """Raise it in ``authenticate`` to refuse a handshake with an HTTP answer of your own.

    Args:
        status: an HTTP status, 300 to 599.
        body: the answer's text.
        headers: further header lines.
    """

    def __init__(self, status: int = 401, body: str = "", headers: Mapping[str, str] | None = None) -> None:
        if not 300 <= status <= 599:
            raise ConfigError(f"Reject takes an HTTP status from 300 to 599, not {status!r}")
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers: Mapping[str, str] = headers or {}


class CloseError(TrioWskitError):
    """Raise it in ``on_open`` to close the new connection.

    Args:
        code: a close code that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
        reason: at most 123 bytes of UTF-8.
    """

    def __init__(self, code: int = 1000, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
