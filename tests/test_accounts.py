"""The table of accounts: bounded whatever names a peer makes up, never at the cost of a lock or of who is at work."""

from __future__ import annotations

import pytest

from policyd.limits import MAX_PERIOD
from policyd.transactions import Transactions
from tests.asking import ANNA, BERT, Mail, limit

SIZE = 100
"""Accounts that a test's table remembers."""


def bounded(size: int = SIZE) -> Mail:
    """Return a policy with a small table."""
    mail = Mail(limit("messages", 3))
    mail.policy.accounts.size = size
    return mail


def flood(mail: Mail, number: int, start: int = 0) -> None:
    """Send a message from each of so many made-up accounts."""
    for made_up in range(start, start + number):
        mail.send(user=f"{made_up}@made.up")


def test_made_up_accounts_stay_within_the_bound() -> None:
    """However many names a peer thinks of, no more are remembered."""
    mail = bounded()
    flood(mail, 3 * SIZE)
    assert len(mail.policy.accounts) == SIZE


def test_a_locked_account_is_never_forgotten() -> None:
    """Whatever comes after it, and however little room there is."""
    mail = bounded()
    mail.lock(ANNA)
    mail.send(4, user=BERT)
    assert not mail.locked(BERT)  # this limit does not lock
    flood(mail, 3 * SIZE)
    assert mail.locked(ANNA)
    assert mail.send(user=ANNA).startswith("REJECT")
    assert mail.count(BERT) == 0


def test_locked_accounts_beyond_the_bound_are_kept() -> None:
    """Even where they alone are more than the table remembers, there is room for free ones besides."""
    mail = bounded()
    names = [f"{number}@locked.example" for number in range(2 * SIZE)]
    for name in names:
        mail.lock(name)
    flood(mail, 3 * SIZE)
    assert all(mail.locked(name) for name in names)
    assert len(mail.policy.accounts) == 2 * SIZE + SIZE // 2
    assert mail.count(f"{3 * SIZE - 1}@made.up") == 1


def test_locked_accounts_count_against_the_bound() -> None:
    """A table with locked accounts is not larger than one without."""
    mail = bounded()
    for number in range(SIZE // 4):
        mail.lock(f"{number}@locked.example")
    flood(mail, 3 * SIZE)
    assert len(mail.policy.accounts) == SIZE


def test_the_account_that_is_idle_for_longest_is_forgotten() -> None:
    """One that sends ever again keeps its counts through any flood."""
    mail = bounded()
    mail.send(user=BERT)
    for start in range(0, 3 * SIZE, SIZE // 2):
        mail.send(user=ANNA) if start < SIZE else mail.connection(ANNA).mail()
        flood(mail, SIZE // 2, start)
    assert (mail.count(ANNA), mail.count(BERT)) == (2, 0)


def test_an_account_in_the_middle_of_a_long_message_is_at_work() -> None:
    """Each recipient is a sign of life, though it is one message and one transaction."""
    mail = bounded()
    mail.send(user=ANNA)
    connection = mail.connection(ANNA)
    for start in range(0, 3 * SIZE, SIZE // 2):
        connection.rcpt()
        flood(mail, SIZE // 2, start)
    connection.data()
    assert mail.count(ANNA) == 2


def test_a_message_whose_account_was_forgotten_goes_on_with_who_has_the_name_now() -> None:
    """There is one account of a name: what locks it locks it for all connections."""
    mail = Mail(limit("messages", 1, lock="until-unlocked"))
    mail.policy.accounts.size = SIZE
    connection = mail.connection(ANNA)
    connection.rcpt()
    flood(mail, 3 * SIZE)
    mail.send(user=ANNA)
    assert connection.data().startswith("REJECT")
    assert mail.locked(ANNA)
    mail.unlock(ANNA)
    assert not mail.locked(ANNA)
    assert mail.send(user=ANNA) == "DUNNO"


def test_a_look_at_the_desk_is_no_sign_of_life() -> None:
    """Listing all accounts, or asking about one, changes nothing of who is forgotten first."""
    mail = bounded()
    mail.send(user=BERT)
    flood(mail, SIZE - 1)
    mail.desk.accounts(mail.now, "messages", 10)
    assert mail.count(BERT) == 1
    flood(mail, 1, SIZE)
    assert mail.policy.accounts.peek(BERT, mail.now) is None
    assert mail.policy.accounts.peek("0@made.up", mail.now) is not None


def test_who_is_not_heard_of_for_the_longest_window_is_forgotten() -> None:
    """Nothing that counts is lost by it; the list does not show such accounts any more."""
    mail = bounded()
    flood(mail, 10)
    mail.lock(ANNA)
    mail.now += MAX_PERIOD
    flood(mail, 5, 10)
    assert len(mail.policy.accounts) == 5 + 1
    mail.now += MAX_PERIOD
    assert [shown["account"] for shown in mail.desk.accounts(mail.now, "messages", 100)] == [ANNA]


def test_a_smaller_bound_is_reached_as_accounts_come() -> None:
    """A reload makes nobody wait while a million accounts are forgotten."""
    mail = bounded()
    flood(mail, SIZE)
    mail.policy.accounts.size = SIZE // 2
    flood(mail, SIZE // 4, SIZE)
    assert len(mail.policy.accounts) == SIZE * 3 // 4
    flood(mail, SIZE // 4, 2 * SIZE)
    assert len(mail.policy.accounts) == SIZE // 2


@pytest.mark.parametrize("ends", [True, False])
def test_made_up_instances_stay_within_the_bound(ends: bool) -> None:
    """One transaction is remembered for each connection, and of those that have ended so many."""
    mail = Mail(limit("recipients", 1_000_000))
    mail.policy.transactions = Transactions(SIZE)
    connections = [mail.connection() for _ in range(10)]
    for number in range(3 * SIZE):
        connection = connections[number % 10]
        connection.rset()
        connection.rcpt()
        if ends:
            connection.data()
    assert len(mail.policy.transactions) == SIZE + 10
