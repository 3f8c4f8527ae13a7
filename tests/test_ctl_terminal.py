"""What policyctl sends to a terminal: nothing that steers it, in columns that fit."""

from __future__ import annotations

import unicodedata

import pytest

from policyd import ctl_text
from policyd.ctl_layout import Screen
from policyd.words import printable, shell_word
from tests.test_ctl_text import ANNA, BY_HAND, BY_LIMIT, NOW, PIPE, STATUS, UNSEEN, VIENNA


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("anna@example.com", "anna@example.com"),
        ("jürgen 李", "jürgen 李"),
        ("a\nb\r", r"a\nb\r"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("moc\u202eanna", r"moc\u202eanna"),
        ("a\u200bb\u2028", r"a\u200bb\u2028"),
        ("\ud800", r"\ud800"),
        (r"caf\xe9", r"caf\xe9"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_escaped(text: str, shown: str) -> None:
    r"""Escapes, line ends and invisible characters are seen, never obeyed; policyd's own `\xNN` stays as it is."""
    assert printable(text) == shown


HOSTILE = "\x1b]0;owned\x07\nroot is not locked\u202e"


@pytest.mark.parametrize(
    "lines",
    [
        ctl_text.status({**STATUS, "problems": [HOSTILE], "requests": {HOSTILE: 1}, "store": HOSTILE}, PIPE),
        ctl_text.account({**ANNA, "account": HOSTILE, "lock": {**BY_HAND, "reason": HOSTILE, "by": HOSTILE}}, PIPE),
        ctl_text.account({**UNSEEN, "account": HOSTILE}, PIPE),
        ctl_text.accounts([{**ANNA, "account": HOSTILE, "locked": True}], None, PIPE),
        ctl_text.locked([{**BY_HAND, "account": HOSTILE, "reason": HOSTILE}], PIPE),
        ctl_text.locked_lately([{**BY_HAND, "account": HOSTILE, "reason": HOSTILE, "by": HOSTILE}], PIPE),
        ctl_text.lock_made({**BY_HAND, "account": HOSTILE, "reason": HOSTILE}, PIPE),
        ctl_text.unlocked({"unlocked": [HOSTILE], "free": [HOSTILE], "held": [HOSTILE]}),
        ctl_text.counts_reset({"account": HOSTILE, "seen": True}),
        ctl_text.reloaded({"changed": [HOSTILE], "needs_restart": [HOSTILE]}),
    ],
)
def test_no_command_sends_a_hostile_name_to_the_terminal(lines: list[str]) -> None:
    """Whatever an account, a reason or a config line is called, it can neither forge a line nor steer the terminal."""
    assert [line for line in lines if any(unicodedata.category(c)[0] == "C" for c in line)] == []
    assert "root is not locked" not in lines
    assert r"\x1b]0;owned\x07\nroot is not locked\u202e" in "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("anna@example.com", "anna@example.com"),
        ("a b", "'a b'"),
        ("$(reboot)", "'$(reboot)'"),
        ("a'\\\n\u202e", r"$'a\'\\\x0a\xe2\x80\xae'"),
    ],
)
def test_a_command_to_copy_is_safe_to_paste(name: str, word: str) -> None:
    """A name in a suggested command is quoted for the shell, also where it contains what cannot be printed."""
    assert shell_word(name) == word


def test_a_name_like_an_option_can_be_unlocked() -> None:
    """The suggested command works for a name that begins with a dash."""
    assert ctl_text.account({**ANNA, "account": "-n"}, PIPE)[4] == "  to unlock  policyctl unlock -- -n"


LONG = "a-very-long-account-name@a-very-long-domain.example.com"


def test_a_narrow_terminal_shortens_names() -> None:
    """On a terminal a long name is cut with an ellipsis, so that the columns stay aligned."""
    value = [{**ANNA, "account": LONG, "locked": False}, {**ANNA, "locked": False}]
    assert ctl_text.accounts(value, None, Screen(NOW, VIENNA, width=70)) == [
        "account                   state  messages-per-half-hour  refused  held",
        "a-very-long-account-nam…  free             500/500 100%        1     0",
        "anna@example.com          free             500/500 100%        1     0",
    ]


def test_a_pipe_gets_names_whole() -> None:
    """What is no terminal gets every name in full length."""
    assert ctl_text.accounts([{**ANNA, "account": LONG, "locked": False}], None, PIPE)[1].startswith(f"{LONG}  free")


def test_a_terminal_too_narrow_for_the_least_gets_more_than_fits() -> None:
    """A name is never shortened to nothing: below that, the terminal wraps."""
    lines = ctl_text.accounts([{**ANNA, "account": LONG, "locked": False}], None, Screen(NOW, VIENNA, width=10))
    assert lines[1].startswith("a-very-long-acc…  free")


def test_wide_characters_keep_columns_aligned() -> None:
    """A character that takes two columns of the terminal counts as two, a combining one as none."""
    locks = [{**BY_LIMIT, "account": "李李@example.com"}, {**BY_LIMIT, "account": "e\u0301@example.com"}]
    lines = ctl_text.locked(locks, PIPE)
    assert lines[1].startswith("李李@example.com  2026")
    assert lines[2].startswith("e\u0301@example.com     2026")
