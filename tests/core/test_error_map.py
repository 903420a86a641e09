from __future__ import annotations

from typing import Any, cast

import pytest

from trio_wskit._core.error_map import ErrorMap
from trio_wskit.errors import ConfigError, PayloadInvalid, WsKitError


class SoldOut(Exception):
    left = 0


class ReallySoldOut(SoldOut): ...


def told(errors: ErrorMap, error: Exception) -> tuple[str, str] | None:
    found = errors.find(error)
    return None if found is None else (found.code, found.message)


def test_an_exception_that_is_not_registered_has_no_code() -> None:
    assert ErrorMap().find(KeyError()) is None
    errors = ErrorMap()
    errors.register(SoldOut, "FAILED_PRECONDITION")
    assert errors.find(KeyError()) is None


def test_what_the_exception_says_stays_here_unless_it_is_asked_for() -> None:
    errors = ErrorMap()
    errors.register(LookupError, "NOT_FOUND")
    errors.register(SoldOut, "SOLD_OUT", lambda error: f"{error.left} left")
    errors.register(OSError, "UNAVAILABLE", "try later", retryable=True, retry_after=2)
    assert told(errors, KeyError("secret")) == ("NOT_FOUND", "Target resource absent")
    assert told(errors, SoldOut("secret")) == ("SOLD_OUT", "0 left")
    assert told(errors, OSError("secret")) == ("UNAVAILABLE", "try later")
    found = errors.find(OSError())
    assert found is not None
    assert (found.retryable, found.retry_after) == (True, 2)


def test_the_nearest_class_counts_whatever_the_order() -> None:
    errors = ErrorMap()
    errors.register(ReallySoldOut, "A")
    errors.register(SoldOut, "B")
    assert told(errors, ReallySoldOut()) == ("A", "A")
    assert told(errors, SoldOut()) == ("B", "B")


@pytest.mark.parametrize(
    "kind", [Exception, BaseException, KeyboardInterrupt, WsKitError, PayloadInvalid, 5, "KeyError"]
)
def test_what_has_a_code_or_stands_for_everything_is_refused(kind: object) -> None:
    with pytest.raises(ConfigError, match=r"errors\.register\(\) takes"):
        ErrorMap().register(cast("Any", kind), "NOT_FOUND")


@pytest.mark.parametrize("code", ["", 404, None])
def test_a_code_is_text(code: object) -> None:
    with pytest.raises(ConfigError, match="a code is a non-empty text"):
        ErrorMap().register(KeyError, cast("Any", code))


def test_a_class_has_one_code() -> None:
    errors = ErrorMap()
    errors.register(KeyError, "NOT_FOUND")
    with pytest.raises(ConfigError, match="KeyError has a code already"):
        errors.register(KeyError, "INTERNAL")


def test_of_two_maps_the_first_ones_codes_stay() -> None:
    ours, theirs = ErrorMap(), ErrorMap()
    ours.register(KeyError, "OURS")
    theirs.register(KeyError, "THEIRS")
    theirs.register(OSError, "THEIRS")
    ours.extend(theirs)
    assert told(ours, KeyError()) == ("OURS", "OURS")
    assert told(ours, OSError()) == ("THEIRS", "THEIRS")
    assert (len(ours), len(theirs)) == (2, 2)
