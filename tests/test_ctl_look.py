"""What `policyctl top` shows, as lines: rates, locks, senders, problems, on screens of any size."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ctl_layout import Screen, fitted
from policyd.ctl_look import Look, Rates, Size, as_json, away, following, interval, lines, look, rates
from tests.control_socket import BUSY, LOCK, STATUS

NOW = datetime(2026, 11, 23, 11, 0, 0, tzinfo=timezone.utc)
LATER = {**STATUS, "uptime": 14.5, "requests": {"RCPT": 15, "DATA": 2}, "answers": {"DUNNO": 16, "REJECT": 1}}
RATES = Rates(2.0, {"RCPT": 1.5, "DATA": 1.0}, {"DUNNO": 2.0, "REJECT": 0.5})
LARGE = Size(120, 24)


def shown(
    status: dict[str, Any] = STATUS,
    locked: Any = (),
    accounts: Any = (BUSY,),
    *,
    rate: Rates | None = None,
    trouble: tuple[str, ...] = (),
    size: Size = LARGE,
) -> list[str]:
    """Return what is on the screen."""
    found = Look(status, list(locked), list(accounts), "messages")
    return lines(found, rate, trouble, Screen(NOW, timezone.utc, size.width), size, 1.0)


def test_a_look_asks_three_things() -> None:
    """The state, and no more locks and accounts than there is room for."""
    asked = []
    answers = iter([STATUS, [LOCK], [BUSY]])

    def ask(question: Any) -> Any:
        asked.append(question.path)
        return next(answers)

    assert look(ask, "refused", 30) == Look(STATUS, [LOCK], [BUSY], "refused")
    assert asked == ["/status", "/locked?n=30", "/accounts?sort=refused&n=30"]


def test_rates_are_what_came_between_two_looks_by_the_daemons_clock() -> None:
    """A word that is new counts from 0."""
    assert rates(STATUS, LATER) == RATES


@pytest.mark.parametrize("after", [{**LATER, "started": "2026-01-24T08:00:00+00:00"}, STATUS, {**LATER, "uptime": 1.0}])
def test_a_daemon_that_was_started_anew_has_no_rates_yet(after: dict[str, Any]) -> None:
    """Its counters began at 0."""
    assert rates(STATUS, after) is None


@pytest.mark.parametrize(("took", "then"), [(0.0, 1.0), (0.2, 1.0), (0.25, 1.0), (1.5, 6.0)])
def test_a_daemon_that_takes_long_is_asked_less_often(took: float, then: float) -> None:
    """At most a quarter of its time goes into answering."""
    assert interval(1.0, took) == then


def test_the_screen_when_all_is_well() -> None:
    """Head, rates, locks, senders, keys."""
    status = {**LATER, "locked": 1}
    assert shown(status, [LOCK], rate=RATES) == [
        "policyd 0.1.0  11:00:00  every 1 s  locked 1 of 3  connections 2",
        "requests  2.5/s (RCPT 1.5, DATA 1.0)",
        "answers   2.5/s (DUNNO 2.0, REJECT 0.5)",
        "",
        "account             locked  by    why",
        "bert@example.com  30 s ago  root  phished",
        "",
        "top senders, by messages",
        "account           state  messages-per-half-hour  refused  held",
        "anna@example.com  free               5/500   1%        0     0",
        "q ends this, s sorts by recipients",
    ]


def test_problems_and_trouble_stand_at_the_top() -> None:
    """What is wrong is not below the screen's edge."""
    screen = shown({**STATUS, "problems": ["the disk is full"]}, trouble=("policyd is not running",))
    assert screen[1] == "policyd does not answer, this is the last that it said: policyd is not running"
    assert screen[2:4] == ["requests  -", "answers   -"]
    assert screen[5:7] == ["PROBLEMS", "  - the disk is full"]


def test_what_does_not_fit_is_counted() -> None:
    """Locks and problems leave room for the senders, and say how many more there are."""
    status = {**STATUS, "locked": 500, "problems": [f"problem {n}" for n in range(9)]}
    screen = shown(status, [LOCK] * 30, [BUSY] * 30)
    assert len(screen) == 24
    assert "and 496 more locked" in screen
    assert "and 5 more problems" in screen
    assert screen[-2].startswith("anna@example.com")


def test_before_the_first_answer() -> None:
    """Why there is none is told."""
    assert away(("policyd is not running", "see its log"), Screen(NOW, timezone.utc), Size(60, 24)) == [
        "11:00:00  policyd has not answered yet; trying again",
        "",
        "policyd is not running",
        "see its log",
        "",
        "q ends this",
    ]


def test_the_key_goes_through_all_that_one_can_sort_by() -> None:
    """And begins again."""
    sorts = ["messages", "recipients", "clients", "senders", "bytes", "refused"]
    assert [following(sort) for sort in sorts] == [*sorts[1:], "messages"]


def test_json_has_the_rates_and_the_answers() -> None:
    """Rates are rounded; there are none for a daemon that was started between."""
    found = Look(LATER, [LOCK], [BUSY], "messages")
    assert as_json(found, Rates(1 / 3, {"RCPT": 2 / 3}, {})) == {
        "rates": {"seconds": 0.333, "requests": {"RCPT": 0.667}, "answers": {}},
        "status": LATER,
        "locked": [LOCK],
        "accounts": [BUSY],
    }
    assert as_json(found, None)["rates"] is None


NAMES = st.text(max_size=60) | st.sampled_from(["李" * 40, "\x1b]0;owned\x07\nroot", "e\u0301" * 50, "x" * 300])


@given(
    size=st.builds(Size, st.integers(1, 150), st.integers(1, 60)),
    names=st.lists(NAMES, max_size=30),
    problems=st.lists(NAMES, max_size=8),
    trouble=st.lists(NAMES, max_size=5),
)
def test_nothing_leaves_the_screen_and_nothing_steers_it(
    size: Size, names: list[str], problems: list[str], trouble: list[str]
) -> None:
    """Whatever accounts, reasons and problems are called, and however small the terminal is."""
    locked = [{**LOCK, "account": name, "reason": name} for name in names]
    accounts = [{**BUSY, "account": name} for name in names]
    status = {**STATUS, "problems": problems, "locked": len(names), "answers": dict.fromkeys(names, 1)}
    rate = Rates(1.0, {}, dict.fromkeys(names, 1.0))
    screens = [
        shown(status, locked, accounts, rate=rate, trouble=tuple(trouble), size=size),
        away(tuple(trouble), Screen(NOW, timezone.utc), size),
    ]
    for screen in screens:
        assert 1 <= len(screen) <= size.height
        for row in screen:
            assert width(row) <= size.width
            assert not any(unicodedata.category(c)[0] == "C" for c in row)


def width(text: str) -> int:
    """Return the columns that a terminal needs."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


@given(NAMES, st.integers(1, 80))
def test_a_text_is_cut_as_little_as_must_be(text: str, columns: int) -> None:
    """What fits is whole; what does not is the longest beginning that leaves room for `…`."""
    cut = fitted(text, columns)
    if width(text) <= columns:
        assert cut == text
        return
    kept = cut[:-1]
    assert cut[-1] == "…"
    assert text.startswith(kept)
    assert width(kept) < columns <= width(text[: len(kept) + 1])
