"""What policyctl prints for people: the daemon's JSON in plain lines, without I/O.

No line contains a character that a terminal would obey rather than show, whatever accounts and reasons are called.
Nothing is shortened unless a terminal is too narrow for it.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import accumulate
from math import ceil, floor
from typing import Any

from policyd.sizes import short_size

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


def printable(text: str) -> str:
    r"""Return `text` with control characters, line ends, bidi overrides and the like as `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell_word(text: str) -> str:
    """Return `text` as one printable word that bash reads as `text`, in any locale."""
    if text.isprintable():
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _as_bytes(c) for c in quoted) + "'"


def _as_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogatepass"))


def status(value: Json, screen: Screen) -> list[str]:
    """Tell the daemon's state; what is wrong stands last, right above the shell's prompt."""
    locked = value["locked"]
    lines = [f"policyd {value['version']} is running"]
    lines += _fields(
        ("up since", _moment(value["started"], screen) + f" (for {_span(value['uptime'])})"),
        ("requests", _sum(value["requests"])),
        ("answers", _sum(value["answers"])),
        ("accounts", value["accounts"]),
        ("locked", f"{locked} (policyctl locked shows them)" if locked else "none"),
        ("connections", value["connections"]),
        ("errors", _errors(value)),
        ("hooks seen", _hooks(value["hooks"])),
        ("store", value["store"]),
    )
    if value["problems"]:
        lines += ["", "PROBLEMS", *(f"{INDENT}- {problem}" for problem in value["problems"])]
    return _shown(lines)


def account(value: Json, screen: Screen) -> list[str]:
    """Tell all about one account: whether it is locked and how to free it, its limits, tallies and clients."""
    name, lock = value["account"], value["lock"]
    lines = []
    if lock:
        lines += [_lock_sentence(name, "is LOCKED", lock, screen), *_lock_fields(name, lock, screen)]
        lines += _evidence(value, screen)
    elif value["seen"]:
        lines += [f"{name} is not locked"]
    if not value["seen"]:
        lines += [f"{name}: no activity seen"]
    if value["limits"]:
        lines += ["", "limits", *_limits(value["limits"], screen), *_allowances(value["limits"], screen)]
    if value["seen"]:
        lines += ["", "tallies", *_fields(*((label, value[key]) for key, label in TALLIES if key in value))]
    if value.get("clients"):
        rows = [(client["address"], _when(client["last"], screen)) for client in value["clients"]]
        lines += ["", "recent clients", *_rows((Column(""), Column("")), rows, screen)]
    return _shown(lines)


def _evidence(value: Json, screen: Screen) -> list[str]:
    """Tell what led to an account's lock, and what it has tried since."""
    evidence, since = value.get("evidence"), value["attempts_while_locked"]
    if not evidence:
        return []
    fields: list[tuple[str, object]] = []
    if evidence["first"]:
        fields += [("first", _when(evidence["first"], screen))]
    if evidence["messages"]:
        sent = f"{_counted(evidence['messages'], 'message')} to {_counted(evidence['recipients'], 'recipient')}"
        fields += [("sent", sent)]
    for key, each in (("clients", "address"), ("senders", "sender")):
        fields += [(key, ", ".join(f"{found[each]} ({found['messages']})" for found in evidence[key]))]
    fields += [("latest", " ".join(evidence["queue_ids"])), ("since then", f"{since} tried")]
    return ["", "what led to it", *_fields(*(field for field in fields if field[1]))]


def when(text: str, screen: Screen) -> str:
    """Return an ISO 8601 time with its distance from now; raises ValueError for what is none."""
    return _when(text, screen)


def fields(*labelled: tuple[str, object]) -> list[str]:
    """Return a line for each label and its value, each printable."""
    return _shown(_fields(*labelled))


def unlock_command(account: str) -> str:
    """Return what to type to unlock an account."""
    word = shell_word(account)
    return f"policyctl unlock {'-- ' if word.startswith('-') else ''}{word}"


TALLIES = (
    ("refused", "refused"),
    ("held", "held"),
    ("attempts_while_locked", "tried while locked"),
    ("observed", "observed, not refused"),
    ("warned", "warned, let pass"),
)
"""The tallies of an account, and what each is called."""


def accounts(value: Json, over: int | None, screen: Screen) -> list[str]:
    """Tell who sends most, one account a line; a column for each limit that has a window."""
    if not _list(value):
        return ["no account has sent anything" if over is None else f"no account is over {over}%"]
    limits = [{limit["name"]: limit for limit in each["limits"] if limit["per"] != "message"} for each in value]
    names = list(dict.fromkeys(name for each in limits for name in each))
    columns = [Column("account", least=16), Column("state"), *(Column(name, right=True) for name in names)]
    columns += [Column("refused", right=True), Column("held", right=True)]
    rows = [
        (
            each["account"],
            "LOCKED" if each["locked"] else "free",
            *(_share(own[name]) if name in own else "-" for name in names),
            each["refused"],
            each["held"],
        )
        for each, own in zip(value, limits, strict=True)
    ]
    return _shown(_table(columns, rows, screen))


def locked(value: Json, screen: Screen) -> list[str]:
    """Tell every lock, one a line."""
    if not _list(value):
        return ["no account is locked"]
    columns = [
        Column("account", least=16),
        Column("since"),
        Column("until"),
        Column("by", least=8),
        Column("answer"),
        Column("count", right=True),
        Column("limit, or reason given", least=16),
    ]
    rows = [
        (
            lock["account"],
            _when(lock["since"], screen),
            "unlocked" if lock["until"] is None else _when(lock["until"], screen),
            lock["by"],
            lock["action"],
            "-" if lock["count"] is None else _number(lock, "count"),
            lock["reason"] if lock["limit"] is None else lock["limit"],
        )
        for lock in value
    ]
    return _shown(_table(columns, rows, screen))


def locked_lately(value: Json, screen: Screen) -> list[str]:
    """Tell locks in short, one a line: for how long, by whom and why."""
    if not _list(value):
        return ["no account is locked"]
    columns = [
        Column("account", least=16),
        Column("locked", right=True),
        Column("by", least=8),
        Column("why", least=16),
    ]
    rows = [
        (
            lock["account"],
            f"{_span((screen.now - _time(lock['since'], screen)).total_seconds())} ago",
            lock["by"],
            lock["reason"] if lock["limit"] is None else lock["limit"],
        )
        for lock in value
    ]
    return _shown(_table(columns, rows, screen))


def lock_made(value: Json, screen: Screen) -> list[str]:
    """Tell that an account has been locked by hand."""
    return _shown([_lock_sentence(value["account"], "locked", value, screen)])


def unlocked(value: Json) -> list[str]:
    """Tell for each account whether it has been freed or was free."""
    freed = [f"{name} unlocked; its windows start anew" for name in value["unlocked"]]
    return _shown(freed + [f"{name} was not locked" for name in value["free"]])


def counts_reset(value: Json) -> list[str]:
    """Tell that an account's counts are forgotten."""
    done = "its counts are forgotten" if value["seen"] else "no activity seen, there was nothing to forget"
    return _shown([f"{value['account']}: {done}"])


def reloaded(value: Json) -> list[str]:
    """Tell what has changed in the config, and what of it waits for a restart."""
    lines = [*value["changed"]]
    if value["needs_restart"]:
        lines += [f"in force only after a restart (systemctl restart policyd): {', '.join(value['needs_restart'])}"]
    return _shown(lines or ["nothing changed"])


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], screen: Screen) -> list[str]:
    """Return a table with its titles, each line printable."""
    return _shown(_table(columns, rows, screen))


def moment(text: str, screen: Screen) -> str:
    """Return an ISO 8601 time in the screen's zone: `2026-11-23 08:00:00`; raises ValueError for what is none."""
    return _moment(text, screen)


def counted(number: int, noun: str) -> str:
    """Return `1 message` or `2 messages`, and `no messages` for none."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _shown(lines: Iterable[str]) -> list[str]:
    return [printable(line).rstrip() for line in lines]


def _lock_sentence(name: str, state: str, lock: Json, screen: Screen) -> str:
    until = "unlocked" if lock["until"] is None else _when(lock["until"], screen)
    held = ", its mail is held" if lock["action"] == "HOLD" else ""
    return f"{name} {state} until {until}{held}: {lock['reason']}"


def _lock_fields(name: str, lock: Json, screen: Screen) -> list[str]:
    cause = "by hand" if lock["limit"] is None else f"limit {lock['limit']}"
    count = "" if lock["count"] is None else f" at {_number(lock, 'count')}"
    return _fields(
        ("since", _when(lock["since"], screen)),
        ("by", f"{lock['by']}, {cause}{count}"),
        ("answer", lock["action"]),
        ("to unlock", unlock_command(name)),
    )


def _limits(limits: Json, screen: Screen) -> list[str]:
    rows = [(limit["name"], *_limit(limit)) for limit in limits]
    return _rows((Column("", least=16), Column(""), Column("", right=True), Column("")), rows, screen)


def _allowances(limits: Json, screen: Screen) -> list[str]:
    """Return which maxima are a person's allowance, for how long, and what they are without."""
    allowed = [(limit, limit["allowance"]) for limit in limits if limit.get("allowance")]
    told = (
        (
            limit["name"],
            f"{_maximum(limit['max'])} until {_when(given['until'], screen)}, else {_maximum(given['usual_max'])};"
            f" by {given['by']}" + (f": {given['reason']}" if given["reason"] else ""),
        )
        for limit, given in allowed
    )
    return ["", "allowances", *_fields(*told)] if allowed else []


def _maximum(number: int | None) -> str:
    return "unlimited" if number is None else str(number)


def _limit(limit: Json) -> tuple[str, str, str]:
    """Return what is counted, the share of the maximum, and when the count will fall."""
    maximum, count = limit["max"], limit["count"]
    if limit["per"] == "message":
        return f"{'unlimited' if maximum is None else maximum} in one message", "", ""
    resets = "" if limit["resets_in"] is None else f"oldest leaves {_ahead(limit['resets_in'])}"
    if maximum is None:
        return "unlimited" if count is None else f"{_number(limit, 'count')} in {limit['per']}, unlimited", "", resets
    counted = f"{_number(limit, 'count')} of {_number(limit, 'max')} in {limit['per']}"
    return counted, _percent(count, maximum), resets


def _share(limit: Json) -> str:
    if limit["max"] is None:
        return "unlimited" if limit["count"] is None else f"{_number(limit, 'count')} (unlimited)"
    return f"{_number(limit, 'count')}/{_number(limit, 'max')} {_percent(limit['count'], limit['max']):>4}"


def _number(value: Json, key: str) -> str:
    """Return a number of what is counted; one of bytes as a size."""
    return short_size(value[key]) if value.get("counts") == "bytes" else str(value[key])


def _percent(count: int, maximum: int) -> str:
    """Return the share, rounded down: 100% is said only of a limit that is reached."""
    return f"{100 * count // maximum}%"


def _sum(counts: dict[str, int]) -> str:
    detail = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} ({detail})" if detail else "none"


def _errors(value: Json) -> str:
    told = [
        _counted(value["protocol_errors"], "protocol error"),
        _counted(value["internal_errors"], "internal error", " (please report: the log has the traceback)"),
    ]
    return ", ".join(filter(None, told)) or "none"


def _counted(number: int, noun: str, remark: str = "") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}{remark}" if number else ""


def _hooks(hooks: dict[str, bool]) -> str:
    seen = ", ".join(name for name, is_seen in hooks.items() if is_seen) or "none"
    unseen = ", ".join(name for name, is_seen in hooks.items() if not is_seen)
    return f"{seen} (not seen: {unseen})" if unseen else seen


def _time(text: str, screen: Screen) -> datetime:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"want a time with its offset, got {text!r}")
    return moment.astimezone(screen.zone)


def _moment(text: str, screen: Screen) -> str:
    return f"{_time(text, screen):%Y-%m-%d %H:%M:%S}"


def _when(text: str, screen: Screen) -> str:
    """Return a time of day with its distance from now: `2026-11-23 08:00:00 (in 12 min)`."""
    ahead = (_time(text, screen) - screen.now).total_seconds()
    return f"{_moment(text, screen)} ({_ahead(ahead) if ahead > 0 else f'{_span(-ahead)} ago'})"


def _ahead(seconds: float) -> str:
    """Return a time to come, rounded up: whoever comes back then does not come too early."""
    return f"in {_span(seconds, ceil)}" if seconds > 0 else "now"


def _span(seconds: float, rounded: Callable[[float], int] = floor) -> str:
    if seconds >= 2 * MINUTE:
        seconds = MINUTE * rounded(seconds / MINUTE)
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size or size == 1)
    return f"{rounded(max(seconds, 0) / size)} {unit}"


def _fields(*fields: tuple[str, object]) -> list[str]:
    width = max(len(label) for label, _ in fields)
    return [f"{INDENT}{label:<{width}}{GAP}{value}" for label, value in fields]


def _rows(columns: Sequence[Column], rows: Sequence[Sequence[object]], screen: Screen) -> list[str]:
    """Return an indented table without its titles."""
    width = None if screen.width is None else screen.width - len(INDENT)
    return [INDENT + line for line in _table(columns, rows, Screen(screen.now, screen.zone, width))[1:]]


def _table(columns: Sequence[Column], rows: Sequence[Sequence[object]], screen: Screen) -> list[str]:
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
