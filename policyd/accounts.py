"""The accounts: what each has sent of late, whether it is locked, and what it was told.

The table is bounded. An account that is not heard of for as long as the longest possible window is forgotten; a locked
one never is. Every method takes `now`, in seconds of a clock that never steps back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cachetools import TTLCache

from policyd.limits import MAX_PERIOD, Limit, Rules
from policyd.verdict import Verdict
from policyd.window import Window

MAX_ACCOUNTS = 1_000_000
MAX_CLIENTS = 5
"""The latest client addresses that are remembered of an account."""

_REFRESH = 3600.0
"""An account's place in the table is renewed once it is this old, not at every request."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Why, since when and until when an account's mail is refused or held."""

    since: float
    """Wall clock, seconds since the epoch."""
    until: float | None
    """Wall clock; None: until a person unlocks the account."""
    ends: float
    """The same on the clock that never steps back: infinite where `until` is None."""
    limit: str | None
    """The limit that was exceeded; None for a lock by hand."""
    count: int | None
    by: str
    reason: str
    verdict: Verdict
    """The answer to all that the account asks while it is locked."""


class Account:
    """One account's windows, lock and tallies."""

    __slots__ = (
        "attempts_while_locked",
        "clients",
        "held",
        "limits",
        "lock",
        "name",
        "observed",
        "refused",
        "renewed",
        "rules",
        "seen",
        "warned",
        "windows",
    )

    def __init__(self, name: str, rules: Rules, now: float) -> None:
        self.name = name
        self.rules = rules
        self.limits = rules.limits_for(name)
        self.windows = _fresh(self.limits)
        """One window a limit, in their order; None where the limit is per message."""
        self.lock: Lock | None = None
        self.renewed = now
        """When its place in the table was renewed."""
        self.seen = False
        """Whether it ever made a request; a person may lock one that did not."""
        self.clients: list[tuple[bytes, float]] = []
        """Client addresses and when each was last seen, the latest last."""
        self.refused = 0
        self.held = 0
        self.warned = 0
        self.observed = 0
        self.attempts_while_locked = 0

    def adopt(self, rules: Rules) -> None:
        """Go by other rules from now on, keeping what has been counted for a limit of the same name."""
        if rules is self.rules:
            return
        known = {(limit.name, limit.count): window for limit, window in zip(self.limits, self.windows, strict=True)}
        self.rules = rules
        self.limits = rules.limits_for(self.name)
        self.windows = tuple(
            None if limit.period is None else known.get((limit.name, limit.count)) or Window() for limit in self.limits
        )

    def forget_counts(self) -> None:
        """Start all windows anew. What is given back later was counted in the old ones, and changes nothing."""
        self.windows = _fresh(self.limits)

    def note_client(self, address: bytes, now: float) -> None:
        """Remember a client address among the latest."""
        clients = self.clients
        if clients and clients[-1][0] == address:
            clients[-1] = (address, now)
            return
        clients[:] = [known for known in clients if known[0] != address][1 - MAX_CLIENTS :]
        clients.append((address, now))


def _fresh(limits: tuple[Limit, ...]) -> tuple[Window | None, ...]:
    return tuple(None if limit.period is None else Window() for limit in limits)


class Accounts:
    """The bounded table of accounts."""

    def __init__(self, rules: Rules, size: int = MAX_ACCOUNTS) -> None:
        self.rules = rules
        self._now = 0.0
        self._table: TTLCache[str, Account] = TTLCache(size, MAX_PERIOD + _REFRESH, timer=lambda: self._now)
        self._locked: dict[str, Account] = {}

    def __len__(self) -> int:
        return len(self._table)

    def get(self, name: str, now: float) -> Account:
        """Return the account of this name, a new one where there is none."""
        account = self.peek(name, now)
        if account is None:
            account = self._table[name] = Account(name, self.rules, now)
        elif now - account.renewed > _REFRESH:
            account.renewed = now
            self._table[name] = account
        return account

    def peek(self, name: str, now: float) -> Account | None:
        """Return the account of this name if it is known."""
        self._now = now
        account = self._table.get(name) or self._locked.get(name)
        if account is not None:
            account.adopt(self.rules)
        return account

    def all(self, now: float) -> Iterator[Account]:
        """Yield all accounts, locked ones included. The table must not change meanwhile."""
        self._now = now
        for account in self._table.values():
            account.adopt(self.rules)
            yield account
        for name, account in self._locked.items():
            if name not in self._table:
                account.adopt(self.rules)
                yield account

    @property
    def locked(self) -> list[Account]:
        """The locked accounts, the latest lock last."""
        return list(self._locked.values())

    def lock(self, account: Account, lock: Lock) -> None:
        """Lock an account, in place of any lock that it has."""
        self._locked.pop(account.name, None)
        self._locked[account.name] = account
        account.lock = lock
        account.attempts_while_locked = 0

    def unlock(self, account: Account) -> None:
        """Free an account; its windows start anew, so that it does not relock at once."""
        self._locked.pop(account.name, None)
        account.lock = None
        account.forget_counts()
