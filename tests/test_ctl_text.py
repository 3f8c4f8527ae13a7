"""What policyctl prints for people, line by line."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from policyd import ctl_text
from policyd.ctl_layout import Screen

VIENNA = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 23, 11, 0, 0, tzinfo=timezone.utc)
PIPE = Screen(NOW, VIENNA)

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "started": "2026-11-23T08:00:00+00:00",
    "uptime": 10800.5,
    "accounts": 3,
    "locked": 1,
    "connections": 2,
    "requests": {"RCPT": 12, "DATA": 4},
    "answers": {"DUNNO": 14, "REJECT": 2},
    "protocol_errors": 0,
    "internal_errors": 0,
    "hooks": {"RCPT": True, "DATA": True, "END-OF-MESSAGE": False},
    "store": "memory",
    "problems": [],
}

BY_LIMIT: dict[str, Any] = {
    "account": "anna@example.com",
    "since": "2026-11-23T08:00:00+00:00",
    "until": None,
    "limit": "messages-per-half-hour",
    "count": 501,
    "by": "policyd",
    "reason": "more than 500 messages in 30m",
    "action": "REJECT",
}

BY_HAND: dict[str, Any] = {
    "account": "bert@example.com",
    "since": "2026-11-23T10:59:30+00:00",
    "until": "2026-11-23T12:59:30+00:00",
    "limit": None,
    "count": None,
    "by": "root",
    "reason": "password on a phishing site",
    "action": "HOLD",
}

PER_MESSAGE: dict[str, Any] = {
    "name": "recipients-per-message",
    "count": None,
    "max": 5000,
    "per": "message",
    "resets_in": None,
}
HALF_HOUR: dict[str, Any] = {
    "name": "messages-per-half-hour",
    "count": 500,
    "max": 500,
    "per": "30m",
    "resets_in": 700.2,
}
UNLIMITED: dict[str, Any] = {**HALF_HOUR, "max": None, "count": 37}

ANNA: dict[str, Any] = {
    "account": "anna@example.com",
    "seen": True,
    "lock": BY_LIMIT,
    "limits": [PER_MESSAGE, HALF_HOUR],
    "refused": 1,
    "held": 0,
    "attempts_while_locked": 7,
    "observed": 0,
    "warned": 0,
    "clients": [{"address": "192.0.2.7", "last": "2026-11-23T10:57:00+00:00"}],
}

UNSEEN: dict[str, Any] = {
    **ANNA,
    "account": "dora@example.com",
    "seen": False,
    "lock": None,
    "limits": [PER_MESSAGE, {**HALF_HOUR, "count": 0, "resets_in": None}],
    "refused": 0,
    "attempts_while_locked": 0,
    "clients": [],
}


def test_status_tells_the_state_of_the_daemon() -> None:
    """The state of a healthy daemon fits on one screen, in aligned plain words."""
    assert ctl_text.status(STATUS, PIPE) == [
        "policyd 0.1.0 is running",
        "  up since     2026-11-23 09:00:00 (for 3 h)",
        "  requests     16 (RCPT 12, DATA 4)",
        "  answers      16 (DUNNO 14, REJECT 2)",
        "  accounts     3",
        "  locked       1 (policyctl locked shows them)",
        "  connections  2",
        "  errors       none",
        "  hooks seen   RCPT, DATA (not seen: END-OF-MESSAGE)",
        "  store        memory",
    ]


def test_status_of_a_daemon_that_nobody_has_asked_yet() -> None:
    """A daemon that Postfix has never asked says so in words, not in empty places."""
    fresh = {
        **STATUS,
        "locked": 0,
        "requests": {},
        "answers": {},
        "hooks": {"RCPT": False, "DATA": False, "END-OF-MESSAGE": False},
    }
    lines = ctl_text.status(fresh, PIPE)
    assert lines[2:4] == ["  requests     none", "  answers      none"]
    assert lines[5] == "  locked       none"
    assert lines[8] == "  hooks seen   none (not seen: RCPT, DATA, END-OF-MESSAGE)"


def test_status_ends_with_the_problems() -> None:
    """What is wrong stands last, where the eye is."""
    problems = ["no DATA requests seen: messages are counted at RCPT", "the database is read-only"]
    assert ctl_text.status({**STATUS, "problems": problems}, PIPE)[-4:] == [
        "",
        "PROBLEMS",
        "  - no DATA requests seen: messages are counted at RCPT",
        "  - the database is read-only",
    ]


@pytest.mark.parametrize(
    ("protocol", "internal", "told"),
    [
        (1, 0, "1 protocol error"),
        (2, 0, "2 protocol errors"),
        (0, 1, "1 internal error (please report: the log has the traceback)"),
        (3, 2, "3 protocol errors, 2 internal errors (please report: the log has the traceback)"),
    ],
)
def test_status_counts_errors(protocol: int, internal: int, told: str) -> None:
    """Bad input from outside and bugs of policyd are told apart."""
    lines = ctl_text.status({**STATUS, "protocol_errors": protocol, "internal_errors": internal}, PIPE)
    assert lines[7] == f"  errors       {told}"


def test_a_locked_account_is_told_with_why_and_how_to_free_it() -> None:
    """The first line says that the account is locked, until when and why; the unlocking command can be copied."""
    assert ctl_text.account(ANNA, PIPE) == [
        "anna@example.com is LOCKED until unlocked: more than 500 messages in 30m",
        "  since      2026-11-23 09:00:00 (3 h ago)",
        "  by         policyd, limit messages-per-half-hour at 501",
        "  answer     REJECT",
        "  to unlock  policyctl unlock anna@example.com",
        "",
        "limits",
        "  recipients-per-message  5000 in one message",
        "  messages-per-half-hour  500 of 500 in 30m    100%  oldest leaves in 12 min",
        "",
        "tallies",
        "  refused                1",
        "  held                   0",
        "  tried while locked     7",
        "  observed, not refused  0",
        "  warned, let pass       0",
        "",
        "recent clients",
        "  192.0.2.7  2026-11-23 11:57:00 (3 min ago)",
    ]


def test_an_account_locked_by_hand_tells_by_whom_and_until_when() -> None:
    """A lock made by a person names that person, its end, and that the mail is held."""
    assert ctl_text.account({**ANNA, "account": "bert@example.com", "lock": BY_HAND}, PIPE)[:5] == [
        "bert@example.com is LOCKED until 2026-11-23 13:59:30 (in 2 h), its mail is held: password on a phishing site",
        "  since      2026-11-23 11:59:30 (30 s ago)",
        "  by         root, by hand",
        "  answer     HOLD",
        "  to unlock  policyctl unlock bert@example.com",
    ]


def test_a_locked_account_tells_what_led_to_it() -> None:
    """Who sent, from where and as whom, how much more of that there is, and where to read on."""
    evidence = {
        "first": "2026-11-23T10:40:00+00:00",
        "messages": 500,
        "recipients": 1,
        "clients": [{"address": "192.0.2.7", "messages": 300}, {"address": "2001:db8::1", "messages": 5}],
        "senders": [{"sender": "a\x1b@example.com", "messages": 500}],
        "queue_ids": [f"4bCd{number}" for number in range(10)],
        "distinct_clients": 9,
        "distinct_senders": 1,
    }
    lines = ctl_text.account({**ANNA, "account": "-x", "lock": BY_HAND, "evidence": evidence}, PIPE)
    assert lines[lines.index("what led to it") :][:9] == [
        "what led to it",
        "  first       2026-11-23 11:40:00 (20 min ago)",
        "  sent        500 messages to 1 recipient",
        "  clients     9: 192.0.2.7 (300), 2001:db8::1 (5), and 7 more",
        "  senders     a\\x1b@example.com (500)",
        "  latest      4bCd0 4bCd1 4bCd2 4bCd3 4bCd4",
        f"  since then  {ANNA['attempts_while_locked']} attempts",
        "  history     policyctl history -- -x",
        "  queue       policyctl queue -- -x",
    ]


def test_a_free_account_says_so_first() -> None:
    """Nobody has to search for the absence of a lock."""
    assert ctl_text.account({**ANNA, "lock": None}, PIPE)[:2] == ["anna@example.com is not locked", ""]


def test_an_unseen_account_still_has_limits() -> None:
    """An account that has never sent is told in one line, with the limits it will have."""
    assert ctl_text.account(UNSEEN, PIPE) == [
        "dora@example.com: no activity seen",
        "",
        "limits",
        "  recipients-per-message  5000 in one message",
        "  messages-per-half-hour  0 of 500 in 30m      0%",
    ]


def test_an_unseen_account_can_be_locked() -> None:
    """An account that was locked before it sent anything shows its lock first."""
    lines = ctl_text.account({**UNSEEN, "lock": BY_HAND}, PIPE)
    assert lines[0].startswith("dora@example.com is LOCKED until 2026-11-23 13:59:30")
    assert lines[5] == "dora@example.com: no activity seen"


def test_unlimited_is_said_in_a_word() -> None:
    """An account that an override frees from a limit shows its count and the word unlimited."""
    limits = [{**PER_MESSAGE, "max": None}, UNLIMITED]
    assert ctl_text.account({**UNSEEN, "limits": limits}, PIPE)[3:] == [
        "  recipients-per-message  unlimited in one message",
        "  messages-per-half-hour  37 in 30m, unlimited        oldest leaves in 12 min",
    ]


def test_what_is_not_counted_is_not_shown() -> None:
    """An unlimited window that nobody counts shows the word alone."""
    limits = [{**UNLIMITED, "count": None, "resets_in": None}]
    assert ctl_text.account({**UNSEEN, "limits": limits}, PIPE)[3:] == ["  messages-per-half-hour  unlimited"]
    assert ctl_text.accounts([{**ANNA, "locked": False, "limits": limits}], None, PIPE)[1:] == [
        "anna@example.com  free                unlimited        1     0"
    ]


def test_a_limit_is_not_called_full_before_it_is() -> None:
    """Percentages are rounded down: 100% means that the next one is refused."""
    limits = [{**HALF_HOUR, "count": 4999, "max": 5000}]
    assert "  99%  " in ctl_text.account({**UNSEEN, "limits": limits}, PIPE)[3]


def test_accounts_is_a_table_with_a_column_for_each_window() -> None:
    """Who sends most stands in aligned columns; limits of one message have no count, and no column."""
    value = [
        {**ANNA, "locked": True},
        {**ANNA, "account": "news@example.com", "locked": False, "limits": [UNLIMITED], "refused": 12},
        {**ANNA, "account": "c", "locked": False, "limits": [{**HALF_HOUR, "count": 5}], "refused": 0, "held": 3},
    ]
    assert ctl_text.accounts(value, None, PIPE) == [
        "account           state   messages-per-half-hour  refused  held",
        "anna@example.com  LOCKED            500/500 100%        1     0",
        "news@example.com  free            37 (unlimited)       12     0",
        "c                 free                5/500   1%        0     3",
    ]


@pytest.mark.parametrize(("over", "line"), [(None, "no account has sent anything"), (80, "no account is over 80%")])
def test_accounts_says_when_there_are_none(over: int | None, line: str) -> None:
    """An empty table is told in words."""
    assert ctl_text.accounts([], over, PIPE) == [line]


def test_locked_is_a_table() -> None:
    """Every lock is one line; the last column is the limit, or the reason that a person gave."""
    assert ctl_text.locked([BY_LIMIT, BY_HAND], PIPE) == [
        "account           since                           until                         "
        "by       answer  count  limit, or reason given",
        "anna@example.com  2026-11-23 09:00:00 (3 h ago)   unlocked                      "
        "policyd  REJECT    501  messages-per-half-hour",
        "bert@example.com  2026-11-23 11:59:30 (30 s ago)  2026-11-23 13:59:30 (in 2 h)  "
        "root     HOLD        -  password on a phishing site",
    ]


def test_locked_says_when_nobody_is() -> None:
    """The best news is one line."""
    assert ctl_text.locked([], PIPE) == ["no account is locked"]


def test_lock_tells_what_it_has_done() -> None:
    """A lock by hand is confirmed with its end, its effect and its reason."""
    assert ctl_text.lock_made(BY_HAND, PIPE) == [
        "bert@example.com locked until 2026-11-23 13:59:30 (in 2 h), its mail is held: password on a phishing site"
    ]
    assert ctl_text.lock_made({**BY_HAND, "until": None, "action": "REJECT"}, PIPE) == [
        "bert@example.com locked until unlocked: password on a phishing site"
    ]


def test_unlock_tells_who_was_freed_and_who_was_free() -> None:
    """One line for each account."""
    assert ctl_text.unlocked({"unlocked": ["anna@example.com"], "free": ["bert@example.com"]}) == [
        "anna@example.com unlocked; its windows start anew",
        "bert@example.com was not locked",
    ]


def test_unlock_tells_what_stays_on_hold() -> None:
    """Right below the account, with the command that shows it; an account with a strange name can be typed, too."""
    assert ctl_text.unlocked({"unlocked": ["anna", "bert", "-x y"], "free": [], "held": ["anna", "-x y"]}) == [
        "anna unlocked; its windows start anew",
        "  what was held stays on hold: policyctl queue --queue hold anna",
        "bert unlocked; its windows start anew",
        "-x y unlocked; its windows start anew",
        "  what was held stays on hold: policyctl queue --queue hold -- '-x y'",
    ]


@pytest.mark.parametrize(
    ("seen", "line"),
    [(True, "anna: its counts are forgotten"), (False, "anna: no activity seen, there was nothing to forget")],
)
def test_reset_tells_whether_there_was_something_to_forget(seen: bool, line: str) -> None:
    """A mistyped name does not look like success."""
    assert ctl_text.counts_reset({"account": "anna", "seen": seen}) == [line]


@pytest.mark.parametrize(
    ("changed", "needs_restart", "lines"),
    [
        ([], [], ["nothing changed"]),
        (["limits.x.max: 500 -> 600"], [], ["limits.x.max: 500 -> 600"]),
        (
            ["listen: a -> b"],
            ["listen", "control"],
            ["listen: a -> b", "in force only after a restart (systemctl restart policyd): listen, control"],
        ),
    ],
)
def test_reload_tells_what_changed(changed: list[str], needs_restart: list[str], lines: list[str]) -> None:
    """Each change is a line, and what has to wait for a restart is named."""
    assert ctl_text.reloaded({"changed": changed, "needs_restart": needs_restart}) == lines


@pytest.mark.parametrize(
    ("since", "hint"),
    [
        ("2026-11-23T11:00:00Z", "2026-11-23 12:00:00 (0 s ago)"),
        ("2026-11-23T10:58:01+00:00", "2026-11-23 11:58:01 (119 s ago)"),
        ("2026-11-23T12:58:00+02:00", "2026-11-23 11:58:00 (2 min ago)"),
        ("2026-11-23T09:00:01+00:00", "2026-11-23 10:00:01 (119 min ago)"),
        ("2026-11-21T11:00:01+00:00", "2026-11-21 12:00:01 (47 h ago)"),
        ("2026-11-21T11:00:00+00:00", "2026-11-21 12:00:00 (2 d ago)"),
        ("2026-11-23T11:11:00.500000+00:00", "2026-11-23 12:11:00 (in 12 min)"),
    ],
)
def test_times_are_local_and_say_how_far_off_they_are(since: str, hint: str) -> None:
    """What is past is rounded down, what is to come is rounded up; nobody has to subtract."""
    assert ctl_text.account({**ANNA, "lock": {**BY_LIMIT, "since": since}}, PIPE)[1] == f"  since      {hint}"


def test_a_time_without_offset_is_not_guessed() -> None:
    """A time that does not say its zone is refused rather than shown an hour wrong."""
    with pytest.raises(ValueError, match="want a time with its offset"):
        ctl_text.lock_made({**BY_HAND, "until": "2026-11-23T12:00:00"}, PIPE)


BYTES: dict[str, Any] = {
    **HALF_HOUR,
    "name": "bytes-per-day",
    "counts": "bytes",
    "count": 3_355_443,
    "max": 524_288_000,
}


def test_bytes_are_told_as_sizes() -> None:
    """Nobody counts the digits of a number of bytes."""
    limits = [{**BYTES, "per": "1d"}, {**BYTES, "name": "free", "max": None}]
    lock = {**BY_LIMIT, "limit": "bytes-per-day", "counts": "bytes", "count": 524_400_000, "reason": "more"}
    lines = ctl_text.account({**ANNA, "lock": lock, "limits": limits}, PIPE)
    assert "  by         policyd, limit bytes-per-day at 500.1M" in lines
    assert "  bytes-per-day  3.1M of 500M in 1d      0%  oldest leaves in 12 min" in lines
    assert "  free           3.1M in 30m, unlimited      oldest leaves in 12 min" in lines
    title, row = ctl_text.accounts([{**ANNA, "locked": True, "limits": limits}], None, PIPE)
    assert title.split() == ["account", "state", "bytes-per-day", "free", "refused", "held"]
    assert row.split() == ["anna@example.com", "LOCKED", "3.1M/500M", "0%", "3.1M", "(unlimited)", "1", "0"]
    assert " 500.1M  bytes-per-day" in ctl_text.locked([lock], PIPE)[1]
