"""The texts of the mails: a subject, an empty line, and the body, with fields in braces.

The fields are a closed set for each text, and whatever is filled in stays on its line: an account's name can neither
add a line nor a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from policyd.words import printable

MAX_TEMPLATE = 16 * 1024
"""Bytes of a template file."""

MAX_SUBJECT = 200
"""Characters of a template's subject, with its fields not filled in."""

MAX_FILLED = 200
"""Characters of what is filled in for a field."""

MAX_LINE = 900
"""Characters of a template's line: in mail, a line has at most 998 bytes (RFC 5322 2.1.1)."""

_FIELD = re.compile(r"\{([^{}\n]*)\}|[{}]")
_COMMON = ("event", "time", "host", "id")
_ACCOUNT = ("account", "account_word", *_COMMON)

FIELDS: Mapping[str, tuple[str, ...]] = {
    "lock": ("reason", "limit", "count", "until", "by", "action", *_ACCOUNT),
    "unlock": ("by", "attempts", *_ACCOUNT),
    "expiry": ("attempts", *_ACCOUNT),
    "warning": ("limit", "count", "max", "per", "percent", *_ACCOUNT),
    "digest": ("of", "number", "accounts", "others", *_COMMON),
    "test": ("by", *_COMMON),
}
"""What can be filled in where people are told of an event."""

LISTS = ("accounts",)
"""Fields that are filled in with a line for each of their values."""

DESK = tuple(f"desk-{event}" for event in FIELDS)
TEXTS = (*DESK, "account-lock", "account-unlock", "account-expiry", "account-warning")
"""The names of all texts: who gets the mail, and about what."""

NEEDED = {"lock": "account", "unlock": "account", "expiry": "account", "warning": "account", "digest": "accounts"}
"""What the desk has to be told, or it cannot act."""


class TemplateProblem(NamedTuple):
    """One thing that is wrong with a template, in the order of ConfigProblem's fields."""

    file: str
    line: int | None
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """A text of a mail."""

    subject: str
    body: str

    def subject_with(self, values: Mapping[str, object]) -> str:
        """Return the subject with these values, on one line."""
        return _FIELD.sub(lambda found: filled(values.get(found[1])), self.subject)

    def body_with(self, values: Mapping[str, object]) -> str:
        """Return the body with these values."""
        return _FIELD.sub(lambda found: _lines(values.get(found[1])), self.body)


Texts = Mapping[str, Template]


def filled(value: object) -> str:
    """Return what stands for a value in a text: short, on one line; a dash where there is none."""
    if value is None:
        return "-"
    text = str(value)
    if len(text) > MAX_FILLED:
        text = text[:MAX_FILLED] + "…"
    return printable(text)


def _lines(value: object) -> str:
    return "\n".join(map(filled, value)) if isinstance(value, list | tuple) else filled(value)


def read_texts(sources: Mapping[str, tuple[str, str]]) -> tuple[Texts, list[TemplateProblem]]:
    """Read templates, by name with their file and text; return all that is wrong with them, too."""
    problems: list[TemplateProblem] = []
    texts = {name: _template(name, file, text, problems) for name, (file, text) in sources.items()}
    return texts, problems


def _template(name: str, file: str, text: str, problems: list[TemplateProblem]) -> Template:
    event = name.partition("-")[2]
    lines = text.replace("\r\n", "\n").split("\n")
    first = lines[0]
    subject = first.removeprefix("Subject:").strip()
    if not first.startswith("Subject:") or not subject:
        problems.append(TemplateProblem(file, 1, "", "want a first line such as 'Subject: {account} is locked'"))
    elif len(subject) > MAX_SUBJECT:
        problems.append(TemplateProblem(file, 1, "", f"want a subject of at most {MAX_SUBJECT} characters"))
    if len(lines) > 1 and lines[1].strip():
        problems.append(TemplateProblem(file, 2, "", "want an empty line between the subject and the text"))
    body = "\n".join(lines[2:]).strip("\n")
    if not body:
        problems.append(TemplateProblem(file, len(lines), "", "want a text below the subject"))
    problems += [TemplateProblem(file, *problem) for problem in _problems(lines, FIELDS[event])]
    needed = NEEDED.get(event)
    if name in DESK and needed and f"{{{needed}}}" not in text:
        problems.append(TemplateProblem(file, None, "", f"want {{{needed}}} in it: the desk could not act without"))
    return Template(subject, body + "\n")


def _problems(lines: list[str], known: Iterable[str]) -> Iterable[tuple[int, str, str]]:
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            yield number, "", f"want lines of at most {MAX_LINE} characters"
        elif not line.replace("\t", " ").isprintable():
            yield number, "", f"want lines without control characters, got {line[:MAX_FILLED]!r}"
        for found in _FIELD.finditer(line):
            if found[1] not in known or (number == 1 and found[1] in LISTS):
                names = " ".join(f"{{{name}}}" for name in known if number > 1 or name not in LISTS)
                yield number, "", f"unknown field {found[0][:MAX_FILLED]}, want one of {names}"
