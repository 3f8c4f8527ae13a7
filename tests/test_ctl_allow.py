"""What policyctl asks and says of allowances: ends that people type, and answers in plain lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import ctl_allow, ctl_text
from policyd.ctl_layout import Screen
from tests.control_socket import ControlSocket, line_of, listening, policyctl, run, said
from tests.test_ctl_text import ANNA, BY_HAND, HALF_HOUR, NOW, PIPE, VIENNA

GIVEN: dict[str, Any] = {
    "account": "anna@example.com",
    "limit": "messages-per-half-hour",
    "max": 2000,
    "since": "2026-11-23T11:00:00+00:00",
    "until": "2026-12-01T23:00:00+00:00",
    "by": "root",
    "uid": 0,
    "reason": "winter mailing",
}
ALLOWED: dict[str, Any] = {
    **GIVEN,
    "counts": "messages",
    "per": "30m",
    "usual_max": 500,
    "before": None,
    "lock": None,
}
HOSTILE = "\x1b]0;owned\x07\nroot may do all\u202e"
SHOWN = r"\x1b]0;owned\x07\nroot may do all\u202e"


class Summery(tzinfo):
    """Central European Time in 2026 and around."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        """Return the offset of a local time."""
        assert moment is not None
        summer = datetime(2026, 3, 29, 2) <= moment.replace(tzinfo=None) < datetime(2026, 10, 25, 3)
        return timedelta(hours=2 if summer else 1)

    def dst(self, moment: datetime | None) -> timedelta:
        """Return what of it is for the summer."""
        return self.utcoffset(moment) - timedelta(hours=1)

    def tzname(self, _moment: datetime | None) -> str:
        """Return its name."""
        return "summery"


@pytest.mark.parametrize(
    ("typed", "end"),
    [
        ("2026-12-01", "2026-12-01T23:00:00+00:00"),
        ("2026-12-01 18:00", "2026-12-01T17:00:00+00:00"),
        ("2026-12-01T18:00:30", "2026-12-01T17:00:30+00:00"),
        ("2026-12-01 18:00Z", "2026-12-01T18:00:00+00:00"),
        ("2026-12-01 18:00 Z", "2026-12-01T18:00:00+00:00"),
        ("2026-12-01T18:00-05:30", "2026-12-01T23:30:00+00:00"),
        ("2026-07-01 18:00", "2026-07-01T16:00:00+00:00"),
        ("2026-12-31", "2026-12-31T23:00:00+00:00"),
        ("2028-02-28", "2028-02-28T23:00:00+00:00"),
    ],
)
def test_a_date_is_one_of_this_zone_unless_it_says_otherwise(typed: str, end: str) -> None:
    """A day alone ends when it ends; summer time is that of the date, not of today."""
    assert ctl_allow.end(typed, Summery()) == datetime.fromisoformat(end)


def test_a_day_of_25_hours_ends_at_its_end() -> None:
    """The day after begins at midnight, however long the day was."""
    found = ctl_allow.end("2026-10-25", Summery())
    assert found == datetime(2026, 10, 25, 23, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "typed",
    [
        *("", "tomorrow", "18:00", "2026-12", "2026-02-30", "2026-12-01 25:00", "2026-12-01 18", "01.12.2026"),
        *("2026-12-01 18:00 CET", "2026-12-01 18:00+1", "2026-12-01Z", "9999-12-31", "0000-01-01", "2026-12-01\n"),
        *(
            "\u0662\u0660\u0662\u0666-12-01",
            "0001-01-01 00:00+14:00",
            "9999-12-31 23:00-14:00",
            "\x1b[2J",
            "2026-12-01 18:00+99:99",
        ),
    ],
)
def test_what_is_no_date_is_refused_with_what_is_wanted(typed: str) -> None:
    """With examples of what can be typed."""
    with pytest.raises(ValueError, match='want a date such as 2026-12-01, "2026-12-01 18:00" or'):
        ctl_allow.end(typed, timezone(timedelta(0)))


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_the_same_however_it_is_written(moment: datetime, minutes: int) -> None:
    """In its own zone's time, and with an offset behind it."""
    zone = timezone(timedelta(minutes=minutes))
    meant = moment.replace(microsecond=0, tzinfo=zone)
    assert ctl_allow.end(f"{meant:%Y-%m-%d %H:%M:%S}", zone) == meant
    assert ctl_allow.end(meant.isoformat(), VIENNA) == meant


def test_what_is_allowed_is_told_with_its_end_in_both_zones() -> None:
    """The end is exact, as the person's clock shows it and in UTC."""
    assert ctl_allow.allowed(ALLOWED, PIPE) == [
        "anna@example.com may send 2000 messages in 30m",
        "  limit  messages-per-half-hour, 500 without the allowance",
        "  until  2026-12-02 00:00:00 (in 9 d), which is 2026-12-01 23:00:00 UTC",
    ]


def test_what_is_replaced_and_that_the_account_is_locked_is_told() -> None:
    """With the way to unlock it."""
    before = {**GIVEN, "max": None, "until": "2026-11-23T12:00:00+00:00"}
    assert ctl_allow.allowed({**ALLOWED, "before": before, "lock": BY_HAND}, PIPE) == [
        "anna@example.com may send 2000 messages in 30m",
        "  limit        messages-per-half-hour, 500 without the allowance",
        "  until        2026-12-02 00:00:00 (in 9 d), which is 2026-12-01 23:00:00 UTC",
        "  in place of  unlimited until 2026-11-23 13:00:00 (in 60 min), by root",
        "anna@example.com is LOCKED all the same: password on a phishing site",
        "  to unlock  policyctl unlock anna@example.com",
    ]


@pytest.mark.parametrize(
    ("most", "usual", "told"),
    [
        (100, 500, "messages-per-half-hour, which is LESS than the 500 of the config"),
        (100, None, "messages-per-half-hour, which is LESS than the unlimited of the config"),
        (500, 500, "messages-per-half-hour, which is what the config says anyway"),
        (None, None, "messages-per-half-hour, which is what the config says anyway"),
        (None, 500, "messages-per-half-hour, 500 without the allowance"),
    ],
)
def test_what_is_less_than_before_is_told(most: int | None, usual: int | None, told: str) -> None:
    """Whoever slows an account down by mistake sees it."""
    lines = ctl_allow.allowed({**ALLOWED, "max": most, "usual_max": usual}, PIPE)
    assert lines[1] == f"  limit  {told}"


def test_a_maximum_in_one_message() -> None:
    """It is no window."""
    value = {**ALLOWED, "max": None, "counts": "recipients", "per": "message"}
    assert ctl_allow.allowed(value, PIPE)[0] == "anna@example.com may send unlimited recipients in one message"


def test_allowances_are_a_table() -> None:
    """One a line; where the limit is gone that is said."""
    gone = {**GIVEN, "account": "bert", "limit": "old", "max": None, "reason": None, "in_force": False}
    assert ctl_allow.allowances([{**GIVEN, "in_force": True}, gone], PIPE) == [
        "account           limit                          max  until                         by    reason",
        "anna@example.com  messages-per-half-hour        2000  2026-12-02 00:00:00 (in 9 d)  root  winter mailing",
        "bert              old (no such limit now)  unlimited  2026-12-02 00:00:00 (in 9 d)  root  -",
    ]
    assert ctl_allow.allowances([], PIPE) == ["no account is allowed anything beyond the config"]


def test_what_is_taken_back_is_told_with_what_holds_now() -> None:
    """Or that there is no such limit now, or that there was nothing to take."""
    taken = [ALLOWED, {**ALLOWED, "limit": "old", "max": None, "counts": None, "per": None, "usual_max": None}]
    assert ctl_allow.disallowed({"account": "anna", "disallowed": taken}, None, PIPE) == [
        "anna: messages-per-half-hour is back to 500 messages in 30m; it was 2000 until 2026-12-02 00:00:00",
        "anna: old is no limit now; it was unlimited until 2026-12-02 00:00:00",
    ]
    nothing = {"account": "anna@example.com", "disallowed": []}
    assert ctl_allow.disallowed(nothing, None, PIPE) == ["anna@example.com had no allowance"]
    assert ctl_allow.disallowed(nothing, "x", PIPE) == ["anna@example.com had no allowance for x"]


def test_status_shows_what_a_limit_owes_to_an_allowance() -> None:
    """Until when, by whom, why, and what holds without it."""
    given_by = {"since": GIVEN["since"], "until": GIVEN["until"], "by": "root", "uid": 0, "usual_max": None}
    limits = [
        {**HALF_HOUR, "max": 2000, "allowance": {**given_by, "reason": "winter mailing"}},
        {**HALF_HOUR, "name": "other", "max": None, "allowance": {**given_by, "usual_max": 500, "reason": None}},
        {**HALF_HOUR, "name": "usual", "allowance": None},
    ]
    lines = ctl_text.account({**ANNA, "lock": None, "limits": limits}, PIPE)
    at = lines.index("allowances")
    assert lines[at - 1 : at + 4] == [
        "",
        "allowances",
        "  messages-per-half-hour  2000 until 2026-12-02 00:00:00 (in 9 d), else unlimited; by root: winter mailing",
        "  other                   unlimited until 2026-12-02 00:00:00 (in 9 d), else 500; by root",
        "",
    ]


def test_status_says_nothing_of_allowances_where_there_are_none() -> None:
    """Nor where an older policyd knows nothing of them."""
    for limits in ([HALF_HOUR], [{**HALF_HOUR, "allowance": None}]):
        assert "allowances" not in ctl_text.account({**ANNA, "limits": limits}, PIPE)


@pytest.mark.parametrize(
    "lines",
    [
        ctl_allow.allowed(
            {**ALLOWED, "account": HOSTILE, "lock": {**BY_HAND, "reason": HOSTILE}, "before": {**GIVEN, "by": HOSTILE}},
            PIPE,
        ),
        ctl_allow.allowances(
            [{**GIVEN, "account": HOSTILE, "limit": HOSTILE, "reason": HOSTILE, "by": HOSTILE, "in_force": False}], PIPE
        ),
        ctl_allow.disallowed({"account": HOSTILE, "disallowed": [{**ALLOWED, "limit": HOSTILE}]}, None, PIPE),
        ctl_allow.disallowed({"account": HOSTILE, "disallowed": []}, HOSTILE, PIPE),
        ctl_text.account(
            {
                **ANNA,
                "limits": [
                    {
                        **HALF_HOUR,
                        "name": HOSTILE,
                        "allowance": {"until": GIVEN["until"], "usual_max": 1, "by": HOSTILE, "reason": HOSTILE},
                    }
                ],
            },
            Screen(NOW, VIENNA, 60),
        ),
    ],
)
def test_no_hostile_name_reaches_the_terminal(lines: list[str]) -> None:
    """Whatever an account or a reason is called, it can neither forge a line nor steer the terminal."""
    assert [line for line in lines if any(unicodedata.category(c)[0] == "C" for c in line)] == []
    assert SHOWN in "\n".join(lines)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon that answers what has to do with allowances."""
    answers: dict[str, tuple[int, Any]] = {
        "/allow": (200, ALLOWED),
        "/allowances": (200, []),
        "/disallow": (200, {"account": "anna@example.com", "disallowed": [ALLOWED]}),
    }
    with listening(tmp_path / "control.sock", answers) as server:
        yield server


ASKED: dict[str, Any] = {"account": "anna", "limit": "l", "max": 5, "reason": None, "for": None, "until": None}


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (["allow", "anna", "l", "5", "--for", "24h"], ("POST", "/allow", {**ASKED, "for": "24h"})),
        (
            ["allow", "Anna", "l", "unlimited", "--until", "2090-12-01 18:00Z", "--reason", "a b"],
            (
                "POST",
                "/allow",
                {**ASKED, "account": "Anna", "max": "unlimited", "reason": "a b", "until": "2090-12-01T18:00:00+00:00"},
            ),
        ),
        (
            ["allow", "anna", "l", "5", "--until", "2090-12-01 18:00"],
            ("POST", "/allow", {**ASKED, "until": "2090-12-01T17:00:00+00:00"}),
        ),
        (
            ["allow", "--for", "1h", "--", "-x", "l", "5"],
            ("POST", "/allow", {**ASKED, "account": "-x", "for": "1h"}),
        ),
        (["allowances"], ("GET", "/allowances", None)),
        (["disallow", "anna"], ("POST", "/disallow", {"account": "anna", "limit": None})),
        (["disallow", "anna", "l"], ("POST", "/disallow", {"account": "anna", "limit": "l"})),
    ],
)
def test_each_command_asks_the_daemon_one_thing(daemon: ControlSocket, args: list[str], asked: Any) -> None:
    """A date is sent in UTC, whatever the zone of this computer is."""
    finished = run(daemon, *args)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert daemon.requests == [asked]


def test_each_command_tells_what_was_done(daemon: ControlSocket) -> None:
    """In plain lines."""
    status, out, err = said(run(daemon, "allow", "anna", "l", "5", "--for", "24h"))
    assert (status, out.splitlines()[0], err) == (0, "anna@example.com may send 2000 messages in 30m", "")
    assert said(run(daemon, "allowances")) == (0, "no account is allowed anything beyond the config\n", "")
    assert run(daemon, "disallow", "anna").stdout.startswith("anna@example.com: messages-per-half-hour is back to 500")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "say until when: --for 24h, or --until DATE (what is to be permanent is an override in the config)"),
        (["--for", "1h", "--until", "2090-01-01"], "give either --for or --until, not both"),
    ],
)
def test_just_one_end_has_to_be_given(daemon: ControlSocket, args: list[str], complaint: str) -> None:
    """Nothing is asked before that."""
    assert line_of(run(daemon, "allow", "anna", "l", "5", *args), 2) == f"policyctl: {complaint}"
    assert daemon.requests == []


def test_an_end_in_the_past_is_refused_in_the_persons_own_time(daemon: ControlSocket) -> None:
    """With what the time is now."""
    told = line_of(run(daemon, "allow", "anna", "l", "5", "--until", "2026-01-02"), 2)
    assert told.startswith("policyctl: --until: 2026-01-03 00:00:00 CET is in the past, it is 20")
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["l", "0", "--for", "1h"], "argument MAX: want a whole number above 0, or unlimited, got '0'"),
        (["l", "-5", "--for", "1h"], "-5"),
        (["l", "5.5", "--for", "1h"], "argument MAX: want a whole number above 0, or unlimited, got '5.5'"),
        (["l", "\u0665", "--for", "1h"], "argument MAX: want a whole number above 0, or unlimited, got '\u0665'"),
        (["l", "5", "--for", "soon"], "want a duration such as 45s, 30m, 1h30m or 7d"),
        (["l", "5", "--until", "soon"], 'want a date such as 2026-12-01, "2026-12-01 18:00" or 2026-12-01T18:00+01:00'),
        (["l", "5", "--for", "1h", "--reason", " "], "argument --reason: want a text that is not empty"),
        (["l"], "the following arguments are required: MAX"),
        (["", "5", "--for", "1h"], "argument LIMIT: want a text that is not empty"),
    ],
)
def test_a_command_that_makes_no_sense_is_not_sent(args: list[str], complaint: str) -> None:
    """What cannot be meant is told at once, with exit status 2, whether a daemon runs or not."""
    finished = policyctl("allow", "anna", *args)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert complaint in finished.stderr.splitlines()[-1]
