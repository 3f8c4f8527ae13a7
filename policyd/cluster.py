"""One node of a cluster: joins what lets several policyds share their counts, locks and allowances through a store.

This room is loaded only where the config names a store.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha1
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as LateError
from twisted.internet.interfaces import IReactorTime

from policyd.away_rules import AwayRules
from policyd.calls import Find, NotifyDesk, Reload
from policyd.catching_up import Store
from policyd.desk import Desk
from policyd.facts import Facts
from policyd.grants import Grants
from policyd.limits import Rules
from policyd.locks import Report
from policyd.nodes import Nodes
from policyd.policy import Policy
from policyd.registry import Registry
from policyd.resync import Resync
from policyd.sections_cluster import ClusterConfig
from policyd.shared_calls import SCRIPT, AwayError, Calls, outcome
from policyd.shared_desk import Cluster as Known
from policyd.shared_desk import SharedApi, Unshared
from policyd.shared_link import Link
from policyd.shared_node import Node, StoreClock
from policyd.shared_server import SharedFactory, SharedProtocol
from policyd.shared_store import Dial
from policyd.sharing import Sharing
from policyd.supplies import SUPPLIES
from policyd.transactions import Connection
from policyd.verdict import PASS, Verdict

ORDERS = 2.0
"""Seconds for which a store that is back is told of orders before it is asked about mail."""


GENERATION = "generation"
"""The kind of fact that names the life of the store that was told all that is known here."""


class Parts(NamedTuple):
    """What the daemon hands in."""

    policy: Policy
    reactor: IReactorTime
    log: Report
    """Writes a line to the log."""
    bug: Callable[[], None]
    """Tells of an exception that is being handled."""
    to_wall: Callable[[float], float]
    durable: Callable[[], Deferred[None] | None]
    host: str
    told: Callable[[], dict[str, Any]]
    """Returns what the other nodes are told of this one: its version, where it listens, its database."""
    facts: Facts
    """What is known again after a restart."""


class Cluster:
    """This node."""

    def __init__(self, config: ClusterConfig, parts: Parts) -> None:
        name, self._report, self._reactor = config.node or parts.host, parts.log, parts.reactor
        self._policy, self._bug = parts.policy, parts.bug
        file = config.password_file
        dial = Dial(parts.reactor, config.store, lambda: None if file is None else SUPPLIES.password(file))
        calls = Calls(config.prefix, name)
        self._link = link = Link(parts.reactor, dial, config.patience, calls.evaluated, config.prefix)
        link.on_here, link.on_away, link.on_wrong = self._on_here, self._on_away, self._on_wrong
        run = secrets.token_hex(8)
        self._node = Node(
            config.prefix,
            name,
            run,
            parts.policy,
            link,
            calls,
            StoreClock(parts.to_wall),
            parts.reactor,
            parts.log,
            parts.bug,
            parts.facts,
            config.store.db,
        )
        parts.facts.on_restored = self._restored
        self._generation: str | None = None
        """What names this life of the store; None: it is not known yet."""
        self._known = False
        """Whether it has been asked for since the store is here."""
        self._looking = False
        reactor = parts.reactor
        store = Store(
            calls, link.call, self._is_here, outcome, lambda then: reactor.callLater(0, then), reactor.seconds
        )
        self._registry = Registry(self._node, self._forgot)
        self._grants = Grants(self._node)
        self._resync = Resync(self._node, self._registry, self._grants)
        script = sha1(SCRIPT).hexdigest()  # noqa: S324 -- it is how the store names a script
        started = parts.to_wall(parts.reactor.seconds())
        self._nodes = Nodes(self._node, lambda: {**parts.told(), "script": script[:12], "started": started})
        self.sharing = Sharing(
            parts.policy, store, self._registry.mirror, parts.log, run.encode(), self._bug_in_a_verdict
        )
        self._rules = AwayRules(
            parts.policy.accounts.rules, self._put_rules, self._nodes.now, share=config.when_away == "share"
        )
        self.factory = SharedFactory(parts.policy, parts.reactor, parts.log, parts.durable, self.sharing)
        self._url = config.store.url
        self._api: SharedApi | None = None

    def api(self, desk: Desk, reload: Reload, find: Find | None, notify: NotifyDesk | None) -> SharedApi:
        """Return the calls of the control socket."""
        waiting = self.sharing.catching_up.waiting
        known = Known(
            self._node,
            self._registry,
            self._grants,
            self._resync,
            self._nodes,
            self._url,
            lambda: self._link.problem,
            lambda: Unshared(len(waiting), waiting.lost),
        )
        self._api = api = SharedApi(desk, reload, find, notify, known)
        news = self._node.channel("news")

        def heard(channel: bytes, message: bytes) -> None:
            if channel == news.encode():
                self._resync.heard(message)
            else:
                api.gathering.heard(channel, message)

        self._link.subscribe([news, *api.gathering.channels], heard, self._resync.look)
        return api

    def start(self) -> None:
        """Look for the store, and stay with it."""
        self._rules.away()
        self._link.start()

    def stop(self) -> None:
        """End."""
        self._nodes.leave()
        self._link.stop()

    def noted(self, event: str, fields: Mapping[str, object]) -> bool:
        """Take in an event of this node's; tell whether it is this node that tells people of it."""
        mine = self._registry.noted(event, fields)
        self._grants.noted(event, fields)
        return mine

    def put_in_force(self, rules: Rules) -> None:
        """Go by other rules from now on."""
        self._rules.reload(rules)

    def tick(self) -> None:
        """Do what is due: once a second."""
        if self._link.here:
            self._ask_generation()
        self._note_generation()
        self._nodes.tick()
        self._resync.tick()
        self.sharing.catching_up.tick(self._connections)

    def problems(self) -> list[str]:
        """Return what a person should know."""
        return self.sharing.catching_up.problems()

    def _connections(self) -> list[Connection]:
        known = self.factory.connections
        return [protocol.connection for protocol in known if isinstance(protocol, SharedProtocol)]

    def _is_here(self) -> bool:
        return self._link.here and self._known

    def _on_here(self) -> None:
        self._report("cluster-here", {"store": self._url})
        self._turned()
        self._ask_generation()

    def _on_away(self, why: str) -> None:
        self._report("cluster-away", {"store": self._url, "reason": why})
        self._known = False
        self._turned()
        self._rules.away()

    def _on_wrong(self, why: str) -> None:
        self._report("cluster-problem", {"reason": f"wrong data: {why}"})

    def _turned(self) -> None:
        if self._api is not None:
            self._api.turned = self._reactor.seconds()

    def _ask_generation(self) -> None:
        """Find out whether the store still has what it had."""
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._look_at_generation())

    async def _look_at_generation(self) -> None:
        try:
            if not self._known:
                await self._orders_sent()
            await self._compare_generation()
        except Exception:  # the next second tries again
            self._known = False
            self._bug()
        finally:
            self._looking = False

    async def _orders_sent(self) -> None:
        """Wait until the store knows of the orders that were given while it was away, for ORDERS at the most.

        An unlock makes it forget the account's counts: with those that came after it, if it were told of them before.
        """
        sent = self._registry.orders.sent().addTimeout(ORDERS, self._reactor)
        with suppress(LateError):
            await sent

    async def _compare_generation(self) -> None:
        key = self._node.key("generation")
        try:
            await self._link.command("SET", key, secrets.token_hex(8), "NX")
            found = await self._link.command("GET", key)
        except AwayError:
            return  # it is asked again
        if not self._link.here or not isinstance(found, bytes):
            return
        generation = found.decode(errors="replace")
        was_known, self._known = self._known, True
        self._compare(self._generation or self._node.facts.get(GENERATION), generation)
        self._generation = generation
        self._note_generation()
        if not was_known:
            self._rules.here()
            self._resync.look()
            self.sharing.catching_up.came_back()

    def _note_generation(self) -> None:
        """Note for a restart which life of the store knows all that is known here."""
        if self._known and not self.sharing.catching_up.refilling:
            self._node.facts.put(GENERATION, "", self._generation)

    def _compare(self, before: str | None, found: str) -> None:
        """Have the store told again what it has lost, if it has."""
        if before not in (None, found):
            self._report(
                "cluster-problem", {"reason": "the store has lost its data: it is told again what is known here"}
            )
            self.sharing.catching_up.store_lost_data()
            self._resync.lost()

    def _restored(self, stored: Mapping[tuple[str, str], str]) -> None:
        """Go on from what the database had; where it could not be read at the start, the store may be here already."""
        if not self._known:
            self._rules.away()  # by how many nodes there were
        for orders in (self._registry, self._grants):
            orders.restored()
        if self._generation is not None:
            self._compare(stored.get((GENERATION, "")), self._generation)

    def _forgot(self, account: str) -> None:
        self.sharing.catching_up.forget(account)

    def _put_rules(self, rules: Rules) -> None:
        self._policy.accounts.rules = rules

    def _bug_in_a_verdict(self) -> Verdict:
        self._bug()
        return PASS
