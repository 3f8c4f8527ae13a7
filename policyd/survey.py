"""Looking through all accounts, a piece at a time: there may be a million, and mail must not wait.

Everything here does a bounded piece of work between two yields. At a yield accounts may come, go, be locked, freed or
counted, and other rules may come into force: what is shown of an account is what it is when it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace
from itertools import chain
from typing import Any, Literal, NamedTuple

from policyd.accounts import Account, Accounts
from policyd.allowances import AllowedLimits
from policyd.allowing import Allowing
from policyd.limits import MAX_PERIOD, Limit, Rules
from policyd.locks import utc
from policyd.policy import Policy
from policyd.window import Window

Json = dict[str, Any]
Sort = Literal["messages", "recipients", "clients", "senders", "bytes", "refused"]

GLANCES = 200
"""Accounts in one piece that are glanced at: a few attributes of each."""

EFFORT = 20
"""Limits in one piece for which events are counted exactly, or shown."""

ADOPTING = EFFORT
"""The effort of finding out which limits an account has after a reload: it may match thousands of globs."""

_ROUNDING = 0.5
"""More than what floating point can make too much of a count."""


class _Telling(NamedTuple):
    """Which windows tell something about the accounts that have these limits."""

    limits: tuple[Limit, ...]
    """Kept so that their id stays theirs."""
    sorted_by: tuple[int, ...]
    """The places of the windows that are sorted by."""
    enough: tuple[tuple[int, int], ...] | None
    """The places of windows, and the counts of which one has to be reached; None where none has to."""


class _Glance:
    """Tells at a glance of most accounts that they are none to be listed, by what their counts cannot be over.

    One that has not adopted the rules in force need not do so for that: its counts will not be over what they are.
    """

    def __init__(self, accounts: Accounts, sort: Sort, over: float | None) -> None:
        self._accounts = accounts
        self._sort = sort
        self._over = over
        self._rules: Rules | None = None
        self.follow_rules()

    def may_beat(self, account: Account, least: tuple[int, int]) -> bool:
        """Tell whether an account may be one that is asked for, and come before what is `least`."""
        known = self._telling if account.rules is self._rules else self._telling_before
        _, sorted_by, enough = known.get(id(account.limits)) or self._find_out(account.limits, known)
        windows = account.windows
        if enough is not None:
            for index, count in enough:
                if windows[index].at_most >= count:  # type: ignore[union-attr]  # there is one for this limit
                    break
            else:
                return False
        if self._sort == "refused":
            return (account.refused, account.attempts_while_locked) > least
        for index in sorted_by:
            if (windows[index].at_most, account.refused) > least:  # type: ignore[union-attr]  # as above
                return True
        return (0, account.refused) > least

    def follow_rules(self) -> None:
        """Go by the rules that are in force by now."""
        if self._accounts.rules is self._rules:
            return
        self._rules = rules = self._accounts.rules
        self._counted = {(limit.name, limit.count) for limit in rules.limits_for("") if limit.period is not None}
        """What is counted in a window; the others' counts end when an account adopts these rules."""
        self._telling: dict[int, _Telling] = {}
        """By the id of an account's limits: many accounts have the very same."""
        self._telling_before: dict[int, _Telling] = {}
        """The same for limits of rules that were in force before."""

    def _find_out(self, limits: tuple[Limit, ...], known: dict[int, _Telling]) -> _Telling:
        places = [
            index
            for index, limit in enumerate(limits)
            if limit.period is not None and (limit.name, limit.count) in self._counted
        ]
        sorted_by = tuple(index for index in places if limits[index].count == self._sort)
        enough = None
        if self._over is not None and known is self._telling:
            enough = tuple((index, _enough(most, self._over)) for index in places if (most := limits[index].max))
        elif self._over is not None:
            enough = tuple((index, 1) for index in places)  # of how much, is not known yet
        telling = _Telling(limits, sorted_by, enough)
        if not isinstance(limits, AllowedLimits):  # nobody else has those
            known[id(limits)] = telling
        return telling


class Survey:
    """One look for the `most` accounts that send most, of those whose count is at least `over` percent of a maximum.

    Most of a million accounts are passed over at a glance: that costs next to nothing.
    """

    def __init__(self, policy: Policy, now: float, sort: Sort, most: int, over: float | None = None) -> None:
        self._policy = policy
        self._now = now
        self._sort = sort
        self._most = most
        self._over = over or None  # no account is under 0 percent
        self._glance = _Glance(policy.accounts, sort, self._over)
        self._chosen: list[tuple[int, int, int, str]] = []
        """A heap of the best so far, the worst first: what to sort by, how late it was found (negative), the name."""
        self._names: set[str] = set()
        """Those of the chosen: an account may come twice."""
        self._least = (-1, -1)
        """What has to be beaten."""
        self._found = 0

    def pieces(self) -> Iterator[list[Json]]:
        """Yield parts of the list, in order; most of them are empty, for it begins when all were looked at."""
        return chain(self._choose(), self._show()) if self._most else iter(())

    def _choose(self) -> Iterator[list[Json]]:
        """Find who is to be shown."""
        effort = 0
        glance = self._glance
        for portion in self._policy.accounts.portions():
            for start in range(0, len(portion), GLANCES):
                for account in portion[start : start + GLANCES]:
                    if glance.may_beat(account, self._least):
                        effort += self._judge(account)
                        if effort >= EFFORT:
                            yield []
                            glance.follow_rules()
                            effort = 0
                yield []
                glance.follow_rules()
                effort = 0

    def _show(self) -> Iterator[list[Json]]:
        """Bring the chosen into the order that holds by now, and show them."""
        ranked: list[tuple[int, int, int, str]] = []
        effort = 0
        while self._chosen:  # to forget all of them at once would take long
            *_, found, name = self._chosen.pop()
            self._names.discard(name)
            if account := self._current(name):
                sent, refused = _sent(account, self._sort, self._now)
                heappush(ranked, (-sent, -refused, -found, name))
                effort += len(account.limits)
            effort += 1
            if effort >= EFFORT:
                yield []
                effort = 0
        shown: list[Json] = []
        while ranked:
            if account := self._current(heappop(ranked)[-1]):
                shown.append(_shown(account, self._policy.allowing, self._now))
                effort += len(account.limits)
            effort += 1
            if effort >= EFFORT:
                yield shown
                shown, effort = [], 0
        yield shown

    def _judge(self, account: Account) -> int:
        """Choose an account if it is better than the worst of the chosen; return how much work it was."""
        effort = 1 + len(account.limits)
        if account.rules is not self._policy.accounts.rules:
            self._policy.accounts.adopt(account)
            effort += ADOPTING
        name = account.name
        if name in self._names or not self._is_listed(account):
            return effort
        self._found -= 1
        entry = *_sent(account, self._sort, self._now), self._found, name
        if len(self._chosen) < self._most:
            heappush(self._chosen, entry)
        elif entry > self._chosen[0]:
            self._names.discard(heapreplace(self._chosen, entry)[-1])
        else:
            return effort
        self._names.add(name)
        if len(self._chosen) == self._most:
            self._least = self._chosen[0][:2]
        return effort

    def _current(self, name: str) -> Account | None:
        """Return the account that goes by this name now, if it is still one to be listed."""
        account = self._policy.locks.peek(name, self._now)
        return account if account and self._is_listed(account) else None

    def _is_listed(self, account: Account) -> bool:
        if account.lock is None and account.heard + MAX_PERIOD <= self._now:
            return False
        return self._over is None or _share(account, self._now) >= self._over


def _shown(account: Account, allowing: Allowing, now: float) -> Json:
    return {
        "account": account.name,
        "locked": account.lock is not None,
        "limits": limits_shown(account, allowing, now),
        "refused": account.refused,
        "held": account.held,
    }


def _counts(account: Account, now: float) -> list[tuple[Limit, Window | None, int | None]]:
    return [
        (limit, window, None if window is None or limit.period is None else window.count(now, limit.period))
        for limit, window in zip(account.limits, account.windows, strict=True)
    ]


def limits_shown(account: Account, allowing: Allowing, now: float) -> list[Json]:
    """Return an account's limits and counts, and the allowances that are in force."""
    return [
        {
            "name": limit.name,
            "counts": limit.count,
            "count": count,
            "max": limit.max,
            "per": limit.per,
            "resets_in": _rounded(window.resets_in(now, limit.period) if window and limit.period else None),
            "allowance": _allowance_shown(account.limits, place, allowing, now),
        }
        for place, (limit, window, count) in enumerate(_counts(account, now))
    ]


def _allowance_shown(limits: tuple[Limit, ...], place: int, allowing: Allowing, now: float) -> Json | None:
    """Return the allowance to which a limit owes its maximum, and what that would be without; None: there is none."""
    if not isinstance(limits, AllowedLimits) or (found := limits.allowances.get(limits[place].name)) is None:
        return None
    return {
        "since": utc(found.since),
        "until": utc(allowing.until(found, now)),
        "by": found.by,
        "uid": found.uid,
        "reason": found.reason,
        "usual_max": limits.usual[place].max,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _share(account: Account, now: float) -> float:
    """Return how much of a maximum is used, in percent: of the one that is nearest."""
    return max(
        (100 * count / limit.max for limit, _, count in _counts(account, now) if count and limit.max), default=0.0
    )


def _enough(maximum: int, percent: float) -> int:
    """Return a count that is not over the least that uses so much of a maximum."""
    return max(1, math.ceil(percent * maximum / 100 - _ROUNDING))


def _sent(account: Account, sort: Sort, now: float) -> tuple[int, int]:
    """Return what to sort by: what was counted against the limits of that kind, then what was refused."""
    if sort == "refused":
        return account.refused, account.attempts_while_locked
    sent = max((count for limit, _, count in _counts(account, now) if count and limit.count == sort), default=0)
    return sent, account.refused
