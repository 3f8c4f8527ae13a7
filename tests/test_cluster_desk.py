"""policyctl with daemons that share a store, as a person sees it: any of them will do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Policyd
from tests.stores import Store, running
from tests.waiting import until

ANNA = "anna@example.com"
BERT = "bert@example.com"
PASSED = "DUNNO"

HOLDING = 1.0
"""Seconds within which what is decided on one server holds on all."""


def config(store: Store, folder: Path, node: str) -> dict[str, Any]:
    """Return the config of a node."""
    where = f"redis://127.0.0.1:{store.port}/0"
    return {"cluster": {"url": where, "node": node}, "database": str(folder / f"{node}.sqlite")}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """Run one store for all tests."""
    with running() as found:
        yield found


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Iterator[tuple[Policyd, Policyd]]:
    """Run two daemons that see each other."""
    store.forget()
    with ExitStack() as ends:
        one, other = (ends.enter_context(Policyd(config(store, tmp_path, f"mail{number}"))) for number in (1, 2))
        for daemon in (one, other):
            until(lambda daemon=daemon: len(cluster(daemon)["nodes"]) == 2)  # type: ignore[misc]  # it is this one
        yield one, other


def cluster(daemon: Policyd) -> dict[str, Any]:
    """Return what a daemon's status says of the cluster."""
    found: dict[str, Any] = daemon.ctl_json("status")["cluster"]
    return found


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Look that something becomes true in time."""
    began = time.monotonic()
    until(condition)
    assert time.monotonic() - began < seconds


def test_a_lock_and_an_unlock_hold_on_both_within_a_second(two: tuple[Policyd, Policyd]) -> None:
    """What `policyctl lock` does on one server, the other refuses; `policyctl unlock` there frees it on both."""
    one, other = two
    assert one.message(ANNA)[-1] == PASSED
    done = one.ctl("lock", ANNA, "--reason", "phished")
    assert (done.returncode, done.stdout) == (0, f"{ANNA} locked until unlocked: phished\n")
    within(HOLDING, lambda: other.message(ANNA)[0].startswith("REJECT"))
    assert [lock["account"] for lock in other.ctl_json("locked")] == [ANNA]
    assert other.ctl("unlock", ANNA).stdout == f"{ANNA} unlocked; its windows start anew\n"
    within(HOLDING, lambda: one.message(ANNA)[-1] == PASSED)
    assert f"unlock account={ANNA}" in one.stderr
    assert "node=mail2" in one.stderr


def test_a_limit_that_locks_on_one_locks_on_both(two: tuple[Policyd, Policyd]) -> None:
    """501 messages over two servers lock the account, on both."""
    for daemon, messages in ((two[0], 250), (two[1], 250)):
        for _ in range(messages):
            assert daemon.message(ANNA)[-1] == PASSED
    assert two[0].message(ANNA)[-1].startswith("REJECT")
    until(lambda: two[1].ctl_json("locked"))
    assert two[0].ctl_json("locked") == two[1].ctl_json("locked")
    assert two[1].ctl_json("locked")[0]["count"] == 501


def test_an_allowance_holds_on_both(two: tuple[Policyd, Policyd]) -> None:
    """What is allowed on one server is in force on the other, until it is taken back there."""
    one, other = two
    assert one.ctl("allow", ANNA, "messages-per-half-hour", "9000", "--for", "1h").returncode == 0
    until(lambda: [each["max"] for each in other.ctl_json("allowances")] == [9000])
    assert other.ctl("disallow", ANNA).returncode == 0
    until(lambda: one.ctl_json("allowances") == [])


def test_a_server_without_clients_shows_what_the_other_counts(two: tuple[Policyd, Policyd]) -> None:
    """`policyctl accounts`, `status ACCOUNT`, `history` and `reset` are about all servers."""
    one, other = two
    for _ in range(7):
        one.message(ANNA)
    one.message(BERT)
    found = [(each["account"], each["limits"][-1]["count"]) for each in other.ctl_json("accounts")]
    assert found == [(ANNA, 7), (BERT, 1)]
    account = other.ctl_json("status", ANNA)
    assert (account["seen"], account["limits"][-1]["count"]) == (True, 7)
    assert account["cluster"] == {"node": "mail2", "here": True, "answered": ["mail2", "mail1"], "silent": []}
    assert [client["address"] for client in account["clients"]] == ["192.0.2.7"]
    until(lambda: len(other.ctl_json("history", ANNA)["messages"]) == 7)
    assert {message["node"] for message in other.ctl_json("history", ANNA)["messages"]} == {"mail1"}
    assert other.ctl("history", ANNA, "-0").stdout == ""
    assert one.ctl("history", ANNA, "-0").stdout != ""
    assert other.ctl("reset", ANNA).stdout == f"{ANNA}: its counts are forgotten\n"
    assert one.ctl_json("status", ANNA)["limits"][-1]["count"] == 0


def test_status_names_both_servers(two: tuple[Policyd, Policyd]) -> None:
    """Each server is in `policyctl status` with its version; one that is gone is silent, and that is no problem yet."""
    shown = cluster(two[0])
    assert [node["node"] for node in shown["nodes"]] == ["mail1", "mail2"]
    assert len({node["script"] for node in shown["nodes"]}) == 1
    text = two[0].ctl("status").stdout
    assert "mail1 (this one)" in text
    assert "PROBLEMS" not in text
    two[1].kill()
    until(lambda: cluster(two[0])["nodes"][1]["silent"])
    assert "SILENT since" in two[0].ctl("status").stdout


def test_each_command_answers_while_the_store_is_away(store: Store, two: tuple[Policyd, Policyd]) -> None:
    """A store that hangs stops no order: each says that the others are told later, and they are, within 5 s."""
    one, other = two
    one.message(ANNA)
    store.stop()
    try:
        done = one.ctl("lock", ANNA, "--reason", "phished")
        assert done.returncode == 0
        assert "the other nodes are told when the store is back" in done.stdout
        assert one.message(ANNA)[0].startswith("REJECT")
        assert not other.ctl_json("locked")
        for command in (("accounts",), ("status", ANNA), ("history", ANNA), ("locked",), ("allowances",), ("status",)):
            assert one.ctl(*command).returncode == 0
        assert "this is what mail1 alone knows" in one.ctl("status", ANNA).stdout
        shown = cluster(one)
        assert (shown["here"], shown["orders"]["waiting"]) == (False, 1)
        nagios = one.ctl("status", "--nagios")
        assert (nagios.returncode, nagios.stdout[:30]) == (1, "POLICYD WARNING - the store is")
    finally:
        store.cont()
    within(5.0, lambda: other.ctl_json("locked"))
    assert cluster(one)["here"]


def test_a_lock_made_before_a_restart_is_told_after_it(store: Store, tmp_path: Path) -> None:
    """A daemon that locks while the store is away, and is restarted before it is back, tells of the lock then."""
    store.forget()
    with Policyd(config(store, tmp_path, "mail2")) as other, Policyd(config(store, tmp_path, "mail1")) as one:
        until(lambda: len(cluster(one)["nodes"]) == 2)
        store.stop()
        try:
            one.ctl("lock", ANNA, "--reason", "phished")
            one.restart()
            assert one.message(ANNA)[0].startswith("REJECT")
        finally:
            store.cont()
        within(6.0, lambda: other.ctl_json("locked"))


def test_an_unlock_made_before_a_restart_is_told_after_it(store: Store, tmp_path: Path) -> None:
    """A daemon on which a person frees an account while the store is away keeps it free, and tells of it later."""
    store.forget()
    with Policyd(config(store, tmp_path, "mail2")) as other, Policyd(config(store, tmp_path, "mail1")) as one:
        until(lambda: len(cluster(one)["nodes"]) == 2)
        other.ctl("lock", ANNA, "--reason", "phished")
        until(lambda: one.ctl_json("locked"))
        store.stop()
        try:
            one.ctl("unlock", ANNA)
            one.kill()
            one.start()
            assert cluster(one)["orders"]["waiting"] == 1
        finally:
            store.cont()
        within(6.0, lambda: not other.ctl_json("locked"))
        assert not one.ctl_json("locked")
        assert cluster(one)["orders"]["waiting"] == 0


def test_people_are_told_of_a_lock_by_the_server_that_made_it(store: Store, tmp_path: Path) -> None:
    """A notice of a lock is sent once, though both servers have the lock, and both tell people."""
    store.forget()
    files = [tmp_path / "one", tmp_path / "other"]
    notify = [{"command": ["/bin/sh", "-c", f"cat >> {file}; echo >> {file}"]} for file in files]
    with (
        Policyd({**config(store, tmp_path, "mail1"), "notify": notify[0]}) as one,
        Policyd({**config(store, tmp_path, "mail2"), "notify": notify[1]}) as other,
    ):
        until(lambda: len(cluster(one)["nodes"]) == 2)
        one.ctl("lock", ANNA, "--reason", "phished")
        until(lambda: other.ctl_json("locked"))
        other.ctl("unlock", ANNA)
        until(lambda: not one.ctl_json("locked"))
        until(lambda: all(file.exists() for file in files))
        told = [[json.loads(line)["event"] for line in file.read_text().splitlines() if line] for file in files]
    assert told == [["lock"], ["unlock"]]
