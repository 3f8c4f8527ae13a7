"""Locking and freeing accounts: by a limit, by hand, and when a lock's time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from math import isinf

from policyd.accounts import Account, Accounts, Evidence, Lock
from policyd.actions import Effect, one_line
from policyd.charges import Exceeded
from policyd.limits import UNTIL_UNLOCKED
from policyd.verdict import Verdict, verdict

Report = Callable[[str, Mapping[str, object]], None]
"""Tells what happened: an event word of `log.EVENTS`, and its fields."""

LOOK_BACK = 3600.0
"""Seconds of an account's past that are evidence where a lock has no window."""

DAEMON = "policyd"
"""Who locked, where no person did."""


def utc(seconds: float, to_the: str = "seconds") -> str:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec=to_the)


class Locks:
    """The locks of the accounts.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch.
    """

    def __init__(self, accounts: Accounts, report: Report, to_wall: Callable[[float], float]) -> None:
        self._accounts = accounts
        self._report = report
        self._to_wall = to_wall
        self.gather: Callable[[Account, Lock, float], None] = lambda _account, _lock, _since: None
        """Finds out what an account has done since a time by the wall clock, for a lock's evidence."""

    def by_limit(self, account: Account, exceeded: Exceeded, answer: Verdict, now: float) -> None:
        """Lock an account that has exceeded a limit which locks; it is told `answer` until it is free."""
        limit = exceeded.limit
        locked = verdict(answer.action, answer.effect, by_lock=True)
        until, ends = self._end(UNTIL_UNLOCKED if limit.lock_for is None else limit.lock_for, now)
        since, first = self._to_wall(now), None
        if limit.period is not None and exceeded.resets_in is not None:
            first = self._to_wall(now + exceeded.resets_in - limit.period)
        lock = Lock(
            since, until, ends, limit.name, exceeded.reached, DAEMON, limit.reason, locked, None, Evidence(first)
        )
        self._lock(account, lock, since - (limit.period or LOOK_BACK))

    def by_hand(
        self,
        name: str,
        reason: str,
        seconds: float,
        by: str,
        now: float,
        *,
        hold: bool = False,
        uid: int | None = None,
    ) -> Account:
        """Lock an account for `seconds` (or UNTIL_UNLOCKED) because a person says so."""
        account = self.account(name, now)
        text = f"Account {account.name} is locked: {reason}"
        if hold:
            locked = verdict(one_line(f"HOLD {text}"), Effect.HELD, by_lock=True)
        else:
            locked = verdict(one_line(f"REJECT 5.7.1 {text}"), Effect.REFUSED, by_lock=True)
        until, ends = self._end(seconds, now)
        since = self._to_wall(now)
        lock = Lock(since, until, ends, None, None, by, reason, locked, uid)
        self._lock(account, lock, since - LOOK_BACK)
        return account

    def unlock(self, name: str, by: str, now: float, uid: int | None = None) -> bool:
        """Free an account; tell whether it was locked."""
        account = self.peek(name, now)
        if account is None or account.lock is None:
            return False
        self._free(account, by, uid)
        return True

    def reset(self, name: str, by: str, now: float, uid: int | None = None) -> bool:
        """Forget an account's counts; tell whether it was ever seen."""
        account = self.peek(name, now)
        if account is None:
            return False
        account.forget_counts()
        self._accounts.note_change(account)
        self._report("reset", {"account": account.name, "by": by, "uid": uid})
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
        if account.lock is not None:
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

    def _end(self, seconds: float, now: float) -> tuple[float | None, float]:
        """Return when a lock for `seconds` ends, by the wall clock and by the one that never steps back."""
        return None if isinf(seconds) else self._to_wall(now + seconds), now + seconds

    def _lock(self, account: Account, lock: Lock, since: float) -> None:
        self._accounts.lock(account, lock)
        self._report(
            "lock",
            {
                "account": account.name,
                "by": lock.by,
                "uid": lock.uid,
                "limit": lock.limit,
                "count": lock.count,
                "reason": lock.reason,
                "until": "unlocked" if lock.until is None else utc(lock.until),
                "action": lock.verdict.word,
            },
        )
        self.gather(account, lock, since)

    def expire_one(self, account: Account, now: float) -> bool:
        """Free an account if its lock's time is over; tell whether it was so."""
        if account.lock is None or account.lock.ends > now:
            return False
        self._free(account, DAEMON)
        return True

    def _free(self, account: Account, by: str, uid: int | None = None) -> None:
        self._accounts.unlock(account)
        self._report(
            "unlock", {"account": account.name, "by": by, "uid": uid, "attempts": account.attempts_while_locked}
        )
