"""The locks of all nodes: what is decided here goes to the store, and what is decided elsewhere is in force here.

Each node has all locks in its own table, and in its own database: so they hold while the store is away, too. By which
rules one of two decisions stands, `decisions` tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from math import isinf
from typing import Any

from twisted.internet.defer import Deferred

from policyd.accounts import Account, Lock
from policyd.decisions import Decision, decision_of, lock_id, locked, stands, value_of
from policyd.locks import DAEMON, utc
from policyd.outbox import MAX_REMEMBERED, Outbox, all_of
from policyd.records import restore_lock
from policyd.shared_node import Node

MOMENT = 2.0
"""Seconds: a lock with less of its time left is not taken over, for two clocks may differ about its end."""

WAITS = "lock-order"
"""The kind of fact that is an order which the store has still to be told of."""

Write = Callable[[], Deferred[object]]
"""Writes something to the store."""


@dataclass(frozen=True, slots=True)
class Order:
    """Something that was decided here about an account."""

    decided: float
    """By the store's clock."""
    by: str
    uid: int | None
    what: str
    """`lock`, `unlock` or `reset`. A lock is sent as it is when it is sent."""
    reset: bool = False
    """Whether the counts are to be forgotten, too."""


@dataclass(slots=True)
class Known:
    """A lock that is in force here, and that the store has."""

    decided: float
    node: str
    text: int
    """A hash of the store's text of it."""
    seen: int
    """The number of the look at the store at which it was seen last."""


class Registry:
    """The locks.

    `forgot` is called with the name of an account whose counts were forgotten, here or on another node.
    """

    def __init__(self, node: Node, forgot: Callable[[str], None] = lambda _name: None) -> None:
        self.malformed = 0
        """Records and messages in the store that no policyd can have written."""
        self.round = 0
        """Looks at all locks in the store."""
        self.known: dict[str, Known] = {}
        """By account."""
        self.orders: Outbox[str, Order] = Outbox(self._send, lambda: node.store.here, node.bug, self._keep)
        self._freed: dict[str, Decision] = {}
        """Accounts that were freed of late, on whichever node."""
        self._node = node
        self._policy = node.policy
        self._clock = node.clock
        self._seconds = node.reactor.seconds
        self._forgot = forgot
        node.policy.accounts.evidence_added = self._evidence_added

    def noted(self, event: str, fields: Mapping[str, object]) -> bool:
        """Take in an event of this node's; tell whether it is this node that tells people of it."""
        if event not in ("lock", "unlock", "reset"):
            return True
        name, by, uid = str(fields["account"]), str(fields["by"]), fields["uid"]
        known, number = self.known.get(name), uid if isinstance(uid, int) else None
        if event == "unlock" and by == DAEMON and number is None:  # its time is over, as it is in the store
            self.known.pop(name, None)
            self.orders.drop(name)
            return known is None or known.node == self._node.name
        if event == "lock":
            self.known.pop(name, None)  # this is another one
        else:
            self._forgot(name)
        self.order(event, name, by, number)
        return True

    def order(self, what: str, name: str, by: str, uid: int | None) -> None:
        """Have the store, and the other nodes, told of an order that was given here."""
        waiting, decided = self.orders.get(name), self._clock.at(self._seconds())
        if what == "reset" and waiting is not None and waiting.what != "reset":
            order = Order(waiting.decided, waiting.by, waiting.uid, waiting.what, reset=True)
        else:
            order = Order(decided, by, uid, what, reset=what == "reset" or (waiting is not None and waiting.reset))
        self.orders.put(name, order)

    def restored(self) -> None:
        """Go on with the orders that waited when this node ended."""
        for text in self._node.facts.of(WAITS):
            name, *told = json.loads(text)
            if name not in self.orders:
                self.orders.put(name, Order(*told))

    def _keep(self, name: str, order: Order | None) -> bool:
        """Keep an order over a restart, but for a lock, which is in the table of them."""
        kept = order is not None and (order.what != "lock" or order.reset)
        text = json.dumps([name, *astuple(order)]) if order is not None and kept else None
        self._node.facts.put(WAITS, name, text)
        return kept

    def mirror(self, account: Account, text: str | None, now: float) -> None:
        """Take in what the store says of an account's lock in the reply to a request; None: it has none.

        That there is none frees nobody by itself, for the reply may be older than the lock, or the store have lost it:
        the index tells whether the account was unlocked.
        """
        name, known = account.name, self.known.get(account.name)
        if text is None:
            if account.lock is not None and name not in self.orders:
                self.doubt(account)
        elif known is None or account.lock is None or known.text != hash(text):
            self.read(text, now)

    def read(self, text: str, now: float) -> Decision | None:
        """Put in force what the store says of an account's lock; return it if it makes sense."""
        decision = self.decided(text)
        if decision is not None:
            self.meet(decision, now)
            known = self.known.get(decision.account)
            if known is not None and known.decided == decision.decided:
                known.text = hash(text)
        return decision

    def decided(self, text: object) -> Decision | None:
        """Return what a text of the store's says; None: no policyd can have written it, or there is none."""
        if text is None:
            return None
        try:
            return decision_of(value_of(text))
        except ValueError:
            self.malformed += 1
            return None

    def news(self, value: Mapping[str, Any]) -> None:
        """Take in what another node tells; raises ValueError."""
        now = self._seconds()
        if value["what"] == "reset":
            self._reset_elsewhere(value, now)
            return
        self.meet(decision_of(value), now)

    def meet(self, theirs: Decision, now: float) -> None:
        """Put in force what another node has decided, unless what is so here stands against it: then tell that again.

        Two nodes may write at the same moment, so that neither sees what the other writes.
        """
        name = theirs.account
        if name in self.orders:
            return  # what stands comes of sending that
        mine, account = self._freed.get(name), self._policy.locks.peek(name, now)
        if account is not None and account.lock is not None:
            known = self.known.get(name)
            decided = account.lock.since if known is None else known.decided
            mine = locked(account, account.lock, decided, self._node.name, self._clock.span(now), now)
        if mine is None or mine.id == theirs.id or not stands(mine, theirs, self._clock.at(now)):
            self.adopt(theirs, now)
        else:
            what = "unlock" if mine.lock is None else "lock"
            self.orders.put(name, Order(mine.decided, mine.by, mine.uid, what))

    def doubt(self, account: Account) -> None:
        """Have a lock compared with what the store knows of it: it is freed here, or written there again."""
        if (lock := account.lock) is not None and account.name not in self.orders:
            known = self.known.get(account.name)
            decided = lock.since if known is None else known.decided
            self.orders.put(account.name, Order(decided, lock.by, lock.uid, "lock"))

    def lost(self) -> Iterator[None]:
        """Have all locks written again, for the store has lost its data: some at each step."""
        for account in self._policy.accounts.locked:
            self.doubt(account)
            yield

    def unseen(self) -> Iterator[None]:
        """Doubt the locks here that were not seen at this look at the store: some at each step."""
        for account in self._policy.accounts.locked:
            known = self.known.get(account.name)
            if known is None or known.seen != self.round:
                self.doubt(account)
            yield

    def is_over(self, decision: Decision) -> bool:
        """Tell whether what the store has says nothing any more."""
        return decision.is_over(self._clock.at(self._seconds()))

    def doubt_named(self, name: str) -> bool:
        """Doubt an account's lock; tell whether it has one."""
        account = self._policy.locks.peek(name, self._seconds())
        if account is None or account.lock is None:
            return False
        self.doubt(account)
        return True

    def adopt(self, decision: Decision, now: float) -> None:
        """Put in force here what stands in the store."""
        if decision.lock is None:
            self._free(decision, now)
            return
        account = self._policy.locks.account(decision.account, now)
        span, ahead = self._clock.span(now), self._clock.wall_ahead(now)
        lock = restore_lock(decision.lock, span, now, ahead)
        if lock.ends <= now + MOMENT:
            return
        self._freed.pop(account.name, None)
        self.known[account.name] = Known(decision.decided, decision.node, hash(decision.text()), self.round)
        before = account.lock
        if before is not None and lock_id(account.name, before) == decision.id:
            if lock.evidence is not None and lock.evidence != before.evidence:
                self._policy.accounts.add_evidence(account, before, lock.evidence)
            return
        self._policy.accounts.lock(account, lock)
        self._node.log("lock", {"account": account.name, **_lock_fields(lock), "node": decision.node})

    def _remember(self, freed: Decision) -> None:
        """Note that an account was freed, to know older news of it from newer ones."""
        self._freed.pop(freed.account, None)
        self._freed[freed.account] = freed
        if len(self._freed) > MAX_REMEMBERED:
            del self._freed[next(iter(self._freed))]

    def _free(self, decision: Decision, now: float) -> None:
        name = decision.account
        self._remember(decision)
        account = self._policy.locks.peek(name, now)
        self.known.pop(name, None)
        if account is None or account.lock is None:
            return
        self._policy.accounts.unlock(account)
        self._forgot(name)
        fields = {"by": decision.by, "uid": decision.uid, "attempts": account.attempts_while_locked}
        self._node.log("unlock", {"account": name, **fields, "node": decision.node})

    def _reset_elsewhere(self, value: Mapping[str, Any], now: float) -> None:
        told = decision_of({**value, "free": True})
        account = self._policy.locks.peek(told.account, now)
        self._forgot(told.account)
        if account is not None:
            account.forget_counts()
            self._policy.accounts.note_change(account)
        self._node.log("reset", {"account": told.account, "by": told.by, "uid": told.uid, "node": told.node})

    def _evidence_added(self, account: Account) -> None:
        """Have the store told what led to a lock of this node's."""
        known, waiting = self.known.get(account.name), self.orders.get(account.name)
        if waiting is not None:
            self.orders.put(account.name, replace(waiting))  # what is on its way may be without
        elif known is not None and known.node == self._node.name:
            self.doubt(account)

    async def _send(self, name: str, order: Order) -> None:
        """Tell the store of a decision, unless another one stands there; raises AwayError."""
        now = self._seconds()
        decision = self._decision(name, order, now)
        writes: list[Write] = []
        if decision is not None:
            told = await self._node.store.command("HGET", self._node.key("locks"), self._node.field(name))
            theirs = self.decided(told)
            now = self._seconds()
            if not stands(decision, theirs, self._clock.at(now)):
                if theirs is not None and self.orders.get(name) is order:
                    self.adopt(theirs, now)
                decision = None
            elif self.orders.get(name) is not order:
                return  # something else was decided meanwhile
        if order.reset and order.what != "unlock":
            told = Decision(name, order.decided, self._node.name, order.by, order.uid, None).text()
            writes += [
                partial(self._node.store.call, self._node.calls.reset(name)),
                partial(self._node.tell, "reset", told),
            ]
        if decision is not None:
            writes += self._writes(decision, name, now)
        await all_of(write() for write in writes)
        if decision is not None and decision.lock is None:
            self._remember(decision)
        elif decision is not None:
            node = self.known[name].node if name in self.known else self._node.name
            self.known[name] = Known(decision.decided, node, hash(decision.text()), self.round)

    def _decision(self, name: str, order: Order, now: float) -> Decision | None:
        """Return what is to be told; None: nothing more than that the counts are forgotten."""
        if order.what == "unlock":
            self.known.pop(name, None)
            return Decision(name, order.decided, self._node.name, order.by, order.uid, None)
        account = self._policy.locks.peek(name, now)
        if order.what == "reset" or account is None or account.lock is None:
            return None
        known = self.known.get(name)
        node = self._node.name if known is None else known.node
        return locked(account, account.lock, order.decided, node, self._clock.span(now), now)

    def _writes(self, decision: Decision, name: str, now: float) -> list[Write]:
        """Return what writes a decision: to the account's own key, to the index, and as news."""
        node, text = self._node, decision.text()
        if decision.lock is None:
            own, what = node.calls.unlock(name), "unlock"
        else:
            until = decision.lock.until
            own = node.calls.lock(name, text, None if until is None else until - self._clock.at(now))
            what = "lock"
        index = partial(node.store.command, "HSET", node.key("locks"), node.field(name), text)
        return [partial(node.store.call, own), index, partial(node.tell, what, text)]


def _lock_fields(lock: Lock) -> dict[str, object]:
    return {
        "by": lock.by,
        "uid": lock.uid,
        "limit": lock.limit,
        "count": lock.count,
        "reason": lock.reason,
        "until": "unlocked" if lock.until is None or isinf(lock.ends) else utc(lock.until),
        "action": lock.verdict.word,
    }
