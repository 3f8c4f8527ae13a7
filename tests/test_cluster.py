"""Daemons that share a real store, as smtpd and a person at a terminal see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Policyd
from tests.stores import Store
from tests.waiting import until

ANNA = "anna@example.com"
AT_ONCE = 0.15
"""Seconds within which a request is answered, whatever has become of the store: its patience and a half."""


def config(store: Store, node: str, maximum: int = 20, **cluster: str) -> dict[str, object]:
    """Return the config of a node."""
    limit = {"count": "messages", "per": "1h", "max": maximum, "action": "REJECT 5.7.1 too many"}
    url = f"redis://127.0.0.1:{store.port}/0"
    return {"limits": {"hourly": limit}, "cluster": {"url": url, "node": node, **cluster}}


@pytest.fixture
def store() -> Iterator[Store]:
    """Return a store of the test's own."""
    found = Store()
    try:
        yield found
    finally:
        found.cont()
        found.close()


@contextmanager
def nodes(store: Store, number: int = 2, maximum: int = 20, **cluster: str) -> Iterator[list[Policyd]]:
    """Start so many daemons, and wait until each sees the others."""
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(Policyd(config(store, f"mail{place}", maximum, **cluster))) for place in range(number)
        ]
        until(lambda: all(len(status(daemon)["nodes"]) == number for daemon in daemons))
        yield daemons


def status(daemon: Policyd) -> Any:
    """Return what a daemon knows of the cluster."""
    return daemon.ctl_json("status")["cluster"]


def send(daemon: Policyd, number: int) -> tuple[int, float]:
    """Send messages over a connection; return how many passed, and how long a request has taken at the most."""
    passed, longest = 0, 0.0
    connection = daemon.connect()
    for _ in range(number):
        asked: dict[str, str | int] = {"protocol_state": "DATA", "recipient": "", "recipient_count": 1}
        began = time.monotonic()
        passed += connection.ask(**asked) == "DUNNO"
        longest = max(longest, time.monotonic() - began)
    return passed, longest


def count(daemon: Policyd) -> int | None:
    """Return how many messages the whole cluster has counted."""
    return daemon.counts(ANNA)["hourly"]


def test_all_nodes_together_let_the_maximum_through(store: Store) -> None:
    """Of what six clients send at once to two nodes, just as many messages pass as the limit says."""
    with nodes(store) as daemons:
        with ThreadPoolExecutor(6) as pool:
            sent = list(pool.map(lambda place: send(daemons[place % 2], 15), range(6)))
        assert sum(passed for passed, _ in sent) == 20
        assert [count(daemon) for daemon in daemons] == [20, 20]


def test_a_store_that_hangs_keeps_nobody_waiting(store: Store) -> None:
    """While it hangs each request is answered in time from the node's own counts; then both nodes' are put together."""
    with nodes(store) as (one, two):
        assert send(one, 5)[0] + send(two, 5)[0] == 10
        store.stop()
        (passed, longest), (others, slowest) = send(one, 30), send(two, 30)
        assert max(longest, slowest) < AT_ONCE
        assert (passed, others) == (15, 15)
        assert not status(one)["here"]
        began = time.monotonic()
        store.cont()
        until(lambda: count(one) == count(two) == 40)
        assert time.monotonic() - began < 5
        assert send(one, 1)[0] == send(two, 1)[0] == 0


def test_nodes_let_through_their_share_while_the_store_hangs(store: Store) -> None:
    """Where the config says so, each node goes by a part of the maximum, as many as there were nodes."""
    with nodes(store, when_away="share") as (one, two):
        store.stop()
        assert (send(one, 30)[0], send(two, 30)[0]) == (10, 10)
        store.cont()
        until(lambda: count(one) == 20)
        until(lambda: status(two)["here"])
        assert send(two, 1)[0] == 0


@pytest.mark.parametrize("keep", [True, False])
def test_a_store_that_was_killed_counts_on(store: Store, *, keep: bool) -> None:
    """It comes back with its data or without: what passed before it went counts all the same."""
    with nodes(store) as (one, two):
        assert send(one, 8)[0] + send(two, 8)[0] == 16
        store.restart(keep=keep)
        until(lambda: status(one)["here"] and status(two)["here"])
        until(lambda: count(one) == 16)
        assert send(one, 10)[0] + send(two, 10)[0] == 4


def test_a_power_cut_loses_no_count(store: Store, tmp_path: Path) -> None:
    """All daemons are started anew, and the store without its data: what passed before counts all the same, once.

    A store that a daemon has not known yet has lost nothing.
    """
    database = {"database": str(tmp_path / "one.db")}
    with nodes(store) as (_, two), Policyd({**config(store, "mail9"), **database}) as one:
        until(lambda: status(one)["here"])
        assert send(one, 8)[0] + send(two, 4)[0] == 12
        for _ in range(2):
            one.stop()
            store.restart(keep=False)
            one.start()
            until(lambda: count(one) == 12)
        one.restart()
        until(lambda: status(one)["here"])
        assert (count(one), send(one, 20)[0]) == (12, 8)


def test_nobody_is_asked_about_twice(store: Store) -> None:
    """A request that comes again over another connection counts once, also on a node that was started anew."""
    with nodes(store) as (one, _):
        asked: dict[str, str | int] = {"protocol_state": "DATA", "recipient": "", "recipient_count": 1, "instance": "x"}
        assert [one.connect().ask(**asked) for _ in range(3)] == ["DUNNO"] * 3
        one.restart()
        until(lambda: status(one)["here"])
        assert one.connect().ask(**asked) == "DUNNO"
        assert count(one) == 1


def test_a_node_that_ends_is_gone_at_once(store: Store) -> None:
    """It takes itself off the list: nobody waits for its answers, or takes it for one that is silent."""
    with nodes(store) as (one, two):
        two.stop()
        until(lambda: [node["node"] for node in status(one)["nodes"]] == ["mail0"], 3.0)


def test_a_lock_holds_on_all_nodes(store: Store) -> None:
    """An account that is locked by hand on one node is refused by another within a second, and so it is freed."""
    with nodes(store) as (one, two):
        assert one.ctl("lock", ANNA, "--reason", "phished").returncode == 0
        until(lambda: two.ask(protocol_state="RCPT").startswith("REJECT"), 1.0)
        assert two.ctl("unlock", ANNA).returncode == 0
        until(lambda: one.ask(protocol_state="RCPT") == "DUNNO", 1.0)
