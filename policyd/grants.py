"""The allowances of all nodes: what is allowed here goes to the store, and what is allowed elsewhere is in force here.

Each node has all of them in its own table, and in its own database. Of two decisions the later one stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from policyd.allowances import Allowance
from policyd.decisions import Grant, grant_of, granted, value_of
from policyd.locks import utc
from policyd.outbox import MAX_REMEMBERED, Outbox, all_of
from policyd.records import restore_allowance
from policyd.shared_node import Node

WAITS = "allowance-order"
"""The kind of fact that is an order which the store has still to be told of."""

Key = tuple[str, str]
"""An account, and a limit."""


@dataclass(frozen=True, slots=True)
class _Order:
    """Something that was decided here."""

    decided: float
    by: str
    uid: int | None


@dataclass(slots=True)
class Known:
    """An allowance that is in force here, and that the store has."""

    decided: float
    text: int
    """A hash of the store's text of it."""
    seen: int
    """The number of the look at the store at which it was seen last."""


class Grants:
    """The allowances."""

    def __init__(self, node: Node) -> None:
        self.malformed = 0
        self.round = 0
        self.known: dict[Key, Known] = {}
        self.orders: Outbox[Key, _Order] = Outbox(self._send, lambda: node.store.here, node.bug, self._keep)
        self._taken: dict[Key, Grant] = {}
        """Allowances that were taken back of late, on whichever node."""
        self._node = node
        self._policy = node.policy
        self._clock = node.clock
        self._seconds = node.reactor.seconds

    def noted(self, event: str, fields: Mapping[str, object]) -> None:
        """Take in an event of this node's."""
        key, uid = (str(fields.get("account")), str(fields.get("limit"))), fields.get("uid")
        if event in ("allow", "disallow"):
            self.known.pop(key, None)
            decided = self._clock.at(self._seconds())
            self.orders.put(key, _Order(decided, str(fields["by"]), uid if isinstance(uid, int) else None))
        elif event == "allowance-over":
            self.known.pop(key, None)
            self.orders.drop(key)

    def restored(self) -> None:
        """Go on with what was taken back, and waited to be told when this node ended."""
        for text in self._node.facts.of(WAITS):
            account, limit, *told = json.loads(text)
            if (account, limit) not in self.orders:
                self.orders.put((account, limit), _Order(*told))

    def _keep(self, key: Key, order: _Order | None) -> bool:
        """Keep over a restart that an allowance was taken back; one that is given is in the table of them."""
        kept = order is not None and self._policy.accounts.allowances.get(*key) is None
        text = json.dumps([*key, *astuple(order)]) if order is not None and kept else None
        self._node.facts.put(WAITS, " ".join(key), text)
        return kept

    def news(self, value: Mapping[str, Any]) -> None:
        """Take in what another node tells; raises ValueError."""
        grant = grant_of(value)
        self.compare(grant, grant.text(), self._seconds())

    def granted(self, text: object) -> Grant | None:
        """Return what a text of the store's says; None: no policyd can have written it, or there is none."""
        if text is None:
            return None
        try:
            return grant_of(value_of(text))
        except ValueError:
            self.malformed += 1
            return None

    def compare(self, grant: Grant, text: str, now: float) -> None:
        """Put in force what another node has decided, unless what was decided here is later: then tell that again.

        Two nodes may write at the same moment, so that neither sees what the other writes.
        """
        key = (grant.account, grant.limit)
        known, mine = self.known.get(key), self._policy.accounts.allowances.get(*key)
        if key in self.orders:
            return  # what stands comes of sending that
        taken = self._taken.get(key) if mine is None else None
        if known is not None and known.text == hash(text):
            known.seen = self.round
        elif mine is not None and (mine.since if known is None else known.decided) > grant.decided:
            self.doubt(mine)
        elif taken is not None and taken.decided > grant.decided:
            self.orders.put(key, _Order(taken.decided, taken.by, taken.uid))
        else:
            self.adopt(grant, text, now)

    def unseen(self) -> Iterator[None]:
        """Doubt those in force here that were not seen at this look at the store: some at each step."""
        yield from self._doubt_all(lambda key: (known := self.known.get(key)) is None or known.seen != self.round)

    def is_over(self, grant: Grant, now: float) -> bool:
        """Tell whether what the store has says nothing any more."""
        return grant.is_over(self._clock.at(now), now + self._clock.wall_ahead(now))

    def doubt(self, allowance: Allowance) -> None:
        """Have an allowance compared with what the store knows of it: it is taken here, or written there again."""
        key = (allowance.account, allowance.limit)
        if key not in self.orders:
            known = self.known.get(key)
            decided = allowance.since if known is None else known.decided
            self.orders.put(key, _Order(decided, allowance.by, allowance.uid))

    def lost(self) -> Iterator[None]:
        """Have all written again, for the store has lost its data: some at each step."""
        yield from self._doubt_all(lambda _: True)

    def _doubt_all(self, which: Callable[[Key], bool]) -> Iterator[None]:
        table = self._policy.accounts.allowances
        for account in list(table.accounts):
            for limit, allowance in list(table.accounts.get(account, {}).items()):
                if which((account, limit)):
                    self.doubt(allowance)
            yield

    def adopt(self, grant: Grant, text: str, now: float) -> None:
        """Put in force here what stands in the store."""
        key, table = (grant.account, grant.limit), self._policy.accounts.allowances
        before = table.get(*key)
        if grant.allowance is None or self.is_over(grant, now):
            self.known.pop(key, None)
            self._remember(grant)
            if before is not None and table.take(*key):
                self._policy.accounts.adopt_known(grant.account)
                self._tell("disallow", before, grant, now)
            return
        span, ahead = self._clock.span(now), self._clock.wall_ahead(now)
        allowance = restore_allowance(grant.allowance, span, now, ahead)
        if not table.has_room(*key):
            return
        self.known[key] = Known(grant.decided, hash(text), self.round)
        if before is not None and _same(before, allowance):
            return
        table.put(allowance)
        self._policy.accounts.adopt_known(grant.account)
        self._tell("allow", allowance, grant, now)

    def _remember(self, taken: Grant) -> None:
        """Note that an allowance was taken back, to know older news of it from newer ones."""
        key = (taken.account, taken.limit)
        self._taken.pop(key, None)
        self._taken[key] = taken
        if len(self._taken) > MAX_REMEMBERED:
            del self._taken[next(iter(self._taken))]

    def _tell(self, event: str, allowance: Allowance, grant: Grant, now: float) -> None:
        fields = {
            "account": allowance.account,
            "by": grant.by,
            "uid": grant.uid,
            "limit": allowance.limit,
            "max": "unlimited" if allowance.max is None else allowance.max,
            "until": utc(self._policy.allowing.until(allowance, now)),
            "reason": allowance.reason,
            "node": grant.node,
        }
        self._node.log(event, fields)

    async def _send(self, key: Key, order: _Order) -> None:
        """Tell the store of a decision, unless a later one stands there; raises AwayError."""
        place = (self._node.key("allowances"), f"{self._node.field(key[0])} {key[1]}")
        told = await self._node.store.command("HGET", *place)
        theirs = self.granted(told)
        if self.orders.get(key) is not order:
            return  # something else was decided meanwhile
        now = self._seconds()
        if theirs is not None and theirs.decided > order.decided:
            self.adopt(theirs, theirs.text(), now)
            return
        allowance = self._policy.accounts.allowances.get(*key)
        name, span = self._node.name, self._clock.span(now)
        if allowance is None:
            grant, what = Grant(*key, order.decided, name, order.by, order.uid, None), "disallow"
        else:
            grant, what = granted(allowance, order.decided, name, span, now), "allow"
        text = grant.text()
        await all_of([self._node.store.command("HSET", *place, text), self._node.tell(what, text)])
        if allowance is None:
            self._remember(grant)
        else:
            self.known[key] = Known(order.decided, hash(text), self.round)


def _same(before: Allowance, other: Allowance) -> bool:
    """Tell whether two allowances are the same, though their ends were reckoned twice."""
    return (before.kind, before.max, before.since, before.by) == (other.kind, other.max, other.since, other.by)
