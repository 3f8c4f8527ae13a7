"""YAML with line numbers: what is told of a text that is no YAML, or has keys that nobody knows."""

from __future__ import annotations

import pytest

from policyd.config import ConfigError, parse_config
from tests.configs import LONG, Rows, expected, problems

SECTIONS = (
    "listen, control, database, history, history_rows, max_accounts, account, limits, overrides, observe, notify, "
    "cluster"
)
COLON = "not YAML: a colon where none can be: check the indentation, or put quotes around the text"
MORE_TEXT = "not YAML: text goes on after a closing quote or bracket: put quotes around all of it"
BAD_KEY = "want a key that is text, in quotes if need be"

NOT_YAML: Rows = [
    ("a: b: c", f"1: {COLON}"),
    ("a:\n\t- x", "2: not YAML: a tab, where YAML wants spaces"),
    ("listen: [a, b\ncontrol: /c", "1: not YAML: a list is opened here with '[', and lacks a comma or its ']'"),
    ("account: {lowercase: true", "1: not YAML: a mapping is opened here with '{', and lacks a comma or its '}'"),
    ("control: 'x\nobserve: true", "1: not YAML: a quote is opened here, and never closed"),
    ("a: [*@lists.example.com]", "1: not YAML: text that begins with '*' needs quotes around it"),
    ("a: *lists", "1: not YAML: nothing above is named &lists (text that begins with '*' needs quotes)"),
    ("a: @foo", "1: not YAML: text that begins with '@' needs quotes around it"),
    ("limits:\n  foo:\n    max: 5\n   per: 3", "4: not YAML: the indentation does not fit the lines above"),
    ('a: "REJECT" too many', f"1: {MORE_TEXT}"),
    ("a: {max} messages", f"1: {MORE_TEXT}"),
    ("a: &x 1\nb: &x 2", "2: not YAML: the name &x is given twice"),
    ("observe: true\n---\nobserve: false", "2: not YAML: a second document begins here"),
    ("a: 1\n...\nb", "3: not YAML: text goes on after the end of the document"),
    ('a: "\\q"', "1: not YAML: no escape 'q' (in single quotes a backslash is only itself)"),
    ('observe: true\na: "\\UFFFFFFFF"', "2: not YAML: an escape that names no character"),
    ("observe: true\nb: \x00", "2: not YAML: the character U+0000 cannot stand in YAML"),
    ("a: }", "1: not YAML: '}' where a value should be"),
    ("a: &a\n  - b\n  - *a", "3: not YAML: *a contains itself"),
    ("...\nfoo", "1: not YAML: a document without content"),
    ("[" * 40, "1: not YAML: nested more than 32 levels deep"),
    ("control:/x\nobserve: true\n", f"2: {COLON}"),
    ("? a\nb", "2: not YAML: a key without its colon"),
    (
        "a: |x\n y",
        "1: not YAML: while scanning a block scalar: expected chomping or indentation indicators, but found 'x'",
    ),
    ("a: !x!y z", "1: not YAML: while parsing a node: found undefined tag handle '!x!'"),
    ("&", "1: not YAML: text that begins with '&' needs quotes around it"),
]

STRUCTURE: Rows = [
    ("just text", "1: want a mapping of sections such as 'limits:', got 'just text'"),
    ("- listen", "1: want a mapping of sections such as 'limits:', got a list"),
    ("5", "1: want a mapping of sections such as 'limits:', got 5"),
    ("!foo {}", "1: want a mapping of sections such as 'limits:', got a value tagged '!foo'"),
    ("listn: [x]", "1: listn: unknown key, did you mean 'listen'?"),
    ("xyzzy: 1", f"1: xyzzy: unknown key, want one of {SECTIONS}"),
    ("limits: {}\nobserve: true\nlimits: {}", "3: limits: duplicate key, first on line 1"),
    ("500: 1", f"1: {BAD_KEY}, got 500"),
    ("on: 1", f"1: {BAD_KEY}, got on"),
    ("<<: {a: 1}", "1: merge keys (<<) are not read here: write the keys out"),
    ("? [a]\n: 1", f"1: {BAD_KEY}, got a list"),
    ("? ''\n: 1", f"1: '': unknown key, want one of {SECTIONS}"),
    ('"a\\nb": 1', f"1: 'a\\nb': unknown key, want one of {SECTIONS}"),
    ("x" * 70 + ": 1", f"1: '{LONG}'…: unknown key, want one of {SECTIONS}"),
    ("account:\n  lowercase: true\n  lowercase: false\n", "3: account.lowercase: duplicate key, first on line 2"),
    ("!!str 5: 1", f"1: 5: unknown key, want one of {SECTIONS}"),
]


@pytest.mark.parametrize(("text", "told"), NOT_YAML)
def test_what_is_no_yaml_is_told_in_plain_words_with_its_line(text: str, told: str | list[str]) -> None:
    """A slip of the pen in YAML is told without the parser's jargon."""
    assert problems(text) == expected(told)


@pytest.mark.parametrize(("text", "told"), STRUCTURE)
def test_a_key_that_is_not_known_or_given_twice_is_told(text: str, told: str | list[str]) -> None:
    """Misspelt, doubled and odd keys are named, at every level."""
    assert problems(text) == expected(told)


def test_a_value_below_its_key_is_told_with_its_own_line() -> None:
    """The line is where to put the cursor."""
    assert problems("observe:\n\n  maybe\n") == ["3: observe: want true or false, got 'maybe'"]


def test_bytes_that_are_no_utf_8_are_told_with_their_line() -> None:
    """A file in Latin-1 is not guessed at."""
    with pytest.raises(ConfigError, match=r"^policyd\.yaml:2: not YAML: want UTF-8, got the byte 0xe4$"):
        parse_config(b"observe: true\n# f\xe4llt\n", "policyd.yaml")
