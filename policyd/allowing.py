"""Giving and taking allowances: by hand, when their time is over, and when they come back from where they are stored.

An allowance for a length of time lasts that long, and one until a date until the wall clock shows it: so each ends when
the person who gave it expects, also where the clock is set meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from policyd.accounts import Accounts
from policyd.allowances import MAX_ALLOWANCES, MAX_TIME, Allowance, kind
from policyd.durations import format_duration
from policyd.limits import MIN_PER_MESSAGE, Limit, Rules
from policyd.locks import Report, utc
from policyd.maxima import too_much
from policyd.yamlnodes import suggestion

AT_ONCE = 50
"""Allowances that are ended in one turn: each is a line of the log."""

STEP = 1.0
"""Seconds that the wall clock must have stepped for an end to be told otherwise than it was."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants to allow, with just one of `seconds` and `until`."""

    account: str
    limit: str
    max: int | None
    """None: unlimited."""
    seconds: float | None
    until: float | None
    """Wall clock, seconds since the epoch."""
    reason: str | None
    in_bytes: bool = False
    """Whether the maximum was given as a size."""


class Allowing:
    """The orders about allowances, and their ends.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch.
    """

    def __init__(self, accounts: Accounts, report: Report, to_wall: Callable[[float], float]) -> None:
        self._accounts = accounts
        self._report = report
        self._to_wall = to_wall

    def objection(self, wanted: Wanted, now: float) -> str | None:
        """Return why something cannot be allowed, for a person to read; None: it can."""
        limit = limit_named(self._accounts.rules, wanted.limit)
        if limit is None:
            return f"limit: there is no limit of this name, {suggestion(wanted.limit, names(self._accounts.rules))}"
        if (problem := _objection_to_max(wanted, limit) or self._objection_to_end(wanted, now)) is not None:
            return problem
        if not self._accounts.allowances.has_room(wanted.account, wanted.limit):
            return f"there are {MAX_ALLOWANCES} allowances, which is all there may be: disallow some first"
        return None

    def allow(self, wanted: Wanted, by: str, uid: int | None, now: float) -> tuple[Allowance, Allowance | None]:
        """Give an allowance to which there is no objection; return it, and the one whose place it takes."""
        since = self._to_wall(now)
        until, ends = wanted.until, math.inf
        if until is None:
            seconds = wanted.seconds or 0.0
            until, ends = since + seconds, now + seconds
        limit = limit_named(self._accounts.rules, wanted.limit)
        counted = kind(limit) if limit else ""
        allowance = Allowance(
            wanted.account, wanted.limit, counted, wanted.max, since, until, ends, by, uid, wanted.reason
        )
        before = self._accounts.allowances.put(allowance)
        self._accounts.adopt_known(wanted.account)
        self._report("allow", self._fields(allowance, by, uid, now))
        return allowance, before

    def disallow(self, account: str, limit: str | None, by: str, uid: int | None, now: float) -> list[Allowance]:
        """Take an account's allowance for a limit, or all that it has; return what was taken."""
        table = self._accounts.allowances
        wanted = list(table.accounts.get(account, ())) if limit is None else [limit]
        taken = [allowance for name in wanted if (allowance := table.take(account, name)) is not None]
        self._accounts.adopt_known(account)
        for allowance in taken:
            self._report("disallow", self._fields(allowance, by, uid, now))
        return taken

    def expire(self, now: float, most: int = AT_ONCE) -> bool:
        """End some of the allowances whose time is over; tell whether there may be more."""
        ended = self._accounts.allowances.over(now, self._to_wall(now), most)
        for allowance in ended:
            self._accounts.adopt_known(allowance.account)
            self._report("allowance-over", self._fields(allowance, allowance.by, allowance.uid, now))
        return len(ended) == most

    def restore(self, stored: Iterable[Allowance]) -> None:
        """Go on from what was stored; what was decided since the start is newer."""
        for account in self._accounts.allowances.restore(stored):
            self._accounts.adopt_known(account)

    def until(self, allowance: Allowance, now: float) -> float:
        """Return when an allowance ends by the wall clock as it is set now, in seconds since the epoch."""
        if allowance.dated:
            return allowance.until
        ends = self._to_wall(now) + allowance.ends - now
        return ends if abs(ends - allowance.until) >= STEP else allowance.until

    def _objection_to_end(self, wanted: Wanted, now: float) -> str | None:
        key, seconds = "for", wanted.seconds
        if wanted.until is not None:
            key, seconds = "until", wanted.until - self._to_wall(now)
            if seconds <= 0:
                return f"until: {utc(wanted.until)} is in the past, it is {utc(self._to_wall(now))} now"
        if seconds is None or seconds > MAX_TIME:
            return (
                f"{key}: want at most {format_duration(MAX_TIME)}; what holds for longer belongs in the config, "
                "as an override"
            )
        return None

    def _fields(self, allowance: Allowance, by: str, uid: int | None, now: float) -> dict[str, object]:
        return {
            "account": allowance.account,
            "by": by,
            "uid": uid,
            "limit": allowance.limit,
            "max": "unlimited" if allowance.max is None else allowance.max,
            "until": utc(self.until(allowance, now)),
            "reason": allowance.reason,
        }


def _objection_to_max(wanted: Wanted, limit: Limit) -> str | None:
    few = wanted.max is not None and wanted.max < MIN_PER_MESSAGE
    if few and limit.period is None and limit.count == "recipients":
        return f"max: want at least {MIN_PER_MESSAGE} recipients per message (RFC 5321 4.5.3.1.8)"
    if wanted.in_bytes and limit.count != "bytes":
        return f"max: want a whole number of {limit.count}, a size is for bytes"
    most = None if wanted.max is None else too_much(limit.count, wanted.max)
    return f"max: want {most}" if most else None


def names(rules: Rules) -> list[str]:
    """Return the names of all limits, in the config's order."""
    return [limit.name for limit in rules.limits_for("")]


def limit_named(rules: Rules, name: str) -> Limit | None:
    """Return the limit of this name, with some account's maximum: all accounts have the same limits."""
    return next((limit for limit in rules.limits_for("") if limit.name == name), None)
