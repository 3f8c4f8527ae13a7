"""The allowances: a person's dated exceptions, each of one limit for one account.

While an allowance is in force its maximum is the account's, whatever the limit and the overrides say, and counts go on
as they are. It belongs to a limit's name and to what that counts: while there is no such limit it changes nothing, and
when the limit is back it holds again until it ends. The table is bounded, and in the order of the ends, so that to find
what is over takes no look at what is not.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import merge

from policyd.limits import Limit, Limits, Maxima

MAX_ALLOWANCES = 100_000
"""Allowances that there may be at a time: one takes about a kilobyte."""

MAX_TIME = 366 * 86400.0
"""Seconds for which an allowance may be given. What holds for longer is a rule: it belongs in the config, where it is
seen, and not in an exception that nobody remembers."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much an account may do of what a limit counts, and until when."""

    account: str
    limit: str
    kind: str
    """What the limit counts, see `kind`: under the same name another config may count something else."""
    max: int | None
    """The last number that passes; None: unlimited."""
    since: float
    """Wall clock, seconds since the epoch."""
    until: float
    """Wall clock; where it was given for a length of time, as that was told when it was given."""
    ends: float
    """When a length of time is over, by the clock that never steps back; infinite where the date says it."""
    by: str
    uid: int | None
    reason: str | None

    @property
    def dated(self) -> bool:
        """Whether it ends when the wall clock says so; else when its length of time is over."""
        return math.isinf(self.ends)


def kind(limit: Limit) -> str:
    """Return what a limit counts, and whether in one message: maxima of different kinds have nothing in common."""
    return f"{limit.count} in one message" if limit.period is None else limit.count


class AllowedLimits(Limits):
    """The limits of an account that has allowances, with the maxima that those give them."""

    usual: Limits
    """What they are without."""
    allowances: Mapping[str, Allowance]
    """Those in force, by the name of the limit."""

    def __new__(cls, usual: Limits, allowances: Mapping[str, Allowance]) -> AllowedLimits:
        """Make them of the usual ones, and of allowances for some of those."""
        return super().__new__(
            cls,
            (replace(limit, max=allowances[limit.name].max) if limit.name in allowances else limit for limit in usual),
        )

    def __init__(self, usual: Limits, allowances: Mapping[str, Allowance]) -> None:
        super().__init__(self)
        self.maxima, self.warn_at = Maxima(self, usual.warn_at), usual.warn_at
        self.usual = usual
        self.allowances = allowances


_End = tuple[float, str, str]
"""When an allowance ends, by its clock; the account and the limit."""


class Allowances:
    """The bounded table of allowances."""

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Allowance]] = {}
        """By the name of the account and of the limit; no account without any."""
        self.changed: dict[tuple[str, str], Allowance | None] | None = None
        """By account and limit, what differs from what is stored, None: there is none; None where nothing is stored."""
        self._decided: set[tuple[str, str]] | None = set()
        """Accounts and limits that a person decided on before what is stored was taken in; None once it is."""
        self._by_date: list[_End] = []
        """The ends of dated ones, by the wall clock."""
        self._by_time: list[_End] = []
        """The ends of the others, by the clock that never steps back."""

    def __len__(self) -> int:
        return len(self._by_date) + len(self._by_time)

    def get(self, account: str, limit: str) -> Allowance | None:
        """Return an account's allowance for a limit."""
        return self.accounts.get(account, {}).get(limit)

    def has_room(self, account: str, limit: str) -> bool:
        """Tell whether one may be put: there is room, or it takes the place of another."""
        return len(self) < MAX_ALLOWANCES or self.get(account, limit) is not None

    def put(self, allowance: Allowance) -> Allowance | None:
        """Add an allowance; return the one whose place it takes."""
        before = self._remove(allowance.account, allowance.limit)
        self.accounts.setdefault(allowance.account, {})[allowance.limit] = allowance
        insort(self._ends(allowance), _end(allowance))
        self._note(allowance.account, allowance.limit, allowance)
        return before

    def take(self, account: str, limit: str) -> Allowance | None:
        """Remove an account's allowance for a limit, and return it if there was one."""
        taken = self._remove(account, limit)
        if taken is not None:
            self._note(account, limit, None)
        return taken

    def over(self, now: float, wall: float, most: int) -> list[Allowance]:
        """Remove some of those that have ended, at most so many of each kind; return them."""
        ended: list[Allowance] = []
        for ends, time in ((self._by_date, wall), (self._by_time, now)):
            while ends and ends[0][0] <= time and len(ended) < most:
                _, account, limit = ends[0]
                taken = self.take(account, limit)
                if taken is not None:
                    ended.append(taken)
        return ended

    def in_order(self, offset: float) -> Iterator[Allowance]:
        """Yield all, the one that ends next first; the table may change meanwhile, and what goes may be missing.

        `offset` is how far the wall clock is ahead.
        """
        by_time = ((ends + offset, account, limit) for ends, account, limit in list(self._by_time))
        for _, account, limit in merge(list(self._by_date), by_time):
            if (allowance := self.get(account, limit)) is not None:
                yield allowance

    def limits_for(self, account: str, usual: Limits) -> Limits:
        """Return an account's limits with the maxima in force, from those that it has without allowances."""
        given = self.accounts.get(account, {})
        in_force = {
            limit.name: given[limit.name] for limit in usual if limit.name in given and holds(given[limit.name], limit)
        }
        return AllowedLimits(usual, in_force) if in_force else usual

    def hand_over(self) -> dict[tuple[str, str], Allowance | None]:
        """Return what differs from what is stored, to be stored now."""
        changed = self.changed
        if not changed:
            return {}
        self.changed = {}
        if self._decided is not None:
            self._decided |= changed.keys()
        return changed

    def note_all(self) -> None:
        """Have all of them stored: what was stored is lost."""
        if self.changed is not None:
            for account, given in self.accounts.items():
                self.changed.update({(account, limit): allowance for limit, allowance in given.items()})

    def restore(self, stored: Iterable[Allowance]) -> set[str]:
        """Take in what was stored, but where a person has decided since; return the names of the accounts."""
        decided, self._decided = (self._decided or set()) | (self.changed or {}).keys(), None
        restored = set()
        for allowance in stored:
            account, limit = allowance.account, allowance.limit
            if (account, limit) not in decided and self.get(account, limit) is None:
                self.accounts.setdefault(account, {})[limit] = allowance
                self._ends(allowance).append(_end(allowance))
                restored.add(account)
        self._by_date.sort()
        self._by_time.sort()
        return restored

    def _remove(self, account: str, limit: str) -> Allowance | None:
        given = self.accounts.get(account, {})
        taken = given.pop(limit, None)
        if taken is None:
            return None
        if not given:
            del self.accounts[account]
        ends = self._ends(taken)
        del ends[bisect_left(ends, _end(taken))]
        return taken

    def _ends(self, allowance: Allowance) -> list[_End]:
        return self._by_date if allowance.dated else self._by_time

    def _note(self, account: str, limit: str, allowance: Allowance | None) -> None:
        if self.changed is not None:
            self.changed[account, limit] = allowance


def holds(allowance: Allowance, limit: Limit) -> bool:
    """Tell whether an allowance is for this very limit."""
    return allowance.limit == limit.name and allowance.kind == kind(limit)


def in_force(limits: Limits) -> Mapping[str, Allowance]:
    """Return the allowances that are in force in an account's limits, by the name of the limit."""
    return limits.allowances if isinstance(limits, AllowedLimits) else {}


def _end(allowance: Allowance) -> _End:
    return (allowance.until if allowance.dated else allowance.ends, allowance.account, allowance.limit)
