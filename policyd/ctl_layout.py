"""How policyctl lays things out: lines, times and tables, without I/O.

No line contains a character that a terminal would obey rather than show, whatever accounts and reasons are called.
Nothing is shortened unless a terminal is too narrow for it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import accumulate
from math import ceil, floor
from typing import Any

from policyd.words import printable, shell_word

Json = Any
"""A value as the JSON parser returns it; a function below says which keys it wants, a missing one is a KeyError."""


UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
"""A length of time is told in the largest unit of which it has two."""


MINUTE = 60


GAP = "  "


INDENT = "  "


@dataclass(frozen=True, slots=True)
class Screen:
    """What the text is made for."""

    now: datetime
    zone: tzinfo | None = None
    """The zone in which times are told; None: the zone of this computer."""
    width: int | None = None
    """The columns of the terminal; None: not a terminal, nothing is shortened."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    least: int | None = None
    """The width to which a narrow terminal may shorten it; None: it is never shortened."""


def unlock_command(account: str) -> str:
    """Return what to type to unlock an account."""
    return f"policyctl unlock {account_word(account)}"


def account_word(account: str) -> str:
    """Return what to type behind a command to name an account."""
    word = shell_word(account)
    return f"-- {word}" if account.startswith("-") else word


def counted(number: int, noun: str) -> str:
    """Return `1 message` or `2 messages`, and `no messages` for none."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def shown(lines: Iterable[str]) -> list[str]:
    """Return lines as a terminal may have them."""
    return [printable(line).rstrip() for line in lines]


def time_of(text: str, screen: Screen) -> datetime:
    """Return an ISO 8601 time in the screen's zone; raises ValueError for what is none."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if found.tzinfo is None:
        raise ValueError(f"want a time with its offset, got {text!r}")
    return found.astimezone(screen.zone)


def moment(text: str, screen: Screen) -> str:
    """Return an ISO 8601 time in the screen's zone: `2026-11-23 08:00:00`; raises ValueError for what is none."""
    return f"{time_of(text, screen):%Y-%m-%d %H:%M:%S}"


def when(text: str, screen: Screen) -> str:
    """Return an ISO 8601 time with its distance from now: `2026-11-23 08:00:00 (in 12 min)`; raises ValueError."""
    seconds = (time_of(text, screen) - screen.now).total_seconds()
    return f"{moment(text, screen)} ({ahead(seconds) if seconds > 0 else f'{span(-seconds)} ago'})"


def ahead(seconds: float) -> str:
    """Return a time to come, rounded up: whoever comes back then does not come too early."""
    return f"in {span(seconds, ceil)}" if seconds > 0 else "now"


def span(seconds: float, rounded: Callable[[float], int] = floor) -> str:
    """Return a length of time in the largest unit of which it has two."""
    if seconds >= 2 * MINUTE:
        seconds = MINUTE * rounded(seconds / MINUTE)
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size or size == 1)
    return f"{rounded(max(seconds, 0) / size)} {unit}"


def fields(*labelled: tuple[str, object]) -> list[str]:
    """Return a line for each label and its value."""
    width = max(len(label) for label, _ in labelled)
    return shown(f"{INDENT}{label:<{width}}{GAP}{value}" for label, value in labelled)


def rows(columns: Sequence[Column], cells: Sequence[Sequence[object]], screen: Screen) -> list[str]:
    """Return an indented table without its titles."""
    width = None if screen.width is None else screen.width - len(INDENT)
    return [INDENT + line for line in table(columns, cells, Screen(screen.now, screen.zone, width))[1:]]


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], screen: Screen) -> list[str]:
    """Return a table with its titles."""
    cells = [[column.title for column in columns]] + [[str(value) for value in row] for row in rows]
    cells = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if screen.width is not None:
        _narrow(widths, columns, screen.width)
    return [
        GAP.join(
            _padded(cell, width, column.right) for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    ]


def _narrow(widths: list[int], columns: Sequence[Column], available: int) -> None:
    """Take from the widest column that may be shortened until the table fits, or no column may give more."""
    surplus = sum(widths) + len(GAP) * (len(widths) - 1) - available
    for _ in range(surplus):
        giving = [i for i, column in enumerate(columns) if column.least is not None and widths[i] > column.least]
        if not giving:
            return
        widths[max(giving, key=widths.__getitem__)] -= 1


def fitted(text: str, width: int) -> str:
    """Return a text that is no wider than so many columns; one that is cut ends in `…`."""
    if _width(text) <= width:
        return text
    ends = accumulate(map(_width, text))
    return text[: next(place for place, end in enumerate(ends) if end >= width)] + "…"


def _padded(cell: str, width: int, right: bool) -> str:
    cell = fitted(cell, width)
    padding = " " * (width - _width(cell))
    return padding + cell if right else cell + padding


def _width(text: str) -> int:
    """Return the columns a terminal needs: East Asian wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
