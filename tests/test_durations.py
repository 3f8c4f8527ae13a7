"""Lengths of time as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.durations import SECONDS, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("45s", 45.0),
        ("30m", 1800.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        ("1d2h3m4s", 93784.0),
        ("30m1h", 5400.0),
        ("1m1m", 120.0),
        ("007m", 420.0),
        ("0d1s", 1.0),
        ("999999999d", 999999999 * 86400.0),
    ],
)
def test_a_duration_is_a_sum_of_whole_numbers_with_units(text: str, seconds: float) -> None:
    """What a person writes is what the daemon counts with."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5",
        "30",
        "0s",
        "0h0m",
        "1.5h",
        "-1s",
        "+1s",
        "1 h",
        " 1h",
        "1h ",
        "1h\n",
        "1H",
        "1w",
        "1h30",
        "h1",
        "٣m",
        "1" * 10 + "s",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A number without its unit is not guessed at, nor is a sum that comes to nothing."""
    with pytest.raises(ValueError, match=r"^want a duration such as 45s, 30m, 1h30m or 7d$"):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 999_999_999), st.sampled_from("smhd")), min_size=1))
def test_every_sum_of_terms_is_read(terms: list[tuple[int, str]]) -> None:
    """Any number of terms, in any order."""
    total = sum(number * SECONDS[unit] for number, unit in terms)
    text = "".join(f"{number}{unit}" for number, unit in terms)
    if total:
        assert parse_duration(text) == total
    else:
        with pytest.raises(ValueError, match="want a duration"):
            parse_duration(text)


@given(st.text(alphabet="0123456789smhd .-\n", max_size=12) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a ValueError comes of a slip of the pen."""
    with contextlib.suppress(ValueError):
        assert parse_duration(text) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.0, "1s"), (60.0, "1m"), (1800.0, "30m"), (5400.0, "1h30m"), (86401.0, "1d1s"), (90.7, "1m30s"), (0.0, "0s")],
)
def test_a_duration_is_shown_with_its_largest_units(seconds: float, text: str) -> None:
    """Nobody has to divide 5400 by 60."""
    assert format_duration(seconds) == text


@given(st.integers(1, 3660 * 86400))
def test_what_is_shown_is_read_back(seconds: int) -> None:
    """A duration copied from the daemon's words into the config means the same."""
    assert parse_duration(format_duration(seconds)) == seconds
