from __future__ import annotations

from typing import Any

import pytest

from trio_wskit._core.history import History
from trio_wskit._core.keeping import keep_by
from trio_wskit.errors import ConfigError


def test_the_first_rule_that_matches_counts() -> None:
    small, large, all_of_them = History(1), History(2), History(3)
    keep = keep_by({"room:1": small, "room:*": large, "**": all_of_them})
    assert keep("room:1") is small
    assert keep("room:2") is large
    assert keep("room:2:typing") is all_of_them
    assert keep_by({"room:*": large, "room:1": small})("room:1") is large
    assert keep_by({"room:*": large})("user:1") is None


def test_a_function_is_taken_as_it_is() -> None:
    def keep(topic: str) -> History | None:
        return None

    assert keep_by(keep) is keep


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (7, "a mapping from topics to History, or a function, not 7"),
        ({"room:x*": History()}, "a segment of a pattern"),
        ({"room:1": 100}, "'room:1' takes a History, not 100"),
    ],
)
def test_wrong_rules_are_refused(rules: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        keep_by(rules)
