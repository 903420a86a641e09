"""Who may send what: refuses with UNAUTHENTICATED or PERMISSION_DENIED, and the handler is not called."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, final

from trio_wskit._context import Context
from trio_wskit.errors import ConfigError, WsKitError

__all__ = ["require_authenticated", "require_permission"]

Check = Callable[[Context[Any]], bool] | Callable[[Context[Any]], Awaitable[bool]]


@final
class _Require:
    """Middleware that asks one question."""

    def __init__(self, check: Check, code: str, message: str | None, stage: str) -> None:
        if not callable(check):
            raise ConfigError(f"{code}: the check must be a function of the context, not {check!r}")
        self._check = check
        self._code = code
        self._message = message
        self.stage = stage

    async def __call__(self, ctx: Context[Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
        passed = self._check(ctx)
        if inspect.isawaitable(passed):
            passed = await passed
        if passed is not True:  # what a careless check returns instead lets nobody in
            raise WsKitError(self._code, self._message)
        return await call_next()


def require_authenticated(check: Check | None = None, *, message: str | None = None) -> _Require:
    """Let in only clients that are known; the others get UNAUTHENTICATED. It runs before the payload is validated.

    Args:
        check: takes the context and returns True for a client that is known; it may be async, and must not read
            ``ctx.payload``. By default everybody is whose ``ctx.data`` is not empty: what `authenticate` returned, or
            what a login of your own has put there.
        message: for the client; None means the code's own text.

    Raises:
        ConfigError: `check` is no function.
    """
    return _Require(check if check is not None else _has_data, "UNAUTHENTICATED", message, "envelope")


def require_permission(check: Check, *, message: str | None = None) -> _Require:
    """Let in only what the check allows; the rest gets PERMISSION_DENIED. It runs after the payload is validated.

    Args:
        check: takes the context and returns True for what may be done; it may be async.
        message: for the client; None means the code's own text.

    Raises:
        ConfigError: `check` is no function.
    """
    return _Require(check, "PERMISSION_DENIED", message, "message")


def _has_data(ctx: Context[Any]) -> bool:
    return bool(ctx.data)
