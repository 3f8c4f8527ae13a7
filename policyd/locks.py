"""Locking and freeing accounts: by a limit, by hand, and when a lock's time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from math import isinf

from policyd.accounts import Account, Accounts, Lock
from policyd.actions import Effect, one_line
from policyd.charges import Exceeded
from policyd.limits import UNTIL_UNLOCKED
from policyd.verdict import Verdict, verdict

Report = Callable[[str, Mapping[str, object]], None]
"""Tells what happened: an event word of `log.EVENTS`, and its fields."""

DAEMON = "policyd"
"""Who locked, where no person did."""


def utc(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


class Locks:
    """The locks of the accounts.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch.
    """

    def __init__(self, accounts: Accounts, report: Report, to_wall: Callable[[float], float]) -> None:
        self._accounts = accounts
        self._report = report
        self._to_wall = to_wall

    def by_limit(self, account: Account, exceeded: Exceeded, answer: Verdict, now: float) -> None:
        """Lock an account that has exceeded a limit which locks; it is told `answer` until it is free."""
        limit = exceeded.limit
        locked = verdict(answer.action, answer.effect, by_lock=True)
        seconds = UNTIL_UNLOCKED if limit.lock_for is None else limit.lock_for
        self._lock(account, locked, seconds, now, limit.reason, exceeded=exceeded)

    def by_hand(self, name: str, reason: str, seconds: float, by: str, now: float, *, hold: bool = False) -> Account:
        """Lock an account for `seconds` (or UNTIL_UNLOCKED) because a person says so."""
        account = self.account(name, now)
        text = f"Account {account.name} is locked: {reason}"
        if hold:
            locked = verdict(one_line(f"HOLD {text}"), Effect.HELD, by_lock=True)
        else:
            locked = verdict(one_line(f"REJECT 5.7.1 {text}"), Effect.REFUSED, by_lock=True)
        self._lock(account, locked, seconds, now, reason, by=by)
        return account

    def unlock(self, name: str, by: str, now: float) -> bool:
        """Free an account; tell whether it was locked."""
        account = self.peek(name, now)
        if account is None or account.lock is None:
            return False
        self._free(account, by)
        return True

    def reset(self, name: str, by: str, now: float) -> bool:
        """Forget an account's counts; tell whether it was ever seen."""
        account = self.peek(name, now)
        if account is None:
            return False
        account.forget_counts()
        self._report("reset", {"account": account.name, "by": by})
        return account.seen

    def peek(self, name: str, now: float) -> Account | None:
        """Return the account of this name if it is known, free if its lock's time is over."""
        account = self._accounts.peek(name, now)
        if account is not None:
            self.expire_one(account, now)
        return account

    def account(self, name: str, now: float) -> Account:
        """Return the account of this name, free if its lock's time is over."""
        account = self._accounts.get(name, now)
        self.expire_one(account, now)
        return account

    def expire(self, now: float) -> None:
        """Free all accounts whose lock's time is over."""
        for account in self._accounts.locked:
            self.expire_one(account, now)

    def until(self, exceeded: Exceeded, now: float) -> str:
        """Return until when it lasts that a limit is exceeded, for a person to read."""
        seconds = exceeded.limit.lock_for
        if seconds is None:
            seconds = exceeded.resets_in
        if seconds is None:
            return "the next message"
        if isinf(seconds):
            return "a person unlocks it"
        return datetime.fromtimestamp(self._to_wall(now + seconds), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

    def _lock(
        self,
        account: Account,
        locked: Verdict,
        seconds: float,
        now: float,
        reason: str,
        *,
        exceeded: Exceeded | None = None,
        by: str = DAEMON,
    ) -> None:
        until = None if isinf(seconds) else self._to_wall(now + seconds)
        limit = exceeded.limit.name if exceeded else None
        count = exceeded.reached if exceeded else None
        lock = Lock(self._to_wall(now), until, now + seconds, limit, count, by, reason, locked)
        self._accounts.lock(account, lock)
        self._report(
            "lock",
            {
                "account": account.name,
                "by": by,
                "limit": limit,
                "count": count,
                "reason": reason,
                "until": "unlocked" if until is None else utc(until),
                "action": locked.word,
            },
        )

    def expire_one(self, account: Account, now: float) -> bool:
        """Free an account if its lock's time is over; tell whether it was so."""
        if account.lock is None or account.lock.ends > now:
            return False
        self._free(account, DAEMON)
        return True

    def _free(self, account: Account, by: str) -> None:
        self._accounts.unlock(account)
        self._report("unlock", {"account": account.name, "by": by, "attempts": account.attempts_while_locked})
