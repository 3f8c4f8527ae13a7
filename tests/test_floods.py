"""Floods of connections, of names and of replies that nobody reads: all others are served as if there were none."""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path

import pytest

from policyd.transactions import MAX_ENDED
from tests.asking import ANNA, Mail, limit
from tests.daemon import PATIENCE, Policyd
from tests.floods import IDLE, TRICKLING, crowd, enough_descriptors, latencies, make_up, percentile
from tests.waiting import until

ACCOUNTS = 20_000
"""Accounts that are remembered while three times as many are made up; the whole million is in tests/bench/floods.py."""

ASKED = 1000
BYTES_EACH = 2
"""Bytes that trickle in for each request asked: 2,000, more than 500 connections send in a second at a byte each."""


@pytest.mark.skipif(not enough_descriptors(2 * (IDLE + TRICKLING)), reason="too few file descriptors allowed")
def test_idle_and_trickling_connections_slow_nobody_down() -> None:
    """2,000 idle and 500 trickling connections leave half of the answers within a fifth of the 20 ms that p99 may take.

    The p99 itself is measured by tests.bench.floods, on a machine that does nothing else.
    """
    with Policyd() as running, crowd(running) as others, running.connect() as connection:
        found = latencies(connection, ASKED, others, BYTES_EACH)
        print(f"median {percentile(found, 50) * 1000:.2f} ms, p99 {percentile(found, 99) * 1000:.2f} ms")
        assert percentile(found, 50) < 0.004
        assert running.ctl_json("status")["connections"] == IDLE + TRICKLING + 1
        assert running.ctl_json("status")["protocol_errors"] == 0


def test_made_up_accounts_and_instances_stay_within_the_bound() -> None:
    """A lock from before the flood is there after it, and so are the counts of who sends all the while."""
    mail = Mail(limit("messages", 500))
    mail.policy.accounts.size = ACCOUNTS
    for number in range(50):
        mail.lock(f"{number}@locked.example")
    mail.lock("1@made.up")
    for start in range(0, 3 * ACCOUNTS, ACCOUNTS // 2):
        mail.send(user=ANNA)
        mail.now = make_up(mail.policy, ACCOUNTS // 2, mail.now, start)
    assert len(mail.policy.accounts) == ACCOUNTS
    assert len(mail.policy.transactions) <= MAX_ENDED
    assert mail.count(ANNA) == 6
    assert all(mail.locked(f"{number}@locked.example") for number in range(50))
    assert mail.locked("1@made.up")
    assert mail.account("1@made.up")["attempts_while_locked"] == 1


def test_a_peer_that_reads_too_slowly_is_cut_off(tmp_path: Path) -> None:
    """Who reads a little now and then, and asks much more, is hung up on as well; who asks after reading never is."""
    path = str(tmp_path / "policy.sock")
    requests = b"request=smtpd_access_policy\n\n" * 2000
    with Policyd(listen=[f"unix:{path}"]) as running, socket.socket(socket.AF_UNIX) as slow:
        slow.connect(path)
        slow.setblocking(False)

        def cut_off() -> bool:
            try:
                with contextlib.suppress(BlockingIOError):
                    slow.send(requests)
                with contextlib.suppress(BlockingIOError):
                    slow.recv(10)
            except ConnectionError:
                return True
            select.select([], [slow], [], 0.05)
            return False

        until(cut_off, PATIENCE)
        assert running.ask() == "DUNNO"
        assert running.ctl_json("status")["protocol_errors"] == 1
        assert 'reason="does not read its replies"' in running.stderr
