"""The accounts: what each has sent of late, whether it is locked, and what it was told.

The table is bounded. An account that is not heard of for as long as the longest possible window is forgotten, and so is
the one not heard of for longest where there are too many; a locked one never is. Every method takes `now`, in seconds
of a clock that never steps back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from policyd.limits import MAX_PERIOD, Limit, Rules
from policyd.sections import DEFAULT_MAX_ACCOUNTS
from policyd.verdict import Verdict
from policyd.window import Window

MAX_CLIENTS = 5
"""The latest client addresses that are remembered of an account."""

_AT_ONCE = 2
"""Accounts that are forgotten at the most when one comes: so a table that is too large shrinks, and nobody waits."""


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
    uid: int | None = None
    """The user id of who locked it by hand."""


class Account:
    """One account's windows, lock and tallies."""

    __slots__ = (
        "attempts_while_locked",
        "clients",
        "heard",
        "held",
        "limits",
        "lock",
        "name",
        "observed",
        "refused",
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
        self.heard = now
        """When it was last heard of."""
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

    def __init__(self, rules: Rules, size: int = DEFAULT_MAX_ACCOUNTS) -> None:
        self.rules = rules
        self.size = size
        """Accounts that are remembered; locked ones are beyond it too, and leave half of the places to free ones."""
        self.stored: dict[str, Any] = {}
        """What a database has of accounts that nobody has asked about yet; see `recall`."""
        self.recall: Callable[[Account, Any, float], None] = lambda _account, _stored, _now: None
        """Gives a new account what was stored of it."""
        self.changed: dict[str, Account] | None = None
        """Accounts that differ from what is stored; None where nothing is."""
        self.locks_changed: dict[str, Account] = {}
        self._free: OrderedDict[str, Account] = OrderedDict()
        """Those that are not locked, the one that was heard of last at the end."""
        self._locked: dict[str, Account] = {}
        """The others, the latest lock last."""

    def __len__(self) -> int:
        return len(self._free) + len(self._locked) + len(self.stored)

    def get(self, name: str, now: float) -> Account:
        """Return the account of this name, a new one where there is none."""
        return self.heard(self.peek(name, now) or Account(name, self.rules, now), now)

    def heard(self, account: Account, now: float) -> Account:
        """Note that an account is at work, so that idle ones are forgotten before it.

        Return it, or what goes by its name by now, if it was forgotten meanwhile all the same.
        """
        name = account.name
        known = self._free.get(name)
        if known is None:
            if name in self._locked:
                return self._locked[name]
            known = self._free[name] = account
            self._make_room(now)
        else:
            self._free.move_to_end(name)
        known.heard = now
        return known

    def peek(self, name: str, now: float) -> Account | None:
        """Return the account of this name if it is known."""
        account = self._free.get(name) or self._locked.get(name)
        if account is not None:
            account.adopt(self.rules)
        elif name in self.stored:
            account = self._free[name] = Account(name, self.rules, now)
            self.recall(account, self.stored.pop(name), now)
        return account

    def note_change(self, account: Account) -> None:
        """Have an account's counts and tallies stored soon."""
        if self.changed is not None:
            self.changed[account.name] = account

    def all(self, now: float) -> Iterator[Account]:
        """Yield all accounts, locked ones included. The table must not change meanwhile."""
        for account in chain(self._free.values(), self._locked.values()):
            if account.lock or account.heard + MAX_PERIOD > now:
                account.adopt(self.rules)
                yield account

    @property
    def locked(self) -> list[Account]:
        """The locked accounts, the latest lock last."""
        return list(self._locked.values())

    def lock(self, account: Account, lock: Lock) -> None:
        """Lock an account, in place of any lock that it has."""
        self.restore_lock(account, lock)
        account.attempts_while_locked = 0
        self._note_lock(account)

    def unlock(self, account: Account) -> None:
        """Free an account; its windows start anew, so that it does not relock at once."""
        self._free[account.name] = self._locked.pop(account.name, account)
        account.lock = None
        account.forget_counts()
        self._note_lock(account)

    def restore_lock(self, account: Account, lock: Lock) -> None:
        """Put a lock in place that was stored."""
        self._free.pop(account.name, None)
        self._locked.pop(account.name, None)
        self._locked[account.name] = account
        account.lock = lock

    def _make_room(self, now: float) -> None:
        """Forget whom the table has no place for, and whose last event has left the longest possible window."""
        for _ in range(_AT_ONCE):
            if len(self._free) + len(self.stored) > max(self.size - len(self._locked), self.size // 2):
                if self.stored:
                    self.stored.popitem()  # not heard of since the start
                else:
                    self._free.popitem(last=False)
            elif next(iter(self._free.values())).heard + MAX_PERIOD <= now:
                self._free.popitem(last=False)

    def _note_lock(self, account: Account) -> None:
        if self.changed is not None:
            self.changed[account.name] = self.locks_changed[account.name] = account
