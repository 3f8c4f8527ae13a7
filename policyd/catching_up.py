"""Telling the store what it missed: what is given back, what was let through while it was away, and all it has lost.

Nobody waits for any of this. A share is told again and again until the store has said that it knows; and before the
store is asked about an account, what waits of that account is told first, so that what it says counts that already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from policyd.accounts import Account, Accounts
from policyd.distinct import Distinct
from policyd.limits import Limits
from policyd.locks import Report
from policyd.shared_calls import AwayError, Calls, Outcome
from policyd.shares import NOTHING, Share, Waiting
from policyd.transactions import Connection

AT_ONCE = 500
"""Shares that are on their way to the store at a time when it is back."""

FIRST = 100
"""Shares of one account that are told before the store is asked about it."""

PIECE = 200
"""Accounts whose windows are sent in one turn when the store has lost its data."""

KEEP = 60.0
"""Seconds between two looks at transactions that the store must not forget, and the age at which one is told again."""


class Reply(Protocol):
    """What a call returns: a Deferred of Twisted's."""

    def addCallbacks(  # noqa: N802 -- named by Twisted
        self, callback: Callable[[object], None], errback: Callable[[Any], None]
    ) -> object:
        """Have one of the two called when the reply is there, or a Failure."""


class Store:
    """The store as this node reaches it.

    `call` sends a call, and fails with AwayError; `here` tells whether that is worth a try; `read` understands what
    comes back, and raises ValueError; `soon` has something called in one of the next turns; `clock` never steps back.
    """

    def __init__(
        self,
        calls: Calls,
        call: Callable[[bytes], Reply],
        here: Callable[[], bool],
        read: Callable[[object], Outcome],
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self.calls, self.call, self.here, self.read, self.soon, self.clock = calls, call, here, read, soon, clock


class CatchingUp:
    """Tells the store what it missed.

    `bug` is told of an exception that should not have been; `told` of a share whose call has come to its end.
    """

    def __init__(self, accounts: Accounts, store: Store, report: Report, bug: Callable[[], object]) -> None:
        self.waiting = Waiting()
        self.generation = 0
        """How often the store has lost its data."""
        self.told: Callable[[Share], None] = lambda _share: None
        self._accounts = accounts
        self._store = store
        self._report = report
        self._bug = bug
        self._out = 0
        """Calls of those that waited that are on their way."""
        self._failed = False
        self._lost_told = 0
        self._odd = False
        self._refilled: set[str] | None = None
        """The accounts whose windows were sent since the store has lost its data; None: all were."""
        self._to_refill: Iterator[str] = iter(())
        self._again: list[str] = []
        self._kept_at = 0.0

    def tell(self, share: Share, now: float, end: Callable[[], None] | None = None) -> None:
        """Tell the store where a transaction stands now, whatever it exceeds; `end` is called whatever comes of it."""
        self.waiting.remove(share)
        share.refresh(now, self.generation, share.wanted)
        target, ago = share.relative(share.wanted), max(0.0, now - share.when)
        if share.sure and target == share.told:
            self._ended(share, end)
            return
        share.busy = True
        calls, limits = self._store.calls, self._limits(share.account, now)
        command = calls.settle(share.account, limits, share.name, target, force=True, ago=ago)

        def told(reply: object) -> None:
            try:
                self._store.read(reply)
            except ValueError as error:
                self.misunderstood(error)
                failed(None)
                return
            share.told, share.sure, share.called = target, True, now
            share.busy = False
            self._ended(share, end)

        def failed(failure: Any) -> None:
            self.look_at(failure)
            share.busy = share.sure = False
            self._failed = True
            self.note(share)
            self._ended(share, end)

        self._store.call(command).addCallbacks(told, failed)

    def look_at(self, failure: Any) -> None:
        """Tell of a failure that is none of the store's."""
        if failure is None:
            return
        try:
            failure.raiseException()
        except AwayError:
            return
        except Exception:
            self._bug()

    def misunderstood(self, error: ValueError) -> None:
        """Tell, once, that the store says what its script cannot have said."""
        if not self._odd:
            self._odd = True
            self._report("cluster-problem", {"reason": f"the store has answered what makes no sense: {error}"})

    def note(self, share: Share) -> None:
        """Have a share wait until the store takes it."""
        self.waiting.add(share)

    def before(self, account: Account, now: float) -> None:
        """Tell what waits of an account that the store is about to be asked about."""
        if self._refilled is not None and account.name not in self._refilled:
            self._refill(account, now)
        if account.name in self.waiting:
            for share in self.waiting.of(account.name, FIRST):
                if not share.busy:
                    self.tell(share, now)

    def came_back(self) -> None:
        """Begin to tell what waits."""
        self._odd = False
        self._go_on()

    def store_lost_data(self) -> None:
        """Send all that this node has let through: the store begins with nothing.

        What waits is among it.
        """
        self.generation += 1
        self.waiting.clear()
        self._refilled, self._again = set(), []
        self._to_refill = self._names()
        self._go_on()

    def forget(self, account: str) -> None:
        """Have nothing told of what an account did: its counts start anew."""
        self.waiting.forget(account)

    def tick(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Once a second: try again what has failed, and have the store remember what is still going on."""
        now = self._store.clock()
        if self.waiting.lost > self._lost_told:
            self._lost_told = self.waiting.lost
            self._report("cluster-problem", {"reason": self._loss()})
        if not self._store.here():
            return
        self._go_on()
        if now >= self._kept_at + KEEP:
            self._kept_at = now
            for connection in connections():
                share = connection.transaction.share if connection.transaction else None
                if share and not share.busy and share.told != NOTHING and share.called + KEEP <= now:
                    share.sure = False
                    self.tell(share, now)

    @property
    def refilling(self) -> bool:
        """Whether the store has not been told yet all that it has lost."""
        return self._refilled is not None

    def problems(self) -> list[str]:
        """Return what a person should know."""
        number = len(self.waiting)
        found = [f"messages that the other servers do not know of yet: {number}"] if number else []
        if self._refilled is not None:
            found.append("the store has lost its data, and is being told what this server has let through")
        if self.waiting.lost:
            found.append(self._loss())
        return found

    def _loss(self) -> str:
        return f"messages that the other servers will never know of, too many have waited: {self.waiting.lost}"

    def _limits(self, name: str, now: float) -> Limits:
        account = self._accounts.peek(name, now) or self._accounts.new(name, now)
        return account.limits

    def _ended(self, share: Share, end: Callable[[], None] | None) -> None:
        self.told(share)
        if end is not None:
            end()

    def _go_on(self) -> None:
        """Tell some of what waits, unless some is on its way."""
        if self._out or not self._store.here():
            return
        now, self._failed = self._store.clock(), False
        if self._refilled is not None:
            self._refill_some(now)
        if not self.waiting:
            return
        self._out = 1
        for share in self.waiting.some(AT_ONCE):
            if share.busy:
                self.waiting.remove(share)  # it is told when its call has come to its end
            elif self._is_over(share, now):
                self.waiting.remove(share)
            elif share.noted:
                self._out += 1
                self.tell(share, now, self._one_less)
        self._one_less()

    def _one_less(self) -> None:
        self._out -= 1
        if not self._out and (self.waiting or self._refilled is not None) and not self._failed:
            self._store.soon(self._go_on)

    def _is_over(self, share: Share, now: float) -> bool:
        """Tell whether all that a share has to tell has left its windows."""
        limits = self._limits(share.account, now)
        return all(limit.period is None or share.when + limit.period + limit.slice <= now for limit in limits)

    def _names(self) -> Iterator[str]:
        """Yield the names of all accounts that have done something; what is stored may come to the others meanwhile."""
        stored = list(self._accounts.stored)
        for portion in self._accounts.portions():
            for account in portion:
                yield account.name
        yield from stored

    def _refill_some(self, now: float) -> None:
        """Send the windows of some accounts."""
        for done, name in enumerate(self._to_refill, 1):
            account = self._accounts.peek(name, now)
            if account is not None and self._refilled is not None and name not in self._refilled:
                self._refill(account, now)
            if done == PIECE:
                self._store.soon(self._go_on)
                return
        if self._again:
            self._to_refill, self._again = iter(self._again), []
        else:
            self._refilled = None

    def _refill(self, account: Account, now: float) -> None:
        """Send an account's own windows."""
        if self._refilled is None:
            return
        name, refilled = account.name, self._refilled
        refilled.add(name)
        runs: list[tuple[int, list[float], Sequence[int | bytes]]] = []
        for place, (limit, window) in enumerate(zip(account.limits, account.windows, strict=True)):
            if window is not None and limit.period is not None and window.count(now, limit.period):
                stamps, events = window.sightings() if isinstance(window, Distinct) else window.runs()
                runs.append((place, [max(0.0, now - stamp) for stamp in stamps], events))
        if not runs:
            return

        def failed(failure: Any) -> None:
            self.look_at(failure)
            refilled.discard(name)
            self._again.append(name)

        command = self._store.calls.refill(name, account.limits, runs)
        self._store.call(command).addCallbacks(lambda _reply: None, failed)
