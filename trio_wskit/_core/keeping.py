"""Which topics keep a history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from trio_wskit._core.history import History
from trio_wskit._core.patterns import SubscriptionIndex, pattern_fault
from trio_wskit.errors import ConfigError

__all__ = ["HistoryRules", "keep_by"]

_REMEMBERED: Final = 4096  # topics whose rule need not be looked for again

HistoryRules: TypeAlias = Mapping[str, History] | Callable[[str], History | None]
"""Which topics keep a history: by names and patterns, the first that matches; or a function from the topic."""


def keep_by(rules: HistoryRules) -> Callable[[str], History | None]:
    """Make one function of the rules. It never waits; a function of the application's is asked each time.

    Raises:
        ConfigError: the rules are neither, a pattern is no pattern, or a value is no `History`.
    """
    if callable(rules):
        return rules
    index = SubscriptionIndex()
    if not isinstance(rules, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - whatever the caller gives
        raise ConfigError(f"history takes a mapping from topics to History, or a function, not {rules!r}")
    ranks = {name: rank for rank, name in enumerate(rules)}
    for name, keep in rules.items():
        fault = pattern_fault(name) if "*" in name else None
        if fault is not None:
            raise ConfigError(f"history: {fault}; {name!r} is none")
        if not isinstance(keep, History):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
            raise ConfigError(f"history: {name!r} takes a History, not {keep!r}")
        index.add(name, name)  # each name subscribes to itself, and so is found by the topics that it matches

    @lru_cache(_REMEMBERED)
    def keep_of(topic: str) -> History | None:
        found = index.subscribers(topic)
        return rules[min(found, key=ranks.__getitem__)] if found else None

    return keep_of
