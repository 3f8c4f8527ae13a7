"""What can happen to a store while mail flows: nobody waits for it, and what counts is counted once."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import REPOSITORY, Policyd
from tests.stores import Sentinel, Store, running
from tests.waiting import until

ANNA = "anna@example.com"
BERT = "bert@example.com"

AT_ONCE = 0.15
"""Seconds within which a request is answered, whatever has become of the store: its patience and a half."""


@pytest.fixture
def store() -> Iterator[Store]:
    """Return a store of the test's own."""
    with running() as found:
        yield found


def config(url: str, node: str, maximum: int) -> dict[str, object]:
    """Return the config of a node."""
    limit = {"count": "messages", "per": "1h", "max": maximum, "action": "REJECT 5.7.1 too many"}
    return {"limits": {"hourly": limit}, "cluster": {"url": url, "node": node}}


def url_of(port: int) -> str:
    """Return where a store on this port is."""
    return f"redis://127.0.0.1:{port}/0"


@contextmanager
def nodes(urls: Sequence[str], maximum: int) -> Iterator[list[Policyd]]:
    """Start a daemon for each of these ways to the store, and wait until each sees all others."""
    with ExitStack() as stack:
        daemons = [stack.enter_context(Policyd(config(url, f"mail{place}", maximum))) for place, url in enumerate(urls)]
        until(lambda: all(len(shown(daemon)["nodes"]) == len(urls) for daemon in daemons))
        yield daemons


def shown(daemon: Policyd) -> Any:
    """Return what a daemon knows of the cluster."""
    return daemon.ctl_json("status")["cluster"]


def send(daemon: Policyd, number: int, account: str = ANNA) -> tuple[int, float]:
    """Send messages over a connection, each with a recipient; return how many passed, and the longest wait."""
    passed, longest = 0, 0.0
    connection = daemon.connect()
    for message in range(number):
        instance = f"{account}.{id(connection):x}.{message:x}"
        for asked in ({"protocol_state": "RCPT"}, {"protocol_state": "DATA", "recipient_count": 1}):
            began = time.monotonic()
            answer = connection.ask(**asked, instance=instance, sasl_username=account, sender=account)
            longest = max(longest, time.monotonic() - began)
        passed += answer == "DUNNO"
    connection.close()
    return passed, longest


def count(daemon: Policyd, account: str = ANNA) -> int | None:
    """Return how many messages the whole cluster has counted."""
    return daemon.counts(account)["hourly"]


def test_of_a_thousand_messages_through_three_servers_just_as_many_pass_as_may(store: Store) -> None:
    """Three clients at three servers at once, 500 allowed."""
    with nodes([url_of(store.port)] * 3, 500) as daemons, ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(send, daemons, (334, 333, 333)))
        assert sum(passed for passed, _ in sent) == 500
        assert [count(daemon) for daemon in daemons] == [500] * 3


def test_a_store_that_forgets_the_script_again_and_again_counts_each_message_once(store: Store) -> None:
    """SCRIPT FLUSH while mail flows: what was asked is asked once more, with the script's text."""
    with nodes([url_of(store.port)] * 2, 100) as daemons, ThreadPoolExecutor(2) as pool:
        sending = [pool.submit(send, daemon, 80) for daemon in daemons]
        while not all(sent.done() for sent in sending):
            store.cli("SCRIPT", "FLUSH")
        assert sum(sent.result()[0] for sent in sending) == 100
        assert count(daemons[0]) == 100


def test_what_passed_after_an_unlock_counts_though_the_store_was_away_for_both(store: Store) -> None:
    """The store is told of the unlock, which has it forget the account's counts, before it is told of the mail."""
    with nodes([url_of(store.port)] * 2, 20) as (one, two):
        assert send(one, 6)[0] + send(two, 6)[0] == 12
        store.stop()
        assert send(one, 4)[0] == 4
        assert one.ctl("lock", ANNA, "--reason", "phished").returncode == 0
        assert one.ctl("unlock", ANNA).returncode == 0
        assert send(one, 5)[0] == 5
        store.cont()
        until(lambda: shown(one)["here"] and not shown(one)["orders"]["waiting"])
        until(lambda: not shown(one)["unshared"]["waiting"])
        assert send(one, 1)[0] == 1
        assert count(one) == count(two) == 6


def test_a_failover_keeps_nobody_waiting_and_forgets_nothing_that_was_copied() -> None:
    """Sentinel puts the replica in the store's place; the count goes on there."""
    with running() as first, running("--replicaof", "127.0.0.1", str(first.port)) as second:
        watch = Sentinel(first)
        try:
            until(lambda: "slave0:" in str(first.cli("INFO", "replication")))
            with nodes([f"sentinel://127.0.0.1:{watch.port}/mymaster/0"] * 2, 20) as (one, two):
                assert send(one, 6)[0] + send(two, 6)[0] == 12
                assert first.cli("WAIT", 1, 5000) == 1
                first.kill()
                passed, longest = send(one, 3)
                assert (passed, longest < AT_ONCE) == (3, True)
                until(lambda: shown(one)["here"] and shown(two)["here"])
                assert watch.master() == second.port
                until(lambda: count(two) == 15)
                assert send(one, 10)[0] + send(two, 10)[0] == 5
        finally:
            watch.close()


def test_wrong_data_under_one_accounts_keys_is_that_accounts_trouble_alone(store: Store) -> None:
    """The account is counted by each server for itself, the log says so once, and the others are counted by all."""
    with nodes([url_of(store.port)] * 2, 5) as (one, two):
        store.cli("SET", f"policyd:{{{ANNA}}}:a", "nonsense")
        sent = [send(one, 7), send(two, 7)]
        assert [passed for passed, _ in sent] == [5, 5]
        assert max(longest for _, longest in sent) < AT_ONCE
        assert shown(one)["here"]
        assert one.stderr.count("WRONGTYPE") == 1
        assert send(one, 4, BERT)[0] + send(two, 4, BERT)[0] == 5


def test_daemons_with_different_scripts_count_together(store: Store, tmp_path: Path) -> None:
    """As while one server after the other gets a new version."""
    other = tmp_path / "policyd"
    shutil.copytree(REPOSITORY / "policyd", other, ignore=shutil.ignore_patterns("__pycache__"))
    script = other / "shared.lua"
    script.write_text("-- another version\n" + script.read_text(encoding="utf-8"), encoding="utf-8")
    newer = Policyd(config(url_of(store.port), "newer", 20), prefix=("env", "-C", str(tmp_path)))
    with Policyd(config(url_of(store.port), "older", 20)) as older, newer:
        until(lambda: len(shown(older)["nodes"]) == 2)
        assert len({node["script"] for node in shown(older)["nodes"]}) == 2
        with ThreadPoolExecutor(2) as pool:
            sent = list(pool.map(send, (older, newer), (15, 15)))
        assert sum(passed for passed, _ in sent) == 20
        assert count(older) == count(newer) == 20


class SlowNetwork:
    """A way to a store on which all that is sent takes a while, as a context manager; `delay` is in seconds."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> SlowNetwork:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for taken in (self._listening, *self._sockets):
            with suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
            taken.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._carry, args=ends)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while received := source.recv(65536):
                time.sleep(self.delay)  # that is what is tested
                target.sendall(received)
            target.shutdown(socket.SHUT_WR)


def test_a_slow_network_costs_time_up_to_the_patience_and_no_count(store: Store) -> None:
    """Where a call takes 40 ms it is waited for; where it takes 400 ms the server goes by its own counts meanwhile."""
    with SlowNetwork(store.port) as network, nodes([url_of(network.port), url_of(store.port)], 20) as (far, near):
        network.delay = 0.02
        passed, longest = send(far, 4)
        assert (passed, longest > network.delay) == (4, True)
        assert count(near) == 4
        network.delay = 0.2
        passed, longest = send(far, 4)
        assert (passed, longest < AT_ONCE) == (4, True)
        until(lambda: not shown(far)["here"])
        network.delay = 0.0
        until(lambda: count(near) == 8)
        assert send(near, 20)[0] == 12
        until(lambda: shown(far)["here"])
        assert send(far, 1)[0] == 0


def test_two_databases_of_one_store_have_nothing_in_common(store: Store) -> None:
    """What nodes tell each other reaches those of the same database alone, though channels are the store's."""
    elsewhere = Policyd(config(f"redis://127.0.0.1:{store.port}/1", "mail1", 5))
    with nodes([url_of(store.port)] * 2, 5) as (one, two), elsewhere as other:
        until(lambda: shown(other)["here"])
        one.ctl("lock", ANNA, "--reason", "test")
        until(lambda: two.ctl_json("locked"))
        assert other.ctl_json("locked") == []
        assert send(other, 6)[0] == 5
        other.ctl("lock", BERT, "--reason", "test")
        assert [lock["account"] for lock in two.ctl_json("locked")] == [ANNA]
        assert [account["account"] for account in two.ctl_json("accounts")] == [ANNA]
        assert count(two) == 0
