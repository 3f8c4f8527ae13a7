"""What policyctl asks and says of allowances, and how it reads their ends, without I/O.

A date is one of this computer's zone unless it says otherwise; what is told of it says it in UTC, too.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone, tzinfo

from policyd import ctl_cluster
from policyd.ctl_client import USAGE, CtlError, Question
from policyd.ctl_layout import Column, Json, Screen, fields, moment, table, unlock_command, when
from policyd.sizes import parse_size, short_size
from policyd.words import printable

UNLIMITED = "unlimited"

_DATE = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?) ?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_WANTED = 'want a date such as 2026-12-01, "2026-12-01 18:00" or 2026-12-01T18:00+01:00'


def end(text: str, zone: tzinfo | None = None) -> datetime:
    """Return the end that a date names: of a day alone, the end of that day.

    `zone` is that of a date that names none; None: this computer's. Raises ValueError; its message says what is wanted.
    """
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{_WANTED}, got {text!r}")
    named = "+00:00" if found["zone"] == "Z" else found["zone"] or ""
    try:
        date = datetime.fromisoformat(f"{found['day']}T{found['time'] or '00:00'}{named}")
        if not found["time"]:
            date += timedelta(days=1)
        if date.tzinfo is None:
            date = date.astimezone() if zone is None else date.replace(tzinfo=zone)
        return date.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{_WANTED}, got {text!r}, which is no date") from None


def until(text: str) -> datetime:
    """Return the end that was typed; raises ArgumentTypeError."""
    try:
        return end(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def maximum(text: str) -> int | str:
    """Return the maximum that was typed; raises ArgumentTypeError."""
    if text == UNLIMITED:
        return text
    if re.fullmatch(r"[0-9]{1,13}[kKmMgGtT]", text) and parse_size(text):
        return text
    if not re.fullmatch(r"[0-9]{1,13}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"want a whole number above 0, or unlimited, got {text!r}")
    return int(text)


def question(args: argparse.Namespace, now: datetime) -> Question:
    """Return what to ask for an allowance; raises CtlError."""
    if wrong := problem(args.duration, args.until, now):
        raise CtlError(USAGE, wrong)
    date = None if args.until is None else args.until.isoformat()
    wanted = {"account": args.account, "limit": args.limit, "max": args.max, "reason": args.reason}
    return Question("/allow", {**wanted, "for": args.duration, "until": date})


def problem(duration: str | None, date: datetime | None, now: datetime) -> str | None:
    """Return what is wrong with the end that was typed; None: nothing."""
    if duration is None and date is None:
        return "say until when: --for 24h, or --until DATE (what is to be permanent is an override in the config)"
    if duration is not None and date is not None:
        return "give either --for or --until, not both"
    if date is not None and date <= now:
        return f"--until: {_zoned(date)} is in the past, it is {_zoned(now)} now"
    return None


def allowed(value: Json, screen: Screen) -> list[str]:
    """Tell what an account may do now and until when, and whether it is locked all the same."""
    name, lock, before = value["account"], value["lock"], value["before"]
    lines = [f"{name} may send {_amount(value, value['max'])}"]
    told = [
        ("limit", value["limit"] + _compared(value)),
        ("until", f"{when(value['until'], screen)}, which is {_in_utc(value['until'])}"),
    ]
    if before:
        most = _number(value, before["max"])
        told += [("in place of", f"{most} until {when(before['until'], screen)}, by {before['by']}")]
    lines += fields(*told)
    if lock:
        lines += [f"{name} is LOCKED all the same: {lock['reason']}", *fields(("to unlock", unlock_command(name)))]
    return [printable(line) for line in lines + ctl_cluster.shared(value)]


def allowances(value: Json, screen: Screen) -> list[str]:
    """Tell every allowance, one a line."""
    if not isinstance(value, list):
        raise TypeError("no list")
    if not value:
        return ["no account is allowed anything beyond the config"]
    columns = [
        Column("account", least=16),
        Column("limit", least=16),
        Column("max", right=True),
        Column("until"),
        Column("by", least=8),
        Column("reason", least=16),
    ]
    rows = [
        (
            each["account"],
            each["limit"] if each["in_force"] else f"{each['limit']} (no such limit now)",
            _number(each, each["max"]),
            when(each["until"], screen),
            each["by"],
            each["reason"] or "-",
        )
        for each in value
    ]
    return table(columns, rows, screen)


def disallowed(value: Json, limit: str | None, screen: Screen) -> list[str]:
    """Tell what has been taken back, and what holds now."""
    name = value["account"]
    lines = [
        f"{name}: {each['limit']} "
        + (f"is back to {_amount(each, each['usual_max'])}" if each["per"] else "is no limit now")
        + f"; it was {_number(each, each['max'])} until {moment(each['until'], screen)}"
        for each in value["disallowed"]
    ]
    nothing = f"{name} had no allowance" + (f" for {limit}" if limit else "")
    return [printable(line) for line in [*(lines or [nothing]), *ctl_cluster.shared(value)]]


def _amount(value: Json, most: int | None) -> str:
    where = "one message" if value["per"] == "message" else value["per"]
    return f"{_number(value, most)} {value['counts']} in {where}"


def _compared(value: Json) -> str:
    """Return what would hold without the allowance, and whether that is less for the account."""
    most, usual = value["max"], value["usual_max"]
    if most == usual:
        return ", which is what the config says anyway"
    if most is not None and (usual is None or most < usual):
        return f", which is LESS than the {_number(value, usual)} of the config"
    return f", {_number(value, usual)} without the allowance"


def _number(value: Json, most: int | None) -> str:
    """Return a maximum of what is counted; one of bytes as a size."""
    if most is None:
        return UNLIMITED
    return short_size(most) if value.get("counts") == "bytes" else str(most)


def _in_utc(text: str) -> str:
    return f"{moment(text, Screen(datetime.min, timezone.utc))} UTC"


def _zoned(date: datetime) -> str:
    return f"{date.astimezone():%Y-%m-%d %H:%M:%S %Z}"
