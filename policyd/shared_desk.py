"""The calls of the control socket on a node that shares a store: what they give is the whole cluster's.

While the store is away each call answers from this node, and says so. Keys are added to what one daemon alone gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from heapq import merge
from itertools import chain, islice, starmap
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as LateError

from policyd.accounts import MAX_CLIENTS
from policyd.calls import MAX_ACCOUNTS, MESSAGES, Api, Call, Find, NotifyDesk, Reload, list_text
from policyd.decisions import LATEST
from policyd.desk import Desk
from policyd.gathering import Gathered, Gathering
from policyd.grants import Grants
from policyd.history import Message
from policyd.locks import utc
from policyd.nodes import Nodes
from policyd.outbox import Outbox
from policyd.records import TALLIES
from policyd.registry import Registry
from policyd.resync import Resync
from policyd.shared_answers import MAX_DEPTH, Answers
from policyd.shared_calls import AwayError
from policyd.shared_node import Node
from policyd.shared_top import Top
from policyd.survey import Json
from policyd.turns import Turns

TOLD = 2.0
"""Seconds for which an order waits for the store to know of it."""

_CLIENT = (str, float)


class Unshared(NamedTuple):
    """Messages that the store has not been told of."""

    waiting: int
    lost: int


class Cluster(NamedTuple):
    """What the desk of a node knows of the cluster."""

    node: Node
    registry: Registry
    grants: Grants
    resync: Resync
    nodes: Nodes
    url: str
    """Where the store is, without a password."""
    problem: Callable[[], str]
    """Returns what is wrong with the store, in a sentence; "" where nothing is."""
    unshared: Callable[[], Unshared]


class SharedApi(Api):
    """The calls."""

    def __init__(
        self, desk: Desk, reload: Reload, find: Find | None, notify: NotifyDesk | None, cluster: Cluster
    ) -> None:
        super().__init__(desk, reload, find, notify)
        self.turned: float | None = None
        """When the store came, or went, last."""
        node = cluster.node
        answers = Answers(node.policy, find, node.reactor.seconds, desk.wall)
        self.gathering = Gathering(node, cluster.nodes.fresh, answers.kinds)
        self._cluster = cluster
        self._node = node
        self._top = Top(node, self.gathering)
        self._turns = Turns(node.reactor)

    def _status(self, call: Call) -> Any:
        if "account" in call.values:
            return self._account(call)
        value = self._desk.status(call.now)
        return {**value, "problems": [*value["problems"], *self._problems()], "cluster": self._shown()}

    async def _account(self, call: Call) -> Json:
        """Tell of an account what the store has, and what all nodes have seen of it."""
        desk, node = self._desk, self._node
        name = desk.allowances.name(call.text("account"), call.now)
        account = node.policy.locks.peek(name, call.now) or node.policy.accounts.new(name, call.now)
        try:
            found, limits = await self._top.shown(account)
        except AwayError:
            return {**desk.account(name, call.now), "cluster": self._answered(())}
        if found.lock is not None or account.lock is not None:
            self._cluster.registry.mirror(account, found.lock, node.reactor.seconds())
        gathered = await self.gathering.ask("account", {"account": name})
        value = desk.account(name, call.now)
        return {**value, "limits": limits, **_summed(gathered), "cluster": self._answered(gathered.silent)}

    def _accounts(self, call: Call) -> Any:
        local = super()._accounts(call)
        if not self._node.store.here:
            return local
        return self._all_accounts(call, local)

    async def _all_accounts(self, call: Call, local: Iterator[str]) -> Iterator[str]:
        most = min(call.whole_number("n", 20, MAX_ACCOUNTS), MAX_DEPTH)
        try:
            sort = str(call.values.get("sort", "messages"))
            found = await self._top.find(sort, most, call.number("over", None, 1e6) or None)
        except AwayError:
            return local
        return list_text(_parts(found))

    async def _history(self, call: Call) -> Iterator[str]:
        wanted, most = self._wanted(call)
        if wanted.account is None or call.values.get("local"):
            return await super()._history(call)  # the queue ids of other machines mean nothing here
        gathered = await self.gathering.ask("history", {**wanted._asdict(), "queue_ids": []})
        if not (gathered.silent or any(gathered.rows.values())):
            await super()._history(call)  # it says where no history is kept
        return self._history_text(gathered, most)

    def _history_text(self, gathered: Gathered, most: int) -> Iterator[str]:
        """Yield the messages of all nodes, the latest first, some in each piece."""
        all_of_them = merge(*starmap(_messages, gathered.rows.items()), key=_at, reverse=True)
        shown = islice(all_of_them, most)
        yield '{"messages": '
        yield from list_text(iter(lambda: list(islice(shown, MESSAGES)), []))
        more = json.dumps(next(all_of_them, None) is not None)
        yield f', "more": {more}, "cluster": {json.dumps(self._answered(gathered.silent))}}}'

    def _lock(self, call: Call) -> Any:
        value = super()._lock(call)
        return self._told(value, self._cluster.registry.orders, [value["account"]])

    def _allow(self, call: Call) -> Any:
        value = super()._allow(call)
        return self._told(value, self._cluster.grants.orders, [(value["account"], value["limit"])])

    def _disallow(self, call: Call) -> Any:
        value = super()._disallow(call)
        keys = [(value["account"], taken["limit"]) for taken in value["disallowed"]]
        return self._told(value, self._cluster.grants.orders, keys)

    def _unlock(self, call: Call) -> Any:
        return self._unlocked(super()._unlock(call))

    async def _unlocked(self, unlocking: Iterator[str]) -> Iterator[str]:
        *texts, last = await self._turns.take(unlocking, order=True)
        names = json.loads(b"".join([*texts, last]))["unlocked"]
        shared = json.dumps(await self._sent(self._cluster.registry.orders, set(names)))
        return chain([text.decode() for text in texts], [f'{last.decode()[:-1]}, "shared": {shared}}}'])

    def _reset(self, call: Call) -> Any:
        return self._reset_all(call)

    async def _reset_all(self, call: Call) -> Json:
        """Forget an account's counts, on whichever node they were counted."""
        node, registry = self._node, self._cluster.registry
        name = self._desk.known(call.text("account"), call.now)
        known = node.policy.locks.peek(name, call.now)
        try:
            found, _ = await self._top.shown(known or node.policy.accounts.new(name, call.now))
            counted = any(window and window[0] for window in found.windows)
        except AwayError:
            counted = False
        value = super()._reset(call)
        if known is None:  # then it is another node that has seen it
            registry.order("reset", name, call.caller.name, call.caller.uid)
            node.log("reset", {"account": name, "by": call.caller.name, "uid": call.caller.uid})
        return {**value, "seen": value["seen"] or counted, "shared": await self._sent(registry.orders, [name])}

    async def _told(self, value: Json, orders: Outbox[Any, Any], keys: Collection[Any]) -> Json:
        """Return an order's answer with whether the store knows of it."""
        return {**value, "shared": await self._sent(orders, keys)}

    async def _sent(self, orders: Outbox[Any, Any], keys: Collection[Any]) -> bool:
        sent: Deferred[bool] = orders.sent(keys).addTimeout(TOLD, self._node.reactor)
        try:
            return await sent
        except LateError:
            return False

    def _problems(self) -> list[str]:
        """Return what a person should know of the cluster."""
        cluster = self._cluster
        found = [text for text in (cluster.problem(), cluster.nodes.problem()) if text]
        if lost := cluster.registry.orders.lost + cluster.grants.orders.lost:
            found.append(f"{lost} orders were too many to wait for the store: the other nodes do not know of them")
        return found

    def _shown(self) -> Json:
        cluster, node = self._cluster, self._node
        tables = (cluster.registry, cluster.grants, cluster.resync, cluster.nodes, self.gathering)
        return {
            "store": cluster.url,
            "prefix": node.prefix,
            "node": node.name,
            "here": node.store.here,
            "since": None if self.turned is None else utc(self._desk.wall(self.turned)),
            "problem": cluster.problem() or None,
            "unshared": cluster.unshared()._asdict(),
            "orders": {"waiting": len(cluster.registry.orders) + len(cluster.grants.orders)},
            "malformed": sum(table.malformed for table in tables),
            "nodes": cluster.nodes.shown(),
        }

    def _answered(self, silent: tuple[str, ...]) -> Json:
        """Return who has answered, and who has not."""
        node, here = self._node, self._node.store.here
        names = self.gathering.expected() if here else [node.name]
        return {
            "node": node.name,
            "here": here,
            "answered": [name for name in names if name not in silent],
            "silent": list(silent),
        }


def _summed(gathered: Gathered) -> Json:
    """Return what the nodes have seen of an account, together."""
    rows = [row for rows in gathered.rows.values() for row in rows if isinstance(row, dict)]
    tallies = {name: sum(row[name] for row in rows if type(row.get(name)) is int) for name in TALLIES}
    latest: dict[str, float] = {}
    for row in rows:
        for address, last in _clients(row.get("clients")):
            latest[address] = max(last, latest.get(address, 0.0))
    clients = sorted(latest.items(), key=lambda client: client[1], reverse=True)[:MAX_CLIENTS]
    shown = [{"address": address, "last": utc(last)} for address, last in clients]
    return {"seen": any(row.get("seen") is True for row in rows), **tallies, "clients": shown}


def _clients(value: Any) -> Iterator[tuple[str, float]]:
    for pair in value if isinstance(value, list) else ():
        if isinstance(pair, list) and tuple(map(type, pair)) == _CLIENT and 0 <= pair[1] <= LATEST:
            yield pair[0], pair[1]


def _messages(node: str, rows: list[Any]) -> Iterator[Json]:
    """Yield what is a message of the history."""
    for row in rows:
        if isinstance(row, dict) and row.keys() >= set(Message._fields):
            yield {**{name: row[name] for name in Message._fields}, "node": node}


def _at(message: Json) -> str:
    return str(message["at"])


def _parts(values: list[Json]) -> Iterator[list[Json]]:
    return (values[start : start + MESSAGES] for start in range(0, len(values), MESSAGES))
