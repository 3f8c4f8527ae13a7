"""Telling the store what it missed: what is given back, what was let through while it was away, and all it has lost.

Nobody waits for any of this. A share is told again and again until the store has said that it knows; and before the
store is asked about an account, what waits of that account is told first, so that what it says counts that already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
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

AGAIN = 10.0
"""Seconds until an account is tried again that has failed though the store is here: its data there may be wrong."""

FIRST = 100
"""Shares of one account that are told before the store is asked about it."""

PIECE = 200
"""Accounts that are looked at in one turn when the store has lost its data."""

PIECE_RUNS = 5000
"""Runs of events after which a piece ends, however few accounts they are of."""

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

    `bug` is told of an exception that should not have been; `call_ended` of a share whose call has come to its end.
    """

    def __init__(self, accounts: Accounts, store: Store, report: Report, bug: Callable[[], object]) -> None:
        self.waiting = Waiting()
        self.generation = 0
        """How often the store has lost its data."""
        self.call_ended: Callable[[Share], None] = lambda _share: None
        self._accounts = accounts
        self._store = store
        self._report = report
        self._bug = bug
        self._out = 0
        """Calls of a round that are on their way: the next one begins when all are answered."""
        self._put_off = False
        """Whether the next round is due in one of the next turns."""
        self._lost_told = 0
        self._odd = False
        self._refilled: set[str] | None = None
        """The accounts whose windows were sent since the store has lost its data; None: all were."""
        self._to_refill: Iterator[str] | None = None
        """The accounts that come next; None: all had their turn."""
        self._refilling = 0
        """Windows that are on their way."""
        self._again: dict[str, None] = {}
        """The accounts whose windows did not arrive."""
        self._again_at = 0.0
        """When they are sent again."""
        self._kept_at = 0.0
        self._to_keep: Iterator[Connection] | None = None
        """The connections that this look at transactions has still to come to; None: it is over."""

    def tell(self, share: Share, now: float, end: Callable[[], None] | None = None) -> None:
        """Tell the store where a transaction stands now, whatever it exceeds; `end` is called whatever comes of it."""
        self.waiting.remove(share)
        share.refresh(now, self.generation, share.wanted)
        target, ago = share.relative(share.wanted), max(0.0, now - share.when)
        if share.sure and target == share.told:
            self._ended(share, end)
            return
        share.busy = True

        def told(reply: object) -> None:
            if self.read(reply) is None:
                failed(None)
                return
            share.told, share.sure, share.called = target, True, now
            share.busy = False
            self.waiting.take_back(share.account)
            self._ended(share, end)

        def failed(failure: Any) -> None:
            self.look_at(failure)
            share.busy = share.sure = False
            self.waiting.add(share)
            if self._store.here():  # it is not the store that failed
                self._put_aside(share)
            self._ended(share, end)

        try:
            limits = self._limits(share.account, now)
            command = self._store.calls.settle(share.account, limits, share.name, target, force=True, ago=ago)
            call = self._store.call(command)
        except Exception:
            self._bug()
            failed(None)
            return
        call.addCallbacks(told, failed)

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

    def read(self, reply: object) -> Outcome | None:
        """Understand what the store has answered; None: its script cannot have said that, which is told once."""
        try:
            return self._store.read(reply)
        except ValueError as error:
            if not self._odd:
                self._odd = True
                self._report("cluster-problem", {"reason": f"the store has answered what makes no sense: {error}"})
        except Exception:
            self._bug()
        return None

    def before(self, account: Account, now: float) -> None:
        """Tell what waits of an account that the store is about to be asked about."""
        if self._lacks_windows(account.name):
            self._refill(account, now, _nobody)
        if account.name in self.waiting:
            for share in self.waiting.of(account.name, 1 if self.waiting.is_aside(account.name) else FIRST):
                if not share.busy:
                    self.tell(share, now)

    def came_back(self) -> None:
        """Begin to tell what waits."""
        self._odd = False
        self._again_at = 0.0
        self._go_on()

    def store_lost_data(self) -> None:
        """Send all that this node has let through: the store begins with nothing.

        What waits is among it.
        """
        self.generation += 1
        self.waiting.clear()
        self._refilled, self._refilling, self._again = set(), 0, {}
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
        self.waiting.take_back_all(now)
        self._go_on()
        self._keep_some(connections, now)

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
        try:
            self.call_ended(share)
        except Exception:  # the others are told all the same
            self._bug()
        if end is not None:
            end()

    def _go_on(self) -> None:
        """Tell some of what waits, unless some is on its way."""
        if self._out or not self._store.here():
            return
        now = self._store.clock()
        self._out = 1
        try:
            if self._refilled is not None:
                self._refill_some(now)
            for share in self.waiting.some(AT_ONCE):
                self._tell_waiting(share, now)
        except Exception:  # the next second tries again
            self._bug()
        finally:
            self._one_less()

    def _tell_waiting(self, share: Share, now: float) -> None:
        try:
            over = self._is_over(share, now)
        except Exception:
            self._bug()
            self._put_aside(share)
            return
        if over or share.busy:
            self.waiting.remove(share)  # a busy one is told when its call has come to its end
        elif share.noted:
            self._out += 1
            self.tell(share, now, self._one_less)

    def _put_aside(self, share: Share) -> None:
        self.waiting.put_aside(share.account, self._store.clock() + AGAIN)

    def _one_less(self) -> None:
        self._out -= 1
        if not self._out and not self._put_off and (self.waiting.ready or self._to_refill is not None):
            self._put_off = True
            self._store.soon(self._go_on_now)

    def _go_on_now(self) -> None:
        self._put_off = False
        self._go_on()

    def _keep_some(self, connections: Callable[[], Iterable[Connection]], now: float) -> None:
        """Have the store remember transactions that are still going on: some at a time."""
        if self._to_keep is None:
            if now < self._kept_at + KEEP:
                return
            self._kept_at, self._to_keep = now, iter(connections())
        told = 0
        for connection in self._to_keep:
            share = connection.transaction.share if connection.transaction else None
            if share and not share.busy and share.told != NOTHING and share.called + KEEP <= now:
                share.sure = False
                self.tell(share, now)
                told += 1
                if told == AT_ONCE:
                    return
        self._to_keep = None

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
        """Send the windows of some accounts: the next ones go when these have arrived."""
        if self._to_refill is None and self._again and now >= self._again_at:
            self._to_refill = iter(list(self._again))
        if self._to_refill is not None:
            looked, sent = 0, 0
            for name in islice(self._to_refill, PIECE):
                looked += 1
                account = self._accounts.peek(name, now)
                if account is None:
                    self._again.pop(name, None)
                elif self._lacks_windows(name):
                    self._out += 1
                    sent += self._refill(account, now, self._one_less)
                    if sent >= PIECE_RUNS:
                        return
            if looked == PIECE:
                return
            self._to_refill = None
        self._look_whether_all_refilled()

    def _tell_no_more(self, name: str) -> None:
        """Have nothing told of what is in an account's windows, which are about to be sent for the first time.

        When they are sent again, they may have arrived before: what waits then counts twice rather than not at all.
        """
        for share in self.waiting.of(name, len(self.waiting)):
            share.start_anew(share.wanted, self.generation)
        self.waiting.forget(name)

    def _lacks_windows(self, name: str) -> bool:
        return self._refilled is not None and (name not in self._refilled or name in self._again)

    def _look_whether_all_refilled(self) -> None:
        if self._to_refill is None and not self._refilling and not self._again:
            self._refilled = None

    def _refill(self, account: Account, now: float, end: Callable[[], None]) -> int:
        """Send an account's own windows, and return how many runs they have; `end` is called whatever comes of it."""
        name, refilled = account.name, self._refilled
        if refilled is None:
            end()
            return 0
        if name not in refilled:
            self._tell_no_more(name)
        refilled.add(name)
        self._again.pop(name, None)

        def ended(_reply: object) -> None:
            if refilled is self._refilled:  # else the store has lost its data once more
                self._refilling -= 1
                self._look_whether_all_refilled()
            end()

        def failed(failure: Any) -> None:
            self.look_at(failure)
            if refilled is self._refilled:
                self._again[name] = None
                now = self._store.clock()
                if self._again_at <= now and self._store.here():  # it is not the store that failed
                    self._again_at = now + AGAIN
            ended(None)

        self._refilling += 1
        try:
            runs = _runs(account, now)
            call = self._store.call(self._store.calls.refill(name, account.limits, runs)) if runs else None
        except Exception:
            self._bug()
            failed(None)
            return 0
        if call is None:
            ended(None)
        else:
            call.addCallbacks(ended, failed)
        return sum(len(stamps) for _, stamps, _ in runs)


def _runs(account: Account, now: float) -> list[tuple[int, list[float], Sequence[int | bytes]]]:
    """Return what is in an account's own windows: their places, for how long each event has been there, the events."""
    found: list[tuple[int, list[float], Sequence[int | bytes]]] = []
    for place, (limit, window) in enumerate(zip(account.limits, account.windows, strict=True)):
        if window is not None and limit.period is not None and window.count(now, limit.period):
            stamps, events = window.sightings() if isinstance(window, Distinct) else window.runs()
            found.append((place, [max(0.0, now - stamp) for stamp in stamps], events))
    return found


def _nobody() -> None:
    """Tell nobody."""
