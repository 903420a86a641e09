from __future__ import annotations

from typing import Any, cast

import pytest

from trio_wskit._core.lanes import Lane, concurrent, keyed, serial
from trio_wskit.errors import ConfigError


def test_a_serial_lane_holds_up_everything_behind_it() -> None:
    assert serial == Lane(holds_up=True, places=None)


@pytest.mark.parametrize("n", [None, 1, 32])
def test_a_concurrent_lane_has_so_many_places(n: int | None) -> None:
    assert concurrent(n) == Lane(holds_up=False, places=n)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "4"])
def test_places_are_a_whole_number_above_0(n: object) -> None:
    with pytest.raises(ConfigError, match=f"concurrent\\(\\) takes a whole number above 0, not {n!r}"):
        concurrent(cast("Any", n))


def test_a_keyed_lane_has_one_place_for_each_key() -> None:
    lane = keyed(len)
    assert (lane.holds_up, lane.places, lane.key) == (False, 1, len)


def test_a_key_is_a_function() -> None:
    with pytest.raises(ConfigError, match=r"keyed\(\) takes a function of the context, not 'room'"):
        keyed(cast("Any", "room"))
