"""Locks and allowances of nodes that share a store: one decision, in force on all."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from twisted.internet.defer import fail

from policyd import grants, outbox, registry, resync
from policyd.accounts import Evidence
from policyd.limits import UNTIL_UNLOCKED
from policyd.shared_calls import AwayError
from tests.allowing import allow, disallow, listed, maximum
from tests.asking import ANNA, BERT, limit
from tests.members import Member, Shared, members, pass_time
from tests.turning import TurningClock

TEN = limit("messages", 10, lock="until-unlocked")
INDEX = "policyd:locks"
OWN = "policyd:{anna@example.com}:l"


def well(*nodes: Member) -> None:
    """Look that nothing went wrong behind the scenes."""
    assert [node.bugs for node in nodes] == [[] for _ in nodes]


def test_a_lock_by_hand_is_in_force_on_all_nodes_within_a_second() -> None:
    """What a person locks on one node, the others refuse too, with the same words; each logs who did it where."""
    _, nodes = members(3)
    nodes[0].lock(reason="spam")
    pass_time(nodes, 0.9)
    for node in nodes:
        assert node.send() == "REJECT 5.7.1 Account anna@example.com is locked: spam"
    (told,) = nodes[1].elsewhere("lock")
    assert (told["account"], told["by"], told["reason"], told["node"]) == (ANNA, "desk", "spam", "mail1")
    well(*nodes)


def test_a_lock_by_a_limit_is_in_force_on_all_nodes() -> None:
    """A limit that locks on one node locks the account on the others, with its evidence and count."""
    _, (one, other) = members(2, TEN)
    one.send(11)
    pass_time([one, other])
    lock = other.account()["lock"]
    assert (lock["limit"], lock["count"], lock["by"]) == ("messages", 11, "policyd")
    assert lock == one.account()["lock"]
    well(one, other)


def test_only_the_node_that_decided_tells_people() -> None:
    """Of a lock, of its end by hand, and of its end by time people are told once, not by each node."""
    _, (one, other) = members(2)
    one.lock(seconds=60.0)
    pass_time([one, other])
    other.unlock()
    pass_time([one, other])
    one.lock(user=BERT, seconds=60.0)
    pass_time([one, other], 70)
    assert not other.locked(BERT)
    assert [event.word for event in one.events] == ["lock", "lock", "unlock"]
    assert [event.word for event in other.events] == ["unlock"]
    well(one, other)


def test_nobody_says_again_what_another_node_has_said() -> None:
    """News are not echoed: a lock, and an unlock, are written and told once."""
    shared, nodes = members(3)
    pass_time(nodes, 1)
    shared.commands.clear()
    nodes[0].lock()
    pass_time(nodes, 2)
    assert shared.commands == ["HGET", "EVALSHA", "HSET", "PUBLISH"]
    well(*nodes)


def test_an_unlock_frees_on_all_nodes() -> None:
    """What a person frees on another node than it was locked on is free everywhere, and its windows start anew."""
    shared, (one, other) = members(2, TEN)
    one.send(10)
    other.send(3)
    one.send()
    pass_time([one, other])
    other.unlock()
    pass_time([one, other])
    assert not one.locked()
    assert (one.count(), other.count()) == (0, 0)
    (told,) = one.elsewhere("unlock")
    assert (told["by"], told["node"], told["attempts"]) == ("desk", "mail2", 0)
    assert shared.resets[-1] == OWN
    assert ANNA in one.forgotten
    assert ANNA in other.forgotten
    well(one, other)


def test_a_reset_forgets_the_counts_on_all_nodes() -> None:
    """The counts of an account that is reset on one node start anew on the others, and in the store."""
    shared, (one, other) = members(2, TEN)
    one.send(5)
    other.send(4)
    one.reset()
    pass_time([one, other])
    assert (one.count(), other.count(), shared.resets) == (0, 0, [OWN])
    (told,) = other.elsewhere("reset")
    assert (told["by"], told["node"]) == ("desk", "mail1")
    well(one, other)


def test_a_lock_ends_on_each_node_after_its_time() -> None:
    """A lock for a time ends everywhere at once, though the nodes' clocks are set differently."""
    clock = TurningClock()
    shared = Shared(clock)
    nodes = [Member(shared, "mail1"), Member(shared, "mail2", skew=5000.0), Member(shared, "mail3", skew=-5000.0)]
    pass_time(nodes, 3)
    nodes[1].lock(seconds=100.0)
    pass_time(nodes, 98)
    assert [node.locked() for node in nodes] == [True, True, True]
    pass_time(nodes, 3)
    assert [node.locked() for node in nodes] == [False, False, False]
    well(*nodes)


def test_what_was_decided_while_the_store_was_away_is_told_when_it_is_back() -> None:
    """Locks, an unlock and a reset wait, the latest of each account alone, and are in force within five seconds."""
    shared, nodes = members(2, TEN)
    one, other = nodes
    one.lock(user=BERT)
    pass_time(nodes)
    one.away()
    one.lock(reason="first")
    one.unlock()
    one.lock(reason="second")
    one.unlock(BERT)
    one.send(3, user="carl@example.com")
    one.reset("carl@example.com")
    pass_time(nodes, 20)
    assert len(one.registry.orders) == 3
    assert not other.locked()
    assert other.locked(BERT)
    one.back()
    pass_time(nodes, 1)
    assert (other.why(), other.why(BERT)) == ("second", None)
    assert "policyd:{carl@example.com}:l" in shared.resets
    assert len(one.registry.orders) == 0
    well(*nodes)


def test_a_lock_that_was_not_sent_in_time_stays_and_is_sent_again() -> None:
    """The store goes while it is told of a lock: the node's own lock holds, and the others hear of it later."""
    _, nodes = members(2)
    one, other = nodes
    one.lock()
    one.away()
    pass_time(nodes, 5)
    assert one.locked()
    assert not other.locked()
    one.back()
    pass_time(nodes, 1)
    assert other.locked()
    well(*nodes)


def hand(reason: str) -> Callable[[Member], object]:
    """Return what locks by hand."""
    return lambda node: node.lock(reason=reason)


def by_limit(node: Member) -> None:
    """Exceed the limit, which locks."""
    node.send(11)


CONFLICTS: list[tuple[str, list[tuple[int, Callable[[Member], object]]], str | None]] = [
    ("a lock, and nothing", [(0, hand("a"))], "a"),
    ("a lock by hand after one by hand", [(0, hand("a")), (1, hand("b"))], "b"),
    ("a lock by hand after one by a limit", [(0, by_limit), (1, hand("b"))], "b"),
    ("a lock by a limit after one by hand", [(0, hand("a")), (1, by_limit)], "a"),
    ("a lock by a limit after one by a limit", [(0, by_limit), (1, by_limit)], "more than 10 messages in 30m"),
    ("a lock after an unlock", [(0, hand("a")), (0, Member.unlock), (1, hand("b"))], "b"),
    ("an unlock after a lock", [(1, hand("b")), (0, hand("a")), (0, Member.unlock)], None),
    ("an unlock after a lock by a limit", [(1, by_limit), (0, hand("a")), (0, Member.unlock)], None),
    ("an unlock after an unlock", [(0, hand("a")), (1, hand("b")), (0, Member.unlock), (1, Member.unlock)], None),
]
"""What two nodes decide while the store is away, a second between each, and why anna is locked in the end."""


@pytest.mark.parametrize("first_back", [0, 1, None])
@pytest.mark.parametrize(("decided", "why"), [pytest.param(*row[1:], id=row[0]) for row in CONFLICTS])
def test_what_two_nodes_decided_apart_comes_out_as_on_one(
    decided: list[tuple[int, Callable[[Member], object]]], why: str | None, first_back: int | None
) -> None:
    """Whoever finds the store first, or both at once: what stands is what would on one node, in order of time."""
    shared, nodes = members(3, TEN)
    for node in nodes[:2]:
        node.away()
    for place, decide in decided:
        decide(nodes[place])
        pass_time(nodes, 1)
    for place in (0, 1) if first_back is None else (first_back, 1 - first_back):
        nodes[place].back()
        pass_time(nodes, 0 if first_back is None else 2)
    pass_time(nodes, 4)
    assert [node.why() for node in nodes] == [why] * 3
    assert [len(node.registry.orders) for node in nodes] == [0, 0, 0]
    own = shared._get(OWN)
    assert (None if own is None else json.loads(own)["reason"]) == why
    assert shared.index()[ANNA].get("reason") == why
    well(*nodes)


def test_of_two_locks_by_limits_the_earlier_stands() -> None:
    """Two nodes that lock apart agree on one lock: the one that came first."""
    _, nodes = members(2, TEN)
    for node in nodes:
        node.away()
    by_limit(nodes[1])
    since = nodes[1].account()["lock"]["since"]
    pass_time(nodes, 10)
    by_limit(nodes[0])
    nodes[0].back()
    pass_time(nodes, 2)
    nodes[1].back()
    pass_time(nodes, 2)
    assert [node.account()["lock"]["since"] for node in nodes] == [since, since]
    well(*nodes)


def test_who_decided_later_is_told_by_the_stores_clock() -> None:
    """A node whose clock is an hour ahead does not win for that."""
    clock = TurningClock()
    shared = Shared(clock)
    nodes = [Member(shared, "mail1", skew=3600.0), Member(shared, "mail2")]
    pass_time(nodes, 3)
    for node in nodes:
        node.away()
    nodes[0].lock(reason="earlier")
    pass_time(nodes, 5)
    nodes[1].lock(reason="later")
    for node in nodes:
        node.back()
    pass_time(nodes, 4)
    assert [node.why() for node in nodes] == ["later", "later"]
    well(*nodes)


def test_who_was_down_learns_of_locks_and_unlocks_when_it_is_there_again() -> None:
    """A node that comes with the locks of its database drops what was freed meanwhile, and takes what is new."""
    shared, nodes = members(2)
    nodes[0].lock()
    nodes[0].lock(user=BERT)
    pass_time(nodes)
    lock = nodes[1].policy.locks.peek(ANNA, nodes[1].now).lock  # type: ignore[union-attr]  # it is known
    nodes[0].unlock()
    pass_time(nodes)
    again = Member(shared, "mail2", run="later")
    account = again.policy.accounts.get(ANNA, again.now)
    assert lock is not None
    again.policy.accounts.restore_lock(account, lock)
    pass_time([nodes[0], again], 3)
    assert (again.locked(), again.locked(BERT)) == (False, True)
    assert not nodes[0].locked()
    well(*nodes, again)


def test_a_lock_from_the_database_that_the_store_never_knew_is_told() -> None:
    """A node that locked while the store was away, and was restarted before it was back, tells of it all the same."""
    shared, nodes = members(2)
    alone = Member(Shared(shared.clock), "mail3")
    alone.lock(reason="alone")
    account = alone.policy.locks.peek(ANNA, alone.now)
    again = Member(shared, "mail3", run="later")
    assert account is not None
    assert account.lock is not None
    again.policy.accounts.restore_lock(again.policy.accounts.get(ANNA, again.now), account.lock)
    pass_time([*nodes, again], 3)
    assert [node.why() for node in nodes] == ["alone", "alone"]
    well(*nodes, again)


def test_all_is_written_again_when_the_store_has_lost_its_data() -> None:
    """A store that comes back empty frees nobody, and takes nothing back: the nodes tell it all they know."""
    shared, nodes = members(2)
    nodes[0].lock()
    allow(nodes[0], 5000, "messages-per-half-hour", user=BERT)
    pass_time(nodes)
    shared.lose_all()
    for node in nodes:
        node.resync.lost()
        node.resync.look()
    pass_time(nodes, 2)
    assert OWN in shared.locks
    assert shared.index()[ANNA]["node"] == "mail1"
    assert list(shared.hashes["policyd:allowances"]) == ["bert@example.com messages-per-half-hour"]
    assert [node.locked() for node in nodes] == [True, True]
    well(*nodes)


def test_a_look_at_all_frees_nobody_by_what_the_store_has_lost() -> None:
    """A lock whose key is gone though nobody freed the account is written again."""
    shared, nodes = members(2)
    nodes[0].lock()
    pass_time(nodes)
    shared.lose_all()
    for node in nodes:
        node.resync.look()
    pass_time(nodes, 2)
    assert [node.locked() for node in nodes] == [True, True]
    assert OWN in shared.locks
    well(*nodes)


def test_the_accounts_own_key_is_the_truth_and_the_index_is_mended() -> None:
    """Where the index differs from an account's own key, whoever notices mends it."""
    shared, nodes = members(2)
    nodes[0].lock(reason="right")
    pass_time(nodes)
    value = {**shared.index()[ANNA], "reason": "wrong", "decided": 1.0}
    shared.hashes[INDEX][ANNA] = json.dumps(value).encode()
    shared.hashes[INDEX][BERT] = json.dumps({**value, "account": BERT}).encode()
    fresh = Member(shared, "mail3")
    pass_time([*nodes, fresh], 3)
    assert (fresh.why(), fresh.why(BERT)) == ("right", None)
    assert shared.index()[ANNA]["reason"] == "right"
    assert BERT not in shared.index()
    well(*nodes, fresh)


def test_what_is_over_leaves_the_index() -> None:
    """A lock whose time is over, and an unlock of a week ago, are removed by whoever looks."""
    shared, nodes = members(2)
    nodes[0].lock(seconds=60.0)
    nodes[0].lock(user=BERT)
    pass_time(nodes)
    nodes[0].unlock(BERT)
    pass_time(nodes)
    assert sorted(shared.index()) == [ANNA, BERT]
    pass_time(nodes, resync.EVERY + 5)
    assert list(shared.index()) == [BERT]
    nodes[0].now += 7 * 86400
    pass_time(nodes, 2)
    assert shared.index() == {}
    well(*nodes)


def test_a_reply_without_a_lock_frees_only_who_was_unlocked() -> None:
    """A request's reply may be older than the lock: a lock that was not unlocked stays, one that was is lifted."""
    shared, nodes = members(2)
    one, other = nodes
    other.link.listens = False
    one.lock()
    one.lock(user=BERT)
    pass_time(nodes, 1)
    other.resync.look()
    pass_time(nodes, 1)
    one.unlock(BERT)
    pass_time(nodes, 0.5)
    assert (other.locked(), other.locked(BERT)) == (True, True)
    for name in (ANNA, BERT):
        other.registry.mirror(other.policy.accounts.get(name, other.now), None, other.now)
    pass_time(nodes, 0.5)
    assert (other.locked(), other.locked(BERT)) == (True, False)
    assert OWN in shared.locks
    well(*nodes)


def test_a_reply_with_a_lock_locks_here() -> None:
    """A lock that a request's reply tells of is in force at once, though the news were missed; garbage is counted."""
    shared, nodes = members(2)
    one, other = nodes
    other.link.listens = False
    one.lock()
    pass_time(nodes, 0.5)
    text = shared.locks[OWN][0].decode()
    account = other.policy.accounts.get(ANNA, other.now)
    other.registry.mirror(account, "{", other.now)
    assert (other.locked(), other.registry.malformed) == (False, 1)
    other.registry.mirror(account, text, other.now)
    assert other.locked()
    before = len(other.logged)
    other.registry.mirror(account, text, other.now)
    assert len(other.logged) == before
    well(*nodes)


def test_a_lock_that_waits_to_be_told_is_not_lifted_by_a_reply() -> None:
    """A lock of this node's that the store does not know yet stays, though replies say that there is none."""
    _, nodes = members(1)
    nodes[0].link.slow = 0.2
    nodes[0].lock()
    nodes[0].registry.mirror(nodes[0].policy.accounts.get(ANNA, nodes[0].now), None, nodes[0].now)
    pass_time(nodes, 2)
    assert nodes[0].locked()
    well(*nodes)


def test_an_unlock_that_waits_to_be_told_is_not_undone_by_a_reply() -> None:
    """While the store still has the lock that a person here has just lifted, the account stays free."""
    shared, nodes = members(1)
    nodes[0].lock()
    pass_time(nodes)
    text = shared.locks[OWN][0].decode()
    nodes[0].link.slow = 0.1
    nodes[0].unlock()
    nodes[0].registry.mirror(nodes[0].policy.accounts.get(ANNA, nodes[0].now), text, nodes[0].now)
    assert not nodes[0].locked()
    pass_time(nodes, 2)
    assert not nodes[0].locked()
    assert shared.locks == {}
    well(*nodes)


def test_what_led_to_a_lock_is_told_when_it_is_known() -> None:
    """The evidence, which is found a moment after the lock, comes to the other nodes, which do not tell it again."""
    shared, nodes = members(2, TEN)
    one, other = nodes
    by_limit(one)
    account = one.policy.accounts.get(ANNA, one.now)
    found = Evidence(None, messages=10, recipients=10, queue_ids=("4bC",))
    assert account.lock is not None
    one.policy.accounts.add_evidence(account, account.lock, found)
    pass_time(nodes, 1)
    assert other.account()["evidence"]["messages"] == 10
    assert account.lock is not None
    one.policy.accounts.add_evidence(account, account.lock, Evidence(None, messages=11))
    pass_time(nodes, 1)
    assert other.account()["evidence"]["messages"] == 11
    assert len(other.elsewhere("lock")) == 1
    shared.commands.clear()
    pass_time(nodes, 2)
    assert shared.commands == []
    well(*nodes)


def test_news_that_make_no_sense_are_counted() -> None:
    """Whatever is published under our name, nothing breaks and nobody is locked."""
    _, (node,) = members(1)
    texts = ("", "[]", "{", "{}", '{"what": "lock", "run": "x"}', '{"what": "dance", "run": "x"}', "[" * 10_000)
    odd = {"what": "lock", "run": "x", "account": ANNA, "decided": 1e300, "node": "m", "by": "x", "uid": None}
    unwritable = {**odd, "what": "unlock", "account": "\ud800", "decided": 1.0, "free": True}
    for text in (*texts, json.dumps(odd), json.dumps(unwritable), "{" + " " * 300_000 + "}"):
        node.resync.heard(text)
    pass_time([node], 0.5)
    assert node.resync.malformed == len(texts) + 3
    assert not node.locked()
    well(node)


def test_news_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more comes than can wait, in number or in bytes, it is dropped, and all is looked through instead."""
    _, (one, other) = members(2)
    other.link.listens = False
    one.lock()
    pass_time([one, other], 0.5)
    assert not other.locked()
    monkeypatch.setattr(resync, "MAX_LENGTH", 1000)
    for _ in range(6):
        other.resync.heard("[" + " " * 300)
    pass_time([one, other], 2)
    assert other.locked()
    assert other.resync.malformed == 3
    other.resync.heard(" " * 300_000)
    assert other.resync.malformed == 4
    well(one, other)


def test_allowances_are_in_force_on_all_nodes() -> None:
    """What is allowed, and what is taken back, on one node is so on all, and ends on all."""
    shared, nodes = members(2, TEN)
    one, other = nodes
    allow(one, 50, seconds=100.0, reason="mailing")
    pass_time(nodes)
    assert maximum(other) == 50
    assert listed(other) == listed(one)
    (told,) = other.elsewhere("allow")
    assert (told["account"], told["limit"], told["max"], told["node"]) == (ANNA, "messages", 50, "mail1")
    assert disallow(other) == ["messages"]
    pass_time(nodes)
    assert maximum(one) == 10
    assert [fields["node"] for fields in one.elsewhere("disallow")] == ["mail2"]
    allow(one, 60, seconds=100.0)
    pass_time(nodes, 102)
    assert (maximum(one), maximum(other)) == (10, 10)
    pass_time(nodes, resync.EVERY + 5)
    assert shared.hashes["policyd:allowances"] == {}
    well(*nodes)


@pytest.mark.parametrize("first_back", [0, 1])
def test_of_two_decisions_on_an_allowance_the_later_stands(first_back: int) -> None:
    """Whoever finds the store first: what was decided later is in force on both nodes."""
    _, nodes = members(2, TEN)
    allow(nodes[0], 15, seconds=9000.0)
    pass_time(nodes)
    for node in nodes:
        node.away()
    allow(nodes[0], 20)
    allow(nodes[0], 30, user=BERT)
    pass_time(nodes, 1)
    allow(nodes[1], 40, user=BERT)
    disallow(nodes[1])
    pass_time(nodes, 1)
    nodes[first_back].back()
    pass_time(nodes, 2)
    nodes[1 - first_back].back()
    pass_time(nodes, 3)
    assert [(maximum(node), maximum(node, user=BERT)) for node in nodes] == [(10, 40), (10, 40)]
    well(*nodes)


@pytest.mark.parametrize("taken", [True, False])
def test_of_two_allowances_at_the_same_moment_the_later_stands(*, taken: bool) -> None:
    """Where two nodes write at once, and neither sees what the other writes, what was decided later is in force."""
    shared, nodes = members(2, TEN)
    one, other = nodes
    allow(other, 15)
    pass_time(nodes)
    one.link.slow = 0.05
    allow(one, 100)
    shared.clock.advance(0.06)  # it has been read what the store has, and nothing is written yet
    if taken:
        disallow(other)
    else:
        allow(other, 20)
    pass_time(nodes, 2)
    assert (maximum(one), maximum(other)) == ((10, 10) if taken else (20, 20))
    pass_time(nodes, resync.EVERY + 5)
    assert (maximum(one), maximum(other)) == ((10, 10) if taken else (20, 20))
    well(*nodes)


def test_ten_thousand_locks_are_taken_over_in_small_pieces() -> None:
    """A node that comes to 10,000 locks does a bounded piece of work in each turn, and has all of them in the end."""
    shared, (one,) = members(1)
    one.away()
    for number in range(10_000):
        one.lock(f"{number}@example.com")
    one.back()
    for _ in range(500):
        pass_time([one], 0.1)
        if not len(one.registry.orders):
            break
    assert len(shared.locks) == 10_000
    fresh = Member(shared, "mail2")
    fresh.tick()
    most, locked, turns = 0, 0, 0
    while locked < 10_000 and turns < 10_000:
        shared.clock.advance(0.002)
        now = len(fresh.policy.accounts.locked)
        most, locked, turns = max(most, now - locked), now, turns + 1
    assert locked == 10_000
    assert most <= resync.PIECE
    assert len(fresh.registry.orders) == 0
    well(one, fresh)


def test_orders_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many wait, the oldest is lost, and it is told how many are."""
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    _, (node,) = members(1)
    node.away()
    for number in range(5):
        node.lock(f"{number}@example.com", seconds=UNTIL_UNLOCKED)
    assert (len(node.registry.orders), node.registry.orders.lost) == (3, 2)
    node.back()
    pass_time([node], 3)
    assert len(node.shared.locks) == 3
    pass_time([node], resync.EVERY + 5)
    assert len(node.shared.locks) == 5  # the look at all finds what is in force here
    well(node)


def test_an_order_that_is_found_nowhere_else_is_lost_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many wait, locks go first, which are in the table of them; an unlock stays."""
    monkeypatch.setattr(outbox, "MAX_WAITING", 2)
    shared, nodes = members(2)
    nodes[0].lock()
    pass_time(nodes)
    nodes[0].away()
    nodes[0].unlock()
    for number in range(5):
        nodes[0].lock(f"{number}@example.com", seconds=UNTIL_UNLOCKED)
    assert ANNA in nodes[0].registry.orders
    nodes[0].back()
    pass_time(nodes)
    assert (nodes[1].locked(), OWN in shared.locks) == (False, False)
    well(*nodes)


def test_an_order_waits_for_the_store_over_a_restart() -> None:
    """An unlock, a reset and what was taken back while the store was away are told by the next run of the node."""
    shared, nodes = members(2, TEN)
    one, other = nodes
    one.lock()
    allow(one, 50, user=BERT)
    other.send(3, user="carl@example.com")
    pass_time(nodes)
    one.away()
    one.unlock()
    disallow(one, user=BERT)
    one.registry.order("reset", "carl@example.com", "desk", 0)
    one.lock(user="dora@example.com")
    stored = [(*key, text) for key, text in one.facts.take_changed().items() if text is not None]
    assert len(stored) == 4  # how many nodes there are is kept, too
    shared.members.remove(one)
    again = Member(shared, "mail1", TEN, run="later")
    again.away()
    again.facts.restore(stored)
    again.registry.restored()
    again.grants.restored()
    pass_time([again, other], 2)
    again.back()
    pass_time([again, other], 3)
    assert [(node.locked(), maximum(node, user=BERT)) for node in (again, other)] == [(False, 10)] * 2
    assert other.count("carl@example.com") == 0
    assert not any(again.facts.of(registry.WAITS))
    assert not any(again.facts.of(grants.WAITS))
    well(one, other, again)


def test_an_order_waits_for_itself_alone() -> None:
    """Whoever gives one learns that the store has it, though another cannot be sent."""
    _, (node,) = members(1)
    told: list[list[bool]] = [[], []]
    call = node.link.call
    node.link.call = lambda command: fail(AwayError("wrong data")) if b"bert" in command else call(command)  # type: ignore[method-assign]
    node.lock()
    node.lock(user=BERT)
    for found, keys in zip(told, ([ANNA], None), strict=True):
        node.registry.orders.sent(keys).addCallback(found.append)
    pass_time([node])
    assert told == [[True], [False]]
    well(node)
