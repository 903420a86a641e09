from __future__ import annotations

import runpy
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core import masking
from trio_wskit._core.masking import apply_mask, apply_mask_by_integers


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_both_ways_of_masking_give_what_the_rfc_says(data: bytes, key: bytes) -> None:
    expected = bytes(byte ^ key[at % 4] for at, byte in enumerate(data))
    assert apply_mask(data, key) == expected
    assert apply_mask_by_integers(data, key) == expected


def test_without_the_websockets_package_integers_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    names = runpy.run_path(masking.__file__)
    assert names["apply_mask"] is names["apply_mask_by_integers"]
