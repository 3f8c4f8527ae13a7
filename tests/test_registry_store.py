"""Locks, allowances and questions of nodes that share a real store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from policyd.limits import Limit
from policyd.resync import PIECE
from policyd.shared_calls import Target
from tests.allowing import allow, maximum
from tests.asking import ANNA, BERT, limit
from tests.linking import Linked, Turned
from tests.members import Sharer
from tests.stores import Store, running

TEN = limit("messages", 10, lock="until-unlocked")
OWN = "policyd:{anna@example.com}:l"


class Real(Sharer):
    """A node with a link to a real store, on a reactor that the test turns."""

    def __init__(self, turned: Turned, store: Store, name: str, *limits: Limit) -> None:
        self.linked = Linked(turned, f"redis://127.0.0.1:{store.port}/0")
        super().__init__(turned.reactor, self.linked.link, name, *limits, wall_offset=0.0)
        self.link.on_here = self.resync.look
        self.link.subscribe(self.channels, self.heard, self.resync.look)
        self.link.start()
        self._tick()

    def settle(self, user: str, messages: int) -> None:
        """Have the store, and this node, count messages of an account."""
        account = self.policy.accounts.get(user, self.now)
        for _ in range(messages):
            self.link.call(self.node.calls.settle(user, account.limits, self.new_instance().encode(), Target(1, 1)))
        self.send(messages, user=user)

    def _tick(self) -> None:
        self.nodes.tick()
        self.resync.tick()
        self.clock.callLater(1.0, self._tick)


class Cluster:
    """Nodes of one store."""

    def __init__(self, turned: Turned, store: Store) -> None:
        self.turned = turned
        self.store = store
        self.nodes: list[Real] = []

    def add(self, *limits: Limit) -> Real:
        """Add a node, and wait until all see it."""
        node = Real(self.turned, self.store, f"mail{len(self.nodes) + 1}", *limits)
        self.nodes.append(node)
        self.turned.until(lambda: all(each.nodes.now() == len(self.nodes) for each in self.nodes))
        return node

    def within(self, seconds: float, condition: Callable[[], object]) -> None:
        """Look that something becomes true in time."""
        began = time.monotonic()
        self.turned.until(condition)
        assert time.monotonic() - began < seconds

    def call(self, node: Real, method: str, path: str, **values: Any) -> Any:
        """Return what a call of the control socket gives."""
        done = node.asked(method, path, **values)
        self.turned.until(lambda: done)
        return done[0]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """Run one store for all tests."""
    with running() as found:
        yield found


@pytest.fixture
def cluster(store: Store) -> Iterator[Cluster]:
    """Have a store without data, and no nodes yet."""
    store.forget()
    with ExitStack() as ends:
        turned = Turned()
        ends.callback(turned.end)
        found = Cluster(turned, store)
        ends.callback(lambda: [node.link.stop() for node in found.nodes])
        yield found
        assert [node.bugs for node in found.nodes] == [[] for _ in found.nodes]
        assert [node.registry.malformed + node.resync.malformed for node in found.nodes] == [0 for _ in found.nodes]


def test_a_lock_and_an_unlock_hold_on_the_other_node_within_a_second(cluster: Cluster) -> None:
    """What is locked on one node is on the other, and in the store; so it is with what is freed there."""
    one, other = cluster.add(TEN), cluster.add(TEN)
    one.send(11)
    cluster.within(1.0, other.locked)
    assert other.account()["lock"] == one.account()["lock"]
    cluster.turned.until(lambda: not len(one.registry.orders))
    own = cluster.store.cli("GET", OWN)
    assert own == cluster.store.cli("HGET", "policyd:locks", ANNA)
    assert isinstance(own, bytes)
    assert json.loads(own)["node"] == "mail1"
    other.unlock()
    cluster.within(1.0, lambda: not one.locked())
    cluster.turned.until(lambda: not len(other.registry.orders))
    assert cluster.store.cli("GET", OWN) is None


def test_a_lock_for_a_time_leaves_the_store_by_itself(cluster: Cluster) -> None:
    """The key of a lock that ends is given the time that is left."""
    one = cluster.add()
    one.lock(seconds=100.0)
    cluster.turned.until(lambda: not len(one.registry.orders))
    left = cluster.store.cli("PTTL", OWN)
    assert isinstance(left, int)
    assert 90_000 < left <= 100_000


def test_allowances_hold_on_the_other_node(cluster: Cluster) -> None:
    """What is allowed on one node is so on the other; one that comes later learns of it."""
    one, other = cluster.add(TEN), cluster.add(TEN)
    allow(one, 50)
    cluster.within(1.0, lambda: maximum(other) == 50)
    late = cluster.add(TEN)
    cluster.within(2.0, lambda: maximum(late) == 50)


def test_decisions_wait_for_a_store_that_hangs(cluster: Cluster) -> None:
    """What is locked and freed while the store hangs is told within five seconds of its return."""
    one, other = cluster.add(), cluster.add()
    one.lock(user=BERT)
    cluster.turned.until(lambda: other.locked(BERT))
    cluster.store.stop()
    try:
        one.lock()
        one.unlock(BERT)
        cluster.turned.until(lambda: not one.link.here)
        assert cluster.call(one, "POST", "/lock", account="carl@example.com", reason="spam")["shared"] is False
    finally:
        cluster.store.cont()
    cluster.within(5.0, lambda: other.locked() and other.locked("carl@example.com") and not other.locked(BERT))


def test_a_store_that_comes_back_empty_is_told_all(cluster: Cluster) -> None:
    """Locks outlive a store that has lost its data, and a node that comes then learns of them."""
    one, other = cluster.add(), cluster.add()
    one.lock()
    cluster.turned.until(other.locked)
    cluster.store.restart(keep=False)
    cluster.turned.until(lambda: cluster.store.cli("GET", OWN))
    assert one.locked()
    assert other.locked()
    late = cluster.add()
    cluster.within(5.0, late.locked)


def test_something_else_under_the_key_of_one_lock_hides_no_lock(cluster: Cluster) -> None:
    """A node that comes then learns of all locks, of that one from the index."""
    one = cluster.add()
    users = (ANNA, BERT, "carl@example.com")
    for user in users:
        one.lock(user)
    cluster.turned.until(lambda: not len(one.registry.orders))
    cluster.store.cli("DEL", OWN)
    cluster.store.cli("HSET", OWN, "a", "lock?")
    late = cluster.add()
    cluster.within(5.0, lambda: all(late.locked(user) for user in users))


def test_a_node_takes_over_ten_thousand_locks(cluster: Cluster) -> None:
    """A node that comes to many locks has all of them in seconds, some in each turn."""
    one = cluster.add()
    for number in range(10_000):
        one.lock(f"{number}@example.com")
    cluster.turned.until(lambda: not len(one.registry.orders), patience=60)
    late = Real(cluster.turned, cluster.store, "mail2")
    cluster.nodes.append(late)
    most, locked, ends = 0, 0, time.monotonic() + 60
    while locked < 10_000:
        assert time.monotonic() < ends
        cluster.turned.reactor.iterate(0.01)
        now = len(late.policy.accounts.locked)
        most, locked = max(most, now - locked), now
    assert most <= 2 * PIECE
    assert not len(late.registry.orders)


def test_the_clusters_top_senders_are_shown_by_a_node_without_clients(cluster: Cluster) -> None:
    """`policyctl accounts` and `status ACCOUNT` on one node show what the others have counted."""
    one, other, idle = (cluster.add(limit("messages", 500)) for _ in range(3))
    one.settle(ANNA, 30)
    other.settle(ANNA, 20)
    other.settle(BERT, 40)
    found = cluster.call(idle, "GET", "/accounts", n=1)
    assert [(shown["account"], shown["limits"][0]["count"]) for shown in found] == [(ANNA, 50)]
    account = cluster.call(idle, "GET", "/status", account=ANNA)
    assert (account["seen"], account["limits"][0]["count"], account["cluster"]["silent"]) == (True, 50, [])
    assert cluster.call(idle, "POST", "/reset", account=ANNA)["seen"] is True
    assert cluster.call(one, "GET", "/status", account=ANNA)["limits"][0]["count"] == 0
    status = cluster.call(idle, "GET", "/status")["cluster"]
    assert [node["node"] for node in status["nodes"]] == ["mail1", "mail2", "mail3"]
