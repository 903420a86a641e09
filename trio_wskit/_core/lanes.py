"""In which order the messages of one connection are served: the choices that a route has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, final

import attrs

from trio_wskit.errors import ConfigError

__all__ = ["Lane", "concurrent", "keyed", "serial"]


@final
@attrs.frozen
class Lane:
    """How the messages of one route share their connection; made by `serial`, `concurrent` and `keyed`.

    Attributes:
        holds_up: everything behind such a message waits until its handler has ended.
        places: how many handlers of one key run at the same time; None means no bound of its own.
        key: gives a message's key; None means one key for all.
    """

    holds_up: bool
    places: int | None = None
    key: Callable[[Any], Hashable] | None = attrs.field(default=None, eq=False)


serial: Final = Lane(holds_up=True)
"""Nothing of the connection is served while the handler runs: how events are served by default."""


def concurrent(n: int | None = None) -> Lane:
    """The handler does not hold up what comes behind: how calls are served by default.

    Args:
        n: at most so many of this route run at the same time for one connection, the others wait for a place in the
            order in which they came. None: as many as ``Limits.max_in_flight`` lets in.

    Raises:
        ConfigError: `n` is not a whole number above 0.
    """
    given: object = n
    if n is not None and (not isinstance(given, int) or isinstance(given, bool) or n < 1):
        raise ConfigError(f"concurrent() takes a whole number above 0, not {n!r}")
    return Lane(holds_up=False, places=n)


def keyed(key: Callable[[Any], Hashable]) -> Lane:
    """One at a time of each key, in the order in which they came; those with different keys run beside one another.

    The keys are of one connection and one route: ``keyed(lambda ctx: ctx.payload.document_id)``.

    Args:
        key: takes the context, its payload validated; gives anything hashable. It must not wait.

    Raises:
        ConfigError: `key` is not a function.
    """
    if not callable(key):
        raise ConfigError(f"keyed() takes a function of the context, not {key!r}")
    return Lane(holds_up=False, places=1, key=key)
