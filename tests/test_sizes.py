"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.sizes import exact_size, parse_size, short_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("500", 500),
        ("10k", 10_240),
        ("10K", 10_240),
        ("500M", 524_288_000),
        ("2g", 2_147_483_648),
        ("1T", 2**40),
        ("007", 7),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    """A k is 1024 bytes, in either case."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "1.5G", "500 M", "500MB", "500MiB", "-1", "+1", "1e3", "٣", "9" * 19, "5M\n"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """Whole numbers, and one letter."""
    with pytest.raises(ValueError, match="want a size"):
        parse_size(text)


@given(st.integers(0, 2**55))
def test_an_exact_size_is_read_as_it_was(size: int) -> None:
    """What is written of a maximum is that maximum."""
    assert parse_size(exact_size(size)) == size


@given(st.integers(0, 2**60))
def test_a_short_size_is_short_and_never_too_much(size: int) -> None:
    """A person reads at most a tenth of the unit less than it is."""
    text = short_size(size)
    unit = parse_size(f"1{text[-1]}") if text[-1].isalpha() else 1
    number = float(text.rstrip("kMGT"))
    assert number <= size / unit < number + 0.1 + 1e-9
    assert number < 1024 or unit == 2**40


@pytest.mark.parametrize(
    ("size", "exact", "short"),
    [
        (0, "0", "0"),
        (1023, "1023", "1023"),
        (1024, "1k", "1k"),
        (1_000_000, "1000000", "976.5k"),
        (524_288_000, "500M", "500M"),
        (524_288_001, "524288001", "500M"),
        (3_355_443, "3355443", "3.1M"),
        (2**40, "1T", "1T"),
    ],
)
def test_a_size_is_shown(size: int, exact: str, short: str) -> None:
    """A maximum exactly, a count in short."""
    assert (exact_size(size), short_size(size)) == (exact, short)
