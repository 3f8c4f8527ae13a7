"""What a store that is back is told, and a store that has lost its data: some at a time, and nobody is left out."""

from __future__ import annotations

import pytest

from policyd.accounts import Account
from policyd.catching_up import AGAIN, AT_ONCE, PIECE, PIECE_RUNS
from policyd.limits import MAX_PERIOD
from policyd.shares import Share, Waiting
from policyd.window import Window
from tests.asking import ANNA, BERT, limit
from tests.sharers import Model, Node


def counted(node: Node, account: str) -> int | None:
    """Return what the store counts of an account."""
    assert isinstance(node.server, Model)
    counts = node.server.store.counts(account)
    return counts[0] if counts else None


def lose_data(node: Node) -> None:
    """Have the store lose its data, and the node learn of it."""
    assert isinstance(node.server, Model)
    node.server.store.lose_data()
    node.sharing.catching_up.store_lost_data()


def bad_accounts(node: Node, *names: str) -> None:
    """Have the store keep wrong data under the keys of these."""
    server = node.server
    assert isinstance(server, Model)
    node.net.wrong = lambda command: server.store.what(command).account in names


def come_back(node: Node) -> None:
    """Have the store back, and told what it missed."""
    node.net.here = True
    node.sharing.catching_up.came_back()
    node.go_on()


def with_accounts(number: int) -> Node:
    """Return a node that has let through a message of each of so many accounts."""
    node = Node(limit("messages", 9))
    for place in range(number):
        node.send(user=f"user{place}")
    return node


def test_windows_are_sent_piece_by_piece() -> None:
    """The next piece goes when all of the last have arrived, whatever ticks meanwhile; one turn is put off at most."""
    node = with_accounts(2 * PIECE + 50)
    node.net.late = True
    lose_data(node)
    most = delivered = 0
    while node.net.waiting:
        for _ in range(3):
            node.sharing.catching_up.tick(list)
            assert len(node.turns) <= 1
            node.go_on()
        most = max(most, len(node.net.waiting))
        node.net.deliver()
        delivered += 1
        node.go_on()
    assert most == PIECE
    assert delivered == 2 * PIECE + 50
    assert node.sharing.catching_up.problems() == []
    assert all(counted(node, f"user{place}") == 1 for place in range(2 * PIECE + 50))


def test_one_turn_is_put_off_at_most() -> None:
    """However often a second passes meanwhile."""
    node = Node(limit("messages", 5000))
    node.net.here = False
    node.send(3 * AT_ONCE)
    node.net.here = True
    node.sharing.catching_up.came_back()
    node.sharing.catching_up.tick(list)
    assert len(node.turns) == 1
    node.go_on()
    assert counted(node, ANNA) == 3 * AT_ONCE


def test_long_windows_make_a_short_piece() -> None:
    """A piece ends with the account that brings it to PIECE_RUNS."""
    node = with_accounts(4)
    for place in range(4):
        account = node.policy.accounts.peek(f"user{place}", node.now)
        assert account is not None
        window = account.windows[0]
        assert isinstance(window, Window)
        for step in range(PIECE_RUNS // 2):
            window.add(node.now + step / 1000, 1, 0.0)
    node.now += 10
    node.net.late = True
    lose_data(node)
    assert len(node.net.waiting) == 2


def test_windows_that_do_not_arrive_are_sent_again() -> None:
    """Also where the last of them fail long after the last was sent; until then the status tells of them."""
    node = with_accounts(3)
    node.net.late = True
    lose_data(node)
    node.go_on()
    node.sharing.catching_up.tick(list)
    assert len(node.net.waiting) == 3
    assert len(node.sharing.catching_up.problems()) == 1
    node.net.go_away()
    node.sharing.catching_up.tick(list)
    assert len(node.sharing.catching_up.problems()) == 1
    node.net.late = False
    come_back(node)
    assert [counted(node, f"user{place}") for place in range(3)] == [1, 1, 1]
    assert node.sharing.catching_up.problems() == []


def test_what_waits_is_told_once_where_its_windows_are_sent() -> None:
    """The store goes again before an account had its turn: what is let through then is in its windows.

    Where the windows may have arrived, what came later is told by itself: it counts twice rather than not at all.
    """
    node = with_accounts(PIECE + 1)
    server = node.server
    assert isinstance(server, Model)
    node.net.late = True
    lose_data(node)
    sent = [server.store.what(command).account for command, _ in node.net.waiting]
    (later,) = {f"user{place}" for place in range(PIECE + 1)} - set(sent)
    node.net.deliver()
    node.net.deliver(reply=False)
    node.net.go_away()
    lasting = node.connection(user=later)
    lasting.data(1)
    for name in sent[:3]:
        node.send(user=name)
    node.net.late = False
    come_back(node)
    node.sharing.catching_up.tick(list)
    node.go_on()
    assert counted(node, later) == 2
    lasting.rset()
    lasting.data(1)
    assert counted(node, later) == 3
    assert [counted(node, name) for name in sent[:4]] == [2, 2, 3, 1]


@pytest.mark.parametrize("seconds", [1800, 2 * MAX_PERIOD])
def test_windows_that_the_store_does_not_take_keep_nobody_waiting(seconds: float) -> None:
    """They are tried again each AGAIN seconds, and no more when they are empty, or their account is forgotten."""
    node = with_accounts(3)
    bad_accounts(node, "user0")
    lose_data(node)
    node.go_on()
    assert [counted(node, f"user{place}") for place in range(3)] == [None, 1, 1]
    made = node.net.made
    for _ in range(5):
        node.sharing.catching_up.tick(list)
        node.go_on()
    assert node.net.made == made
    node.net.here = False
    node.now += seconds
    node.net.here = True
    node.sharing.catching_up.came_back()
    node.go_on()
    assert node.sharing.catching_up.problems() == []


def test_windows_that_did_not_arrive_before_the_data_were_lost_again_are_sent_once() -> None:
    """What has become of them then is nothing to the new round."""
    node = with_accounts(2)
    node.net.late = True
    lose_data(node)
    lose_data(node)
    assert len(node.net.waiting) == 2
    node.net.deliver(carry_out=False)
    node.net.deliver(carry_out=False)
    node.net.late = False
    node.go_on()
    assert [counted(node, f"user{place}") for place in range(2)] == [1, 1]
    assert node.sharing.catching_up.problems() == []


def test_an_account_that_fails_keeps_nobody_waiting() -> None:
    """More of its messages wait than are told at once, before all others: these are told in the same second."""
    node = Node(limit("messages", 5000))
    bad_accounts(node, "bad")
    node.net.here = False
    node.send(AT_ONCE + 100, user="bad")
    for place in range(AT_ONCE):
        node.send(user=f"good{place}")
    come_back(node)
    assert len(node.sharing.catching_up.waiting) == AT_ONCE + 100
    assert all(counted(node, f"good{place}") == 1 for place in range(AT_ONCE))
    made = node.net.made
    for _ in range(5):
        node.sharing.catching_up.tick(list)
        node.go_on()
    assert node.net.made == made
    bad_accounts(node)
    node.now += AGAIN
    node.go_on()
    assert len(node.sharing.catching_up.waiting) == 0
    assert counted(node, "bad") == AT_ONCE + 100


def test_what_a_failing_account_has_to_tell_is_dropped_in_time() -> None:
    """When all of it has left its windows."""
    node = Node(limit("messages", 5000))
    bad_accounts(node, "bad")
    node.net.here = False
    node.send(3, user="bad")
    come_back(node)
    assert len(node.sharing.catching_up.waiting) == 3
    node.now += 1900
    assert len(node.sharing.catching_up.waiting) == 0


def test_an_account_that_has_failed_is_tried_with_one_message_before_it_is_asked_about() -> None:
    """Where that goes well the others follow at once."""
    node = Node(limit("messages", 5000))
    bad_accounts(node, ANNA)
    node.net.here = False
    node.send(3)
    come_back(node)
    made = node.net.made
    assert node.connection().data(1) == "DUNNO"
    assert node.net.made == made + 2
    bad_accounts(node)
    assert node.connection().data(1) == "DUNNO"
    node.sharing.catching_up.tick(list)
    node.go_on()
    assert counted(node, ANNA) == 5


def test_a_bug_while_the_store_is_told_keeps_nobody_waiting() -> None:
    """The message that it struck is told again later, and all others at once."""
    node = Node(limit("messages", 9))
    node.net.here = False
    node.send()
    node.send(user=BERT)
    node.net.fate.append("bug")
    come_back(node)
    assert (counted(node, ANNA), counted(node, BERT), len(node.bugs)) == (None, 1, 1)
    node.now += AGAIN
    assert counted(node, ANNA) == 1


def test_a_bug_after_the_store_was_told_keeps_nobody_waiting() -> None:
    """Nor one while somebody finds out whether there is still anything to tell."""
    node = Node(limit("messages", 9))
    catching_up, ended = node.sharing.catching_up, []

    def broken(share: Share) -> None:
        ended.append(share.account)
        raise RuntimeError("oops")

    node.net.here = False
    node.send()
    node.send(user=BERT)
    catching_up.call_ended = broken
    come_back(node)
    assert ended == [ANNA, BERT]
    assert len(node.bugs) == 2
    assert len(catching_up.waiting) == 0
    node.net.here = False
    node.send()
    come_back(node)
    assert counted(node, ANNA) == 2


def test_a_bug_with_the_limits_of_one_keeps_nobody_waiting() -> None:
    """What it has to tell is looked at again later."""
    node = Node(limit("messages", 9))
    accounts, broken = node.policy.accounts, [ANNA]
    peek = accounts.peek

    def peeked(name: str, now: float) -> Account | None:
        if name in broken:
            raise RuntimeError("oops")
        return peek(name, now)

    node.net.here = False
    node.send()
    node.send(user=BERT)
    accounts.peek = peeked  # type: ignore[method-assign]  # a bug of ours
    come_back(node)
    assert (counted(node, ANNA), counted(node, BERT), len(node.bugs)) == (None, 1, 1)
    broken.clear()
    node.now += AGAIN
    assert counted(node, ANNA) == 1


def test_a_bug_while_windows_are_sent_keeps_nobody_waiting() -> None:
    """The account that it struck is sent again later."""
    node = with_accounts(3)
    node.net.fate.append("bug")
    lose_data(node)
    node.go_on()
    assert len(node.bugs) == 1
    node.now += AGAIN
    node.go_on()
    assert [counted(node, f"user{place}") for place in range(3)] == [1, 1, 1]
    assert node.sharing.catching_up.problems() == []


def test_transactions_that_go_on_are_told_some_at_a_time() -> None:
    """No tick tells more than AT_ONCE that they are still there, and the next ones tell the others."""
    node = Node(limit("recipients", 5000))
    for _ in range(AT_ONCE + 100):
        node.connection().rcpt()
    made = node.net.made
    node.now += 60
    assert node.net.made == made + AT_ONCE
    node.now += 1
    assert node.net.made == made + AT_ONCE + 100
    node.now += 1
    assert node.net.made == made + AT_ONCE + 100


def test_what_waits_is_kept_count_of_while_its_account_is_aside() -> None:
    """It counts, is found by its account, and is the last to be lost; more of the account comes to it."""
    waiting = Waiting(4)
    shares = [Share(account, b"", 0) for account in (ANNA, ANNA, BERT, ANNA, BERT)]
    for share in shares[:3]:
        waiting.add(share)
    waiting.put_aside(ANNA, 10.0)
    waiting.add(shares[3])
    assert (len(waiting), ANNA in waiting, waiting.some(9), len(waiting.of(ANNA, 9))) == (4, True, [shares[2]], 3)
    waiting.add(shares[4])
    assert (waiting.lost, waiting.some(9)) == (1, [shares[4]])
    waiting.take_back_all(9.0)
    assert waiting.is_aside(ANNA)
    waiting.take_back_all(10.0)
    assert waiting.some(9) == [shares[4], shares[0], shares[1], shares[3]]
    waiting.put_aside(ANNA, 20.0)
    waiting.forget(ANNA)
    waiting.put_aside(BERT, 20.0)
    waiting.add(shares[0])
    waiting.put_aside(ANNA, 30.0)
    waiting.take_back_all(20.0)
    assert waiting.some(9) == [shares[4]]
    waiting.clear()
    waiting.take_back_all(30.0)
    assert (len(waiting), waiting.some(9), waiting.ready) == (0, [], False)
