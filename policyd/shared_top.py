"""Who sends most in the whole cluster, though each node knows what came through itself alone.

Each node lists those that send most through it. An account's count in the store is at most the sum of its counts on the
nodes, so one that is in no list has at most the sum of the lists' last counts: as soon as so many in the lists have as
much in the store, nobody is missed. Until then the nodes are asked for longer lists. Of those that have used a share
of a maximum, each has used its part of that share on one node at least: of those all are listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from policyd.accounts import Account
from policyd.gathering import Gathering, Rows, shaped
from policyd.outbox import all_of
from policyd.shared_answers import MAX_DEPTH, MAX_NAMES, sent
from policyd.shared_calls import Shown, shown
from policyd.shared_node import Node
from policyd.survey import Json, limits_shown

LEAST = 20
"""Accounts that each node lists at first, at least."""

DEEPER = 4
"""How many times as many they list, where that does not suffice."""

AT_ONCE = 50
"""Accounts that the store is asked about at a time."""


class Top:
    """The cluster's accounts, by what they send."""

    def __init__(self, node: Node, gathering: Gathering) -> None:
        self._node = node
        self._gathering = gathering

    async def find(self, sort: str, most: int, over: float | None) -> list[Json]:
        """Return the `most` accounts that send most, of those whose count is at least `over` percent of a maximum.

        The counts are the store's. Raises AwayError.
        """
        if not most:
            return []
        depth, known = min(max(most, LEAST), MAX_DEPTH), dict[str, Json]()
        while True:
            lists = await self._lists(sort, depth, over)
            new = {row[0] for rows in lists for row in rows} - known.keys()
            known.update({found["account"]: found for found in await self._shown(new)})
            if sort == "refused":
                await self._tally(known)
            listed = [found for found in known.values() if over is None or _share(found) >= over]
            ranked = sorted(listed, key=lambda found: (-sent(found, sort), -found["refused"], found["account"]))
            full = [rows[-1][1] for rows in lists if len(rows) >= depth]
            enough = over is None and len(ranked) >= most and sent(ranked[most - 1], sort) >= sum(full)
            if not full or depth >= MAX_DEPTH or enough:
                break
            depth = min(depth * DEEPER, MAX_DEPTH)
        chosen = ranked[:most]
        if sort != "refused":
            await self._tally({found["account"]: found for found in chosen})
        return chosen

    async def shown(self, account: Account) -> tuple[Shown, list[Json]]:
        """Return what the store has of an account, and the account's limits with the store's counts."""
        ((reply),) = await all_of([self._node.store.call(self._node.calls.show(account.name, account.limits))])
        found = shown(reply)
        return found, self._limits(account, found)

    async def _lists(self, sort: str, depth: int, over: float | None) -> list[Rows]:
        number = len(self._gathering.expected())
        part = None if over is None else over / number
        gathered = await self._gathering.ask("top", {"sort": sort, "most": depth, "over": part})
        return [shaped(rows, str, int) for rows in gathered.rows.values()]

    async def _shown(self, names: Iterable[str]) -> list[Json]:
        """Return accounts as the desk shows them, with the store's counts."""
        found, left = [], iter(names)
        while some := list(islice(left, AT_ONCE)):
            now = self._node.reactor.seconds()
            accounts = [self._known(name, now) for name in some]
            calls = [self._node.calls.show(account.name, account.limits) for account in accounts]
            replies = await all_of(map(self._node.store.call, calls))
            found += [
                {
                    "account": account.name,
                    "locked": account.lock is not None,
                    "limits": self._limits(account, shown(reply)),
                    "refused": 0,
                    "held": 0,
                }
                for account, reply in zip(accounts, replies, strict=True)
            ]
        return found

    def _known(self, name: str, now: float) -> Account:
        return self._node.policy.locks.peek(name, now) or self._node.policy.accounts.new(name, now)

    def _limits(self, account: Account, found: Shown) -> list[Json]:
        limits = limits_shown(account, self._node.policy.allowing, self._node.reactor.seconds())
        for limit, window in zip(limits, found.windows, strict=False):
            if window is not None:
                count, resets_in = window
                limit["count"] = count
                limit["resets_in"] = None if resets_in is None else round(resets_in, 3)
        return limits

    async def _tally(self, known: dict[str, Json]) -> None:
        """Sum up what all nodes have refused and held of accounts."""
        names = list(known)
        for name in names:
            known[name].update(refused=0, held=0)
        for start in range(0, len(names), MAX_NAMES):
            gathered = await self._gathering.ask("tallies", {"names": names[start : start + MAX_NAMES]})
            for rows in gathered.rows.values():
                for name, refused, held in shaped(rows, str, int, int):
                    if name in known:
                        known[name]["refused"] += refused
                        known[name]["held"] += held


def _share(found: Json) -> float:
    """Return how much of a maximum is used, in percent: of the one that is nearest."""
    limits = found["limits"]
    return max((100 * limit["count"] / limit["max"] for limit in limits if limit["count"] and limit["max"]), default=0)
