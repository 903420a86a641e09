from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.ids import uuid7

milliseconds = st.integers(0, 2**48 - 1)


@given(milliseconds, st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_of_version_7_that_holds_its_time(at: int, random: bytes) -> None:
    made = uuid.UUID(uuid7(at, random))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert int.from_bytes(made.bytes[:6], "big") == at
    assert str(made) == uuid7(at, random)


@given(milliseconds, milliseconds, st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_the_time_they_were_made(first: int, second: int, random: bytes, other: bytes) -> None:
    if first < second:
        assert uuid7(first, random) < uuid7(second, other)


def test_74_bits_are_random() -> None:
    ones, zeros = (uuid.UUID(uuid7(0, bytes([bit]) * 10)).int for bit in (0xFF, 0))
    assert (ones ^ zeros).bit_count() == 74


def test_the_example_of_the_standard() -> None:
    # RFC 9562 appendix A.6: 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F
    random = bytes.fromhex("0cc3" + "18c4dc0c0c07398f")
    assert uuid7(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize("at", [-1, 2**48])
def test_a_time_that_48_bits_cannot_hold_is_an_error(at: int) -> None:
    with pytest.raises(OverflowError):
        uuid7(at, bytes(10))
