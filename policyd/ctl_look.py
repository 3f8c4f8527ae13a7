"""What `policyctl top` shows: one look at the daemon, and the rates since the look before, as lines that fit a screen.

Without I/O, but for `look`, which asks the daemon. Nothing here is longer than the screen is wide or high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlencode

from policyd import ctl_layout, ctl_text
from policyd.ctl_client import Ask, Question
from policyd.ctl_layout import Json, Screen, fitted
from policyd.words import printable

SORTS = ("messages", "recipients", "clients", "senders", "bytes", "refused")
"""What one can sort by, in the order in which the key goes through them."""

STRANGE = "the daemon's answer is not what policyctl expects: is policyd of the same version?"

REST = 3
"""How many times as long as its answers took the daemon is left in peace after them."""

LISTED = 20
"""Locks and accounts that --json lists."""

TABLES = 3
"""The parts of what the head leaves of the screen: locks take one at the most, and problems another."""

LEAST_ROWS = 3
"""Rows for locks, and for problems, however small the screen is: the title, one of them, how many more there are."""


class Look(NamedTuple):
    """What the daemon answered at one look."""

    status: Json
    locked: Json
    accounts: Json
    sort: str


class Rates(NamedTuple):
    """How often things happened between two looks, in events a second."""

    seconds: float
    requests: dict[str, float]
    answers: dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a screen, in columns and rows."""

    width: int
    height: int


def look(asked: Ask, sort: str, most: int) -> Look:
    """Ask for the state, and for so many locks and accounts; raises CtlError."""
    status = asked(Question("/status"))
    locked = asked(Question(f"/locked?n={most}"))
    accounts = asked(Question("/accounts?" + urlencode({"sort": sort, "n": most})))
    return Look(status, locked, accounts, sort)


def interval(every: float, took: float) -> float:
    """Return the seconds from one look to the next, where somebody wants one so often, and the last took so long."""
    return max(every, (1 + REST) * took)


def rates(before: Json, after: Json) -> Rates | None:
    """Return the rates between two states of the daemon; None when it was started anew, or no time has passed."""
    seconds = after["uptime"] - before["uptime"]
    if before["started"] != after["started"] or seconds <= 0:
        return None
    requests, answers = (
        {name: max(count - before[kind].get(name, 0), 0) / seconds for name, count in after[kind].items()}
        for kind in ("requests", "answers")
    )
    return Rates(seconds, requests, answers)


def as_json(found: Look, rate: Rates | None) -> dict[str, Any]:
    """Return a look as a JSON value, as docs/control.md describes it."""
    shown = None if rate is None else {kind: _rounded(value) for kind, value in rate._asdict().items()}
    return {"rates": shown, "status": found.status, "locked": found.locked, "accounts": found.accounts}


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else {name: round(each, 3) for name, each in value.items()}


def lines(
    found: Look, rate: Rates | None, trouble: Sequence[str], screen: Screen, size: Size, every: float
) -> list[str]:
    """Return what stands on the screen; `trouble` is why there has been no answer since.

    Raises LookupError, TypeError, ValueError, AttributeError, ArithmeticError where the daemon's answers are none.
    """
    status = found.status
    head = [_first(status, screen, every)]
    head += [f"policyd does not answer, this is the last that it said: {line}" for line in trouble[:1]]
    head += [*trouble[1:LEAST_ROWS], *_rate_lines(status, rate), ""]
    left = max(size.height - len(head) - 1, 0)
    share = max(left // TABLES, LEAST_ROWS)
    problems = _problems(status["problems"], share)
    locked = _part(ctl_text.locked_lately(found.locked[:share], screen), status["locked"], share, "locked")
    left -= len(problems) + len(locked)
    senders = [f"top senders, by {found.sort}", *ctl_text.accounts(found.accounts[: max(left, 1)], None, screen)]
    body = [*head, *problems, *locked, *senders]
    keys = f"q ends this, s sorts by {following(found.sort)}"
    whole = [*body[: max(size.height - 1, 0)], keys] if size.height > 1 else body[:1]
    return [fitted(printable(line), size.width) for line in whole]


def away(trouble: Sequence[str], screen: Screen, size: Size) -> list[str]:
    """Return what stands on the screen while there was no answer yet, and why."""
    told = [f"{_clock(screen)}  policyd has not answered yet; trying again", "", *trouble, "", "q ends this"]
    return [fitted(printable(line), size.width) for line in told[: size.height]]


def following(sort: str) -> str:
    """Return what the key sorts by after this."""
    return SORTS[(SORTS.index(sort) + 1) % len(SORTS)]


def _clock(screen: Screen) -> str:
    return f"{screen.now.astimezone(screen.zone):%H:%M:%S}"


def _first(status: Json, screen: Screen, every: float) -> str:
    return (
        f"policyd {status['version']}  {_clock(screen)}  every {every:.3g} s  locked {status['locked']} of "
        f"{status['accounts']}  connections {status['connections']}"
    )


def _rate_lines(status: Json, rate: Rates | None) -> list[str]:
    if rate is None:
        return ["requests  -", "answers   -"]
    return [f"requests  {_told(rate.requests)}", f"answers   {_told(rate.answers)}"]


def _told(by_name: dict[str, float]) -> str:
    happened = {name: each for name, each in by_name.items() if each}
    detail = ", ".join(f"{name} {each:.1f}" for name, each in sorted(happened.items(), key=lambda one: -one[1]))
    return f"{sum(happened.values()):.1f}/s" + (f" ({detail})" if detail else "")


def _problems(problems: Sequence[str], most: int) -> list[str]:
    if not problems:
        return []
    shown = [f"{ctl_layout.INDENT}- {problem}" for problem in problems]
    return _part(["PROBLEMS", *shown], len(problems), most, "problems")


def _part(table: list[str], number: int, most: int, noun: str) -> list[str]:
    """Return a table with its title row, of at most so many rows, the last of which says how many more there are."""
    if len(table) - 1 < number or len(table) > most:
        table = table[: max(most - 1, 1)]
        more = number - (len(table) - 1)
        table = [*table, f"and {more} more {noun}"]
    return [*table, ""]
