"""A store that several nodes share, in plain Python: what the script does, with a clock and troubles of its own.

It takes the calls of `ModelCalls`, which are not bytes for a wire but names of what was called. How windows, receipts
and limits go is the house's own business (charges, transactions), which other tests look after; what is modelled here
is what the nodes rely on: targets, records, force, locks, and what becomes of a call when the store is in trouble.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from policyd import charges
from policyd.accounts import Account
from policyd.charges import Exceeded
from policyd.distinct import Distinct
from policyd.envelope import Envelope
from policyd.limits import Limits, Rules
from policyd.shared_calls import CHARGED, Calls, Outcome, Over, Target
from policyd.transactions import MEMORY, Transaction

_RULES = Rules()
NOTHING = Target(0, 0)


@dataclass(frozen=True)
class Call:
    """A call that was made."""

    operation: str
    account: str
    node: str = ""
    limits: Limits = field(default_factory=lambda: Limits(()))
    instance: bytes = b""
    target: Target = NOTHING
    force: bool = False
    ago: float = 0.0
    text: str = ""
    seconds: float | None = None
    runs: tuple[Any, ...] = ()


class ModelCalls(Calls):
    """Packs calls for a StoreModel."""

    def __init__(self, model: StoreModel, node: str) -> None:
        super().__init__("test", node)
        self._model, self._name = model, node

    def settle(
        self,
        account: str,
        limits: Limits,
        instance: bytes,
        target: Target,
        *,
        force: bool = False,
        ago: float = 0.0,
        now: float | None = None,
    ) -> bytes:
        """Have a transaction stand at a target."""
        call = Call("settle", account, self._name, limits, instance, target, force, ago)
        return self._model.packed(call)

    def lock(self, account: str, text: str, seconds: float | None) -> bytes:
        """Put a lock in force."""
        return self._model.packed(Call("lock", account, text=text, seconds=seconds))

    def unlock(self, account: str) -> bytes:
        """Free an account."""
        return self._model.packed(Call("unlock", account))

    def reset(self, account: str) -> bytes:
        """Forget an account's counts."""
        return self._model.packed(Call("reset", account))

    def refill(
        self,
        account: str,
        limits: Limits,
        runs: Sequence[tuple[int, Sequence[float], Sequence[int | bytes]]],
        now: float | None = None,
    ) -> bytes:
        """Tell what a node has counted."""
        return self._model.packed(Call("refill", account, self._name, limits, runs=tuple(runs)))


class _Letter(Envelope):
    """What a target tells of its message."""

    def __init__(self, target: Target) -> None:
        self._values = {"clients": target.client, "senders": target.sender}
        self.size = target.size
        self._sightings = ()
        self._sizes = ()


class _Entry:
    """An account as the store has it."""

    def __init__(self, name: str, limits: Limits, now: float) -> None:
        self.account = Account(name, _RULES, now, limits)
        self.lock: str | None = None
        self.ends: float | None = None
        self.records: dict[tuple[str, bytes], Transaction] = {}
        self.filled: set[str] = set()


class StoreModel:
    """The store; `clock` is its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._accounts: dict[str, _Entry] = {}
        self._calls: dict[bytes, Call] = {}
        self._numbers = itertools.count()

    def packed(self, call: Call) -> bytes:
        """Return what a call is known by."""
        name = b"call %d" % next(self._numbers)
        self._calls[name] = call
        return name

    def what(self, command: bytes) -> Call:
        """Return what a command calls."""
        return self._calls[command]

    def lose_data(self) -> None:
        """Forget all."""
        self._accounts.clear()

    def say(self, command: bytes) -> object:
        """Carry out a call, and return the reply."""
        call = self._calls[command]
        entry = self._entry(call)
        if call.operation == "settle":
            return self._settle(entry, call)
        if call.operation == "lock":
            entry.lock = call.text
            entry.ends = None if call.seconds is None else self.clock() + call.seconds
        elif call.operation == "refill":
            self._refill(entry, call)
        else:
            entry.lock = None if call.operation == "unlock" else entry.lock
            entry.account.forget_counts()
        return 0

    def counts(self, account: str) -> list[int | None]:
        """Return an account's counts, in the order of its limits."""
        now, entry = self.clock(), self._accounts.get(account)
        if entry is None:
            return []
        pairs = zip(entry.account.limits, entry.account.windows, strict=True)
        return [None if window is None else window.count(now, limit.period or 0.0) for limit, window in pairs]

    def _entry(self, call: Call) -> _Entry:
        now = self.clock()
        entry = self._accounts.get(call.account)
        if entry is None:
            entry = self._accounts[call.account] = _Entry(call.account, call.limits, now)
        if call.limits:
            entry.account.adopt(_RULES, call.limits)
        if entry.lock is not None and entry.ends is not None and entry.ends <= now:
            entry.lock = None
            entry.account.forget_counts()
        return entry

    def _settle(self, entry: _Entry, call: Call) -> Outcome:
        now, target, key = self.clock(), call.target, (call.node, call.instance)
        record = entry.records.get(key)
        if record is None or record.last + MEMORY <= now:
            record = Transaction(call.instance, entry.account)
            if call.instance:
                entry.records[key] = record
        record.last = now
        _give_back(record, target)
        if entry.lock is not None and not call.force:
            return Outcome(entry.lock, None, (), ())
        outcome = _charge(record, call, now)
        return outcome if entry.lock is None else outcome._replace(lock=entry.lock)

    def _refill(self, entry: _Entry, call: Call) -> None:
        if call.node in entry.filled:
            return
        entry.filled.add(call.node)
        now = self.clock()
        for place, agos, events in call.runs:
            limit, window = entry.account.limits[place], entry.account.windows[place]
            for ago, what in zip(agos, events, strict=True):
                if isinstance(window, Distinct):
                    window.put_values_before(what, [now - ago])
                elif window is not None:
                    window.add(now - ago, what, limit.slice)


def _give_back(record: Transaction, target: Target) -> None:
    """Give back what a transaction was charged above its target."""
    if record.message_counted and not target.messages:
        assert not target.recipients, "a message is given back wholly"
        record.give_back()
    if target.recipients < record.recipients:
        record.keep_recipients(target.recipients)


def _charge(record: Transaction, call: Call, now: float) -> Outcome:
    """Charge a transaction what it lacks of its target, all or nothing."""
    target, account = call.target, record.account
    messages, recipients = target.messages - record.message_counted, target.recipients - record.recipients
    if messages and account.maxima.looked_at:
        record.envelope = _Letter(target)
    at = now if account.maxima.distinct else now - call.ago
    if call.force:
        charges.count(record, messages, recipients, at)
        if not messages and record.envelope is not None and target.size not in (0, record.envelope.size):
            charges.settled(record, target.size, at, charges.Check(None, ()))
        return CHARGED
    before = [window.count(now, limit.period or 0.0) if window else 0 for limit, window in _windows(account)]
    found = charges.check(record, messages, recipients, now)
    if found.stop is None:
        charges.count(record, messages, recipients, now, found.passing)
        if not messages and record.envelope is not None and target.size:
            sized = charges.settle(record, target.size, now)
            found = charges.Check(sized.stop, found.passing + sized.passing)
    near = []
    for place, (limit, window) in enumerate(_windows(account)):
        least, count = limit.near(account.limits.warn_at), window.count(now, limit.period or 0.0) if window else 0
        if least is not None and count > before[place] and count >= least:
            near.append((place, count))
    passing = tuple(_over(account, exceeded) for exceeded in found.passing)
    stop = None if found.stop is None else _over(account, found.stop)
    return Outcome(None, stop, passing, () if stop else tuple(near))


def _windows(account: Account) -> list[tuple[Any, Any]]:
    return list(zip(account.limits, account.windows, strict=True))


def _over(account: Account, exceeded: Exceeded) -> Over:
    return Over(account.limits.index(exceeded.limit), exceeded.reached, exceeded.resets_in)
