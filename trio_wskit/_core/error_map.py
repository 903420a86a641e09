"""Which wire code an application's own exceptions have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast, final

from trio_wskit.errors import ConfigError, ErrorCode, WsKitError

__all__ = ["ErrorMap"]

E = TypeVar("E", bound=Exception)
_Make = Callable[[Any], WsKitError]


@final
class ErrorMap:
    """Exception classes and their codes; `Router.errors`."""

    def __init__(self) -> None:
        self._makers: dict[type[Exception], _Make] = {}

    def __len__(self) -> int:
        return len(self._makers)

    def register(
        self,
        exception: type[E],
        code: ErrorCode | str,
        message: str | Callable[[E], str] | None = None,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Answer with `code` where a handler raises this exception or a subclass of it; the nearest class counts.

        It is then an answer like any other: not logged, but `on_error` hooks are told.

        Args:
            exception: the class; not `WsKitError`, which has its code, and not `Exception`, which means INTERNAL.
            code: one of the 13, or one of your own.
            message: for the client: a text, or a function of the exception. None means the code's own text: what the
                exception says is for you.
            retryable: as in `WsKitError`.
            retry_after: as in `WsKitError`, in seconds.

        Raises:
            ConfigError: not such a class, one that is registered already, or an empty code.
        """
        _check_class(exception)
        if exception in self._makers:
            raise ConfigError(f"{exception.__qualname__} has a code already")
        if not isinstance(cast("object", code), str) or not code:
            raise ConfigError(f"a code is a non-empty text, not {code!r}")

        def make(error: E) -> WsKitError:
            text = message(error) if callable(message) else message
            return WsKitError(code, text, retryable=retryable, retry_after=retry_after)

        self._makers[exception] = make

    def extend(self, other: ErrorMap) -> None:
        """Take over the other's; what both have stays ours."""
        self._makers = {**other._makers, **self._makers}

    def find(self, error: Exception) -> WsKitError | None:
        """What the client is told of this exception; None where it is not registered."""
        if not self._makers:
            return None
        for kind in type(error).__mro__:
            make = self._makers.get(kind)
            if make is not None:
                return make(error)
        return None


def _check_class(given: object) -> None:
    if not isinstance(given, type) or not issubclass(given, Exception) or issubclass(given, WsKitError):
        raise ConfigError(f"errors.register() takes an exception class of your own, not {given!r}")
    if given is Exception:
        raise ConfigError("errors.register() takes no class that stands for every exception: those are INTERNAL")
