from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.masking import apply_mask, apply_mask_by_integers


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_both_ways_of_masking_give_what_the_rfc_says(data: bytes, key: bytes) -> None:
    expected = bytes(byte ^ key[at % 4] for at, byte in enumerate(data))
    assert apply_mask(data, key) == expected
    assert apply_mask_by_integers(data, key) == expected
