"""The accounts: what each has sent of late, whether it is locked, and what it was told.

The table is bounded. An account that is not heard of for as long as the longest possible window is forgotten, and so is
the one not heard of for longest where there are too many; a locked one never is. Every method takes `now`, in seconds
of a clock that never steps back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policyd.allowances import Allowances, AllowedLimits
from policyd.distinct import Distinct
from policyd.limits import DISTINCT, MAX_PERIOD, Limit, Limits, Rules
from policyd.sections import DEFAULT_MAX_ACCOUNTS
from policyd.verdict import Verdict
from policyd.window import Window

MAX_CLIENTS = 5
"""The latest client addresses that are remembered of an account."""

_AT_ONCE = 2
"""Accounts that are forgotten at the most when one comes: so a table that is too large shrinks, and nobody waits."""

_SHARD = 63
"""The bits of a name's hash that tell which dict an account lies in. One dict of a million would stop all for 30 ms
when it has to grow."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an account did in the time for which a lock was made: so that a person can tell a newsletter from a bot."""

    first: float | None
    """Wall clock: the first event that counted; None where nothing is known of it."""
    messages: int = 0
    """Those it sent, tried to send or had held, as far as the history has them; so are all below."""
    recipients: int = 0
    clients: tuple[tuple[str, int], ...] = ()
    """The client addresses with most messages, and how many those are; then the same of envelope senders."""
    senders: tuple[tuple[str, int], ...] = ()
    queue_ids: tuple[str, ...] = ()
    """The latest ones, the last first."""
    distinct_clients: int = 0
    """How many there were, those that are named included."""
    distinct_senders: int = 0


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
    evidence: Evidence | None = None


class Account:
    """One account's windows, lock and tallies."""

    __slots__ = (
        "_client",
        "_client_seen",
        "_earlier_clients",
        "attempts_while_locked",
        "changed",
        "heard",
        "held",
        "limits",
        "lock",
        "maxima",
        "name",
        "newer",
        "observed",
        "older",
        "refused",
        "rules",
        "seen",
        "warned",
        "windows",
    )

    def __init__(self, name: str, rules: Rules, now: float, limits: Limits | None = None) -> None:
        self.name = name
        self.rules = rules
        self.limits = limits = rules.limits_for(name) if limits is None else limits
        self.maxima = limits.maxima
        self.windows = _fresh(limits)
        """One window a limit, in their order; None where the limit is per message."""
        self.lock: Lock | None = None
        self.heard = now
        """When it was last heard of."""
        self.older: Account | None = None
        """The free account that was heard of last before this one; None for an account that is not in the table."""
        self.newer: Account | None = None
        self.changed = False
        """Whether it waits to be stored."""
        self.seen = False
        """Whether it ever made a request; a person may lock one that did not."""
        self._client = b""
        """The client address that was seen last, b"" where none was, and when."""
        self._client_seen = 0.0
        self._earlier_clients: tuple[tuple[bytes, float], ...] = ()
        self.refused = 0
        self.held = 0
        self.warned = 0
        self.observed = 0
        self.attempts_while_locked = 0

    def adopt(self, rules: Rules, limits: Limits) -> None:
        """Go by other rules, or limits, from now on, keeping what has been counted for a limit of the same name."""
        if rules is self.rules and limits is self.limits:
            return
        known = {(limit.name, limit.count): window for limit, window in zip(self.limits, self.windows, strict=True)}
        self.rules = rules
        self.limits = limits
        self.maxima = limits.maxima
        self.windows = tuple(
            None if limit.period is None else known.get((limit.name, limit.count)) or _window(limit)
            for limit in self.limits
        )

    def forget_counts(self) -> None:
        """Start all windows anew. What is given back later was counted in the old ones, and changes nothing."""
        self.windows = _fresh(self.limits)

    @property
    def clients(self) -> list[tuple[bytes, float]]:
        """Client addresses and when each was last seen, the latest last."""
        return [*self._earlier_clients, (self._client, self._client_seen)] if self._client else []

    @clients.setter
    def clients(self, known: Sequence[tuple[bytes, float]]) -> None:
        *earlier, (self._client, self._client_seen) = known[-MAX_CLIENTS:] or ((b"", 0.0),)
        self._earlier_clients = tuple(earlier)

    def note_client(self, address: bytes, now: float) -> None:
        """Remember a client address among the latest."""
        if address != self._client:
            self.clients = [*(known for known in self.clients if known[0] != address), (address, now)]
        self._client_seen = now


def _fresh(limits: Limits) -> tuple[Window | None, ...]:
    return tuple([None if limit.period is None else _window(limit) for limit in limits])


def _window(limit: Limit) -> Window:
    return Distinct() if limit.count in DISTINCT else Window()


class Accounts:
    """The bounded table of accounts.

    The free ones are in a ring too, in the order in which they were last heard of: from `_ring.newer`, the oldest, to
    `_ring.older`. (An OrderedDict does the same, but stops for 80 ms when it grows to hold a million.)
    """

    def __init__(self, rules: Rules, size: int = DEFAULT_MAX_ACCOUNTS) -> None:
        self.rules = rules
        self.allowances = Allowances()
        self.size = size
        """Accounts that are remembered; locked ones are beyond it too, and leave half of the places to free ones."""
        self.stored: dict[str, Any] = {}
        """What a database has of accounts that nobody has asked about yet; see `recall`."""
        self.recall: Callable[[Account, Any, float], None] = lambda _account, _stored, _now: None
        """Gives a new account what was stored of it."""
        self.changed: deque[Account] | None = None
        """Accounts that differ from what is stored, the one that has for longest first; None where nothing is."""
        self.locks_changed: dict[str, Account] = {}
        self.evidence_added: Callable[[Account], None] = lambda _account: None
        """Is told when a lock says more of why than it did."""
        self._shards: tuple[dict[str, Account], ...] = tuple({} for _ in range(_SHARD + 1))
        """Those that are not locked."""
        self._free = 0
        """How many those are."""
        self._ring = Account("", rules, 0.0)
        self._ring.older = self._ring.newer = self._ring
        self._locked: dict[str, Account] = {}
        """The others, the latest lock last."""

    def __len__(self) -> int:
        return self._free + len(self._locked) + len(self.stored)

    def get(self, name: str, now: float) -> Account:
        """Return the account of this name, a new one where there is none."""
        account = self._shards[hash(name) & _SHARD].get(name)
        if account is None or account.rules is not self.rules:
            account = self.peek(name, now) or self.new(name, now)
        return self.heard(account, now)

    def heard(self, account: Account, now: float) -> Account:
        """Note that an account is at work, so that idle ones are forgotten before it.

        Return it, or what goes by its name by now, if it was forgotten meanwhile all the same.
        """
        older, newer, ring = account.older, account.newer, self._ring
        if newer is ring:
            pass  # it is the latest already
        elif older is None or newer is None:
            known = self._known(account.name)
            if known is None:
                account.heard = now
                self._add(account)
                if account.name in self.allowances.accounts or isinstance(account.limits, AllowedLimits):
                    self.adopt(account)  # what it was allowed may have changed while it was forgotten
                self._make_room(now)
            elif known is not account:
                return self.heard(known, now)
        else:
            older.newer, newer.older = newer, older
            account.older = older = ring.older
            account.newer = ring
            older.newer = ring.older = account  # type: ignore[union-attr]  # the ring is closed
        account.heard = now
        return account

    def peek(self, name: str, now: float) -> Account | None:
        """Return the account of this name if it is known."""
        account = self._known(name)
        if account is not None:
            if account.rules is not self.rules:
                self.adopt(account)
        elif name in self.stored:
            account = self.new(name, now)
            self._add(account)
            self.recall(account, self.stored.pop(name), now)
        return account

    def new(self, name: str, now: float) -> Account:
        """Return an account of this name that has done nothing yet, and is not in the table."""
        return Account(name, self.rules, now, self._limits_for(name))

    def adopt(self, account: Account) -> None:
        """Have an account go by the rules, and by the allowances, that are in force now."""
        account.adopt(self.rules, self._limits_for(account.name))

    def adopt_known(self, name: str) -> None:
        """Do the same with the account of this name, if it is in the table."""
        if (account := self._known(name)) is not None:
            self.adopt(account)

    def note_change(self, account: Account) -> None:
        """Have an account's counts and tallies stored soon."""
        if not account.changed and self.changed is not None:
            account.changed = True
            self.changed.append(account)

    def portions(self) -> Iterator[list[Account]]:
        """Yield all accounts, some at a time. The table may change between two of them.

        One that comes, or is locked or freed meanwhile, may be missing, or come twice. None has adopted other rules
        yet.
        """
        for shard in self._shards:
            yield list(shard.values())
        yield list(self._locked.values())

    @property
    def locked(self) -> list[Account]:
        """The locked accounts, the latest lock last."""
        return list(self._locked.values())

    def lock(self, account: Account, lock: Lock) -> None:
        """Lock an account, in place of any lock that it has."""
        self.restore_lock(account, lock)
        account.attempts_while_locked = 0
        self._note_lock(account)

    def add_evidence(self, account: Account, lock: Lock, evidence: Evidence) -> None:
        """Have a lock say why, if it is still in place."""
        if account.lock is lock:
            account.lock = replace(lock, evidence=evidence)
            self._note_lock(account)
            self.evidence_added(account)

    def unlock(self, account: Account) -> None:
        """Free an account; its windows start anew, so that it does not relock at once."""
        account = self._locked.pop(account.name, account)
        self._add(account)
        account.lock = None
        account.forget_counts()
        self._note_lock(account)

    def restore_lock(self, account: Account, lock: Lock) -> None:
        """Put a lock in place that was stored."""
        known = self._known(account.name)
        if known is not None and known.older is not None:
            self._remove(known)
        self._locked.pop(account.name, None)
        self._locked[account.name] = account
        account.lock = lock

    def _limits_for(self, name: str) -> Limits:
        usual = self.rules.limits_for(name)
        return self.allowances.limits_for(name, usual) if name in self.allowances.accounts else usual

    def _known(self, name: str) -> Account | None:
        return self._shards[hash(name) & _SHARD].get(name) or self._locked.get(name)

    def _add(self, account: Account) -> None:
        """Put an account among the free ones, as the one that was heard of last."""
        if account.older is not None:
            return
        self._shards[hash(account.name) & _SHARD][account.name] = account
        self._free += 1
        ring = self._ring
        account.older, account.newer = ring.older, ring
        account.older.newer = ring.older = account  # type: ignore[union-attr]  # the ring is closed

    def _remove(self, account: Account) -> None:
        """Take an account from among the free ones."""
        del self._shards[hash(account.name) & _SHARD][account.name]
        self._free -= 1
        older, newer = account.older, account.newer
        older.newer, newer.older = newer, older  # type: ignore[union-attr]  # the ring is closed
        account.older = account.newer = None

    def _make_room(self, now: float) -> None:
        """Forget whom the table has no place for, and whose last event has left the longest possible window."""
        for _ in range(_AT_ONCE):
            oldest = self._ring.newer
            if oldest is None or oldest is self._ring:
                break
            if self._free + len(self.stored) > max(self.size - len(self._locked), self.size // 2):
                if self.stored:
                    self.stored.popitem()  # not heard of since the start
                else:
                    self._remove(oldest)
            elif oldest.heard + MAX_PERIOD <= now:
                self._remove(oldest)

    def _note_lock(self, account: Account) -> None:
        self.note_change(account)
        if self.changed is not None:
            self.locks_changed[account.name] = account
