"""Telling once per window that an account comes near to a limit."""

from __future__ import annotations

from policyd.accounts import Account
from policyd.limits import Limit
from policyd.locks import Report

MAX_WARNED = 100_000
"""Warnings that are remembered: of accounts beyond that, some may be warned of again within a window."""

_AT_ONCE = 2
"""Remembered warnings that are forgotten at the most when one comes."""


class Nearing:
    """Reports `near-limit` when a window's count has reached so many percent of the maximum.

    Not again for this account and limit before the window has passed since: who stays near to a maximum is told of
    once per window. What was told is forgotten when the daemon ends.
    """

    def __init__(self, report: Report, size: int = MAX_WARNED) -> None:
        self._report = report
        self._size = size
        self._warned: dict[tuple[str, str], float] = {}
        """Accounts and limits with the time at which they may be warned of again; the latest warning last."""

    def __len__(self) -> int:
        return len(self._warned)

    def look_at(self, account: Account, percent: int, now: float) -> None:
        """Report what an account that has just sent something is near to."""
        for limit, window in zip(account.limits, account.windows, strict=True):
            near = limit.near(percent)
            if near is None or window is None or limit.period is None:
                continue
            count = window.count(now, limit.period)
            if count >= near:
                self.came_near(account, limit, count, now)

    def came_near(self, account: Account, limit: Limit, count: int, now: float) -> None:
        """Report that a count is near to its maximum, unless that was told."""
        key = (account.name, limit.name)
        if limit.period is None or self._warned.get(key, now) > now:
            return
        self._warned.pop(key, None)
        self._warned[key] = now + limit.period
        self._forget(now)
        told = {"account": account.name, "limit": limit.name, "count": count, "max": limit.max, "per": limit.per}
        self._report("near-limit", told)

    def _forget(self, now: float) -> None:
        """Forget warnings that may come again anyway, and the oldest of too many."""
        for _ in range(_AT_ONCE):
            key = next(iter(self._warned))
            if self._warned[key] > now and len(self._warned) <= self._size:
                break
            del self._warned[key]
