"""What Postfix is told: actions as the config writes them, and as they go over the wire."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.actions import EFFECTS, MAX_ACTION, PLACEHOLDERS, Action, Effect, one_line, parse_action

ACCESS = re.escape(f"want an access(5) action ({', '.join(EFFECTS)}, or a 4xx or 5xx code with a text)")
LOCKED = parse_action("REJECT 5.7.1 Account {account} is locked")


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("REJECT", Action("REJECT", Effect.REFUSED, "REJECT")),
        ("reject 5.7.1 No", Action("REJECT", Effect.REFUSED, "REJECT 5.7.1 No")),
        ("  HOLD   for a look  ", Action("HOLD", Effect.HELD, "HOLD for a look")),
        ("452 4.5.3 Later", Action("452", Effect.REFUSED, "452 4.5.3 Later")),
        ("550 No", Action("550", Effect.REFUSED, "550 No")),
        ("defer_if_permit x", Action("DEFER_IF_PERMIT", Effect.REFUSED, "DEFER_IF_PERMIT x")),
        ("DISCARD", Action("DISCARD", Effect.HELD, "DISCARD")),
        ("REDIRECT abuse@example.com", Action("REDIRECT", Effect.HELD, "REDIRECT abuse@example.com")),
        ("WARN {count} of {max}", Action("WARN", Effect.PASSED, "WARN {count} of {max}")),
        ("REJECT a = b", Action("REJECT", Effect.REFUSED, "REJECT a = b")),
        ("REJECT Zuviel für heute", Action("REJECT", Effect.REFUSED, "REJECT Zuviel für heute")),
    ],
)
def test_an_action_is_read_with_what_it_does_to_the_mail(text: str, action: Action) -> None:
    """The word is in capitals, the text as it was written."""
    assert parse_action(text) == action


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "want an access.5. action such as .*: to Postfix an empty one means permit"),
        ("   ", "want an access.5. action such as .*: to Postfix an empty one means permit"),
        ("450", "want a text after 450: to Postfix digits alone mean permit"),
        ("0", "want a text after 0: to Postfix digits alone mean permit"),
        ("450 {until}", "want a text after 450: to Postfix digits alone mean permit"),
        ("450 {until} {account}", "want a text after 450: to Postfix digits alone mean permit"),
        ("250 Fine", "want a reply code from 400 to 599"),
        ("4520 Long", "want a reply code from 400 to 599"),
        ("٤٥٢ Later", "want a reply code from 400 to 599"),
        ("KILL", ACCESS),
        ("4.5.3 Later", ACCESS),
        ("REJECT\u00a0text", ACCESS),
        ("{account}", ACCESS),
        ("REJECT\nOK", "want an action on one line, without control characters"),
        ("HOLD\n", "want an action on one line, without control characters"),
        ("REJECT a\tb", "want an action on one line, without control characters"),
        ("REJECT \x00", "want an action on one line, without control characters"),
        ("REJECT \x85", "want an action on one line, without control characters"),
        ("REJECT \u2028", "want an action on one line, without control characters"),
        ("REJECT \ud800", "want an action on one line, without control characters"),
        ("REDIRECT", "want an argument after REDIRECT"),
        ("FILTER ", "want an argument after FILTER"),
        ("REJECT {acount}", "want one of {account} {limit} {max} {per} {count} {until} in braces"),
        ("REJECT " + "é" * 197, "want an action of at most 400 bytes"),
    ],
)
def test_what_postfix_would_misunderstand_is_refused(text: str, wanted: str) -> None:
    """A permit, a configuration error or a broken reply never comes of a slip in the config."""
    with pytest.raises(ValueError, match=f"^{wanted}$"):
        parse_action(text)


def test_an_action_may_be_400_bytes_long() -> None:
    """The bound is the one that a reply is cut at."""
    assert len(parse_action("REJECT " + "x" * 393).template) == MAX_ACTION


def test_every_placeholder_is_filled_in() -> None:
    """A customer is told who, what and how much."""
    action = parse_action("REJECT {account} {limit} {max} {per} {count} {until}")
    values = dict(zip(PLACEHOLDERS, ("anna", "burst", 500, "30m", 501, "noon"), strict=True))
    assert action.render(values) == "REJECT anna burst 500 30m 501 noon"


def test_a_value_is_not_searched_for_placeholders() -> None:
    """An account named {max} is just that."""
    assert LOCKED.render({"account": "{max}", "max": 5}) == "REJECT 5.7.1 Account {max} is locked"


def test_an_absent_value_leaves_nothing_behind() -> None:
    """No braces reach a customer."""
    assert parse_action("REJECT until {until}").render({}) == "REJECT until"


@pytest.mark.parametrize(
    ("account", "told"),
    [
        ("anna@example.com", "anna@example.com"),
        ("a\n\naction=OK", "a??action=OK"),
        ("a\r\naction=DUNNO\n\n", "a??action=DUNNO??"),
        ("a\x00b", "a?b"),
        ("a\tb\x7f\x80\x9f", "a?b???"),
        ("a\x85b\u2028c\u2029d", "a?b?c?d"),
        ("a=b", "a=b"),
        ("\ud800\udfff", "??"),
        ("jürgen@example.com", "jürgen@example.com"),
        ("😀", "😀"),
    ],
)
def test_a_value_cannot_end_the_line_or_start_another_attribute(account: str, told: str) -> None:
    """Whatever somebody calls himself, Postfix gets one action."""
    assert LOCKED.render({"account": account}) == f"REJECT 5.7.1 Account {told} is locked"


def test_a_name_of_9_kilobytes_is_cut() -> None:
    """Postfix itself cuts a reply of 510 bytes, in the middle of a character if need be."""
    assert LOCKED.render({"account": "x" * 9000}) == "REJECT 5.7.1 Account " + "x" * 379


@pytest.mark.parametrize("filler", ["", "x", "xx", "xxx"])
@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_what_is_cut_at_400_bytes_stays_valid_utf_8(filler: str, character: str) -> None:
    """A character that does not fit goes as a whole."""
    text = LOCKED.render({"account": filler + character * 400})
    size = len(character.encode())
    assert MAX_ACTION - size < len(text.encode()) <= MAX_ACTION
    assert text == "REJECT 5.7.1 Account " + filler + character * ((MAX_ACTION - 21 - len(filler)) // size)


def test_a_blank_at_the_cut_is_not_sent() -> None:
    """What would be trailing space is left out."""
    assert one_line("x" * 399 + " tail") == "x" * 399


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_short_line(text: str) -> None:
    """The law of a reply holds for all that Unicode has, surrogates included."""
    line = one_line(text)
    assert len(line.encode()) <= MAX_ACTION
    assert len(line.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    assert one_line(line) == line


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(["REJECT {account}", "452 x{account}", "HOLD"]))
def test_whatever_is_filled_in_the_action_stays_what_it_is(account: str, template: str) -> None:
    """No account's name turns a refusal into something else."""
    action = parse_action(template)
    word, _, text = action.render({"account": account}).partition(" ")
    assert word == action.word
    assert text or not word.isdigit()


@given(st.text() | st.builds("{} {}".format, st.sampled_from([*EFFECTS, "450", "571"]), st.text()))
def test_any_text_is_an_action_or_refused(text: str) -> None:
    """What is read can be rendered, and is never a permit."""
    with contextlib.suppress(ValueError):
        rendered = parse_action(text).render({})
        assert rendered
        assert not rendered.isdigit()
