"""Several nodes and one store: what is let through in any window, whatever becomes of calls, connections and the store.

The bound. `max` is a limit's maximum, N the number of nodes, m the maximum by which a node goes alone: `max` with
`full`, ceil(max / N) with `share`. In no window are more than max + (N - 1) * m let through; while the store is there,
no more than max.

Proof. A node's own windows hold all that it lets through. Asked alone it stops at m of its own. Take a window, and in
it the last message that the store let through: up to then at most max were counted there, of all nodes, and with them
all that a node has let through alone and told the store before it asked again, as it does for each account. What is not
among these, a node has let through alone after all that it asked the store about, and then it had at most m by itself,
those that the store counts included. So each node adds at most m, less what the store let it through. Where all nodes
do, that makes N * m at the most; else max and (N - 1) * m. The second is never less, for m is at most max. With `share`
it is less than 2 * max where max > (N - 1) ** 2.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd import transactions
from policyd.away_rules import AwayRules
from policyd.catching_up import KEEP
from policyd.limits import Limit, Rules
from policyd.shared_calls import Outcome
from policyd.shares import Waiting
from policyd.verdict import Verdict
from policyd.wire import RequestReader
from tests.asking import ANNA, limit, override, request
from tests.sharers import Model, Node

PERIOD = 1800.0


class Several:
    """Nodes that share a store, and its clock."""

    def __init__(self, number: int, *limits: Limit, share: bool = False) -> None:
        self.now = 10_000.0
        self.server = Model(lambda: self.now)
        self.nodes = [Node(*limits, server=lambda _clock: self.server, name=f"n{place}") for place in range(number)]
        self.rules = [AwayRules(Rules(limits), self._put(node), lambda: number, share=share) for node in self.nodes]
        self.passed: list[float] = []
        self.unheard = 0
        """Calls that were carried out, and not answered."""
        for place, node in enumerate(self.nodes):
            node.net.on_away = partial(self.away, place)

    @staticmethod
    def _put(node: Node) -> Callable[[Rules], None]:
        def put(rules: Rules) -> None:
            node.policy.accounts.rules = rules

        return put

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + KEEP)
            for node in self.nodes:
                node.now = self.now
                node.go_on()

    def away(self, place: int) -> None:
        """Take the store away from a node."""
        self.rules[place].away()
        self.nodes[place].net.go_away()

    def back(self, place: int) -> None:
        """Give it back."""
        node = self.nodes[place]
        if not node.net.here:
            node.net.here = True
            self.rules[place].here()
            node.sharing.catching_up.came_back()

    def send(self, place: int) -> bool:
        """Send a message by a node; tell whether it passed."""
        passed = self.nodes[place].connection().data(1) == "DUNNO"
        self.passed += [self.now] * passed
        return passed

    def most(self) -> int:
        """Return the largest number of messages that passed in any window."""
        return max((sum(1 for time in self.passed if end - PERIOD < time <= end) for end in self.passed), default=0)

    def count(self) -> int:
        """Return what the store counts."""
        for node in self.nodes:
            node.go_on()
        counts = self.server.store.counts(ANNA)
        return (counts[0] or 0) if counts else 0


@dataclass
class Asked:
    """A connection of smtpd's to a node, whose answers may come late."""

    node: Node
    instance: str
    answers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = transactions.Connection("test")

    def ask(self, state: str = "DATA", recipients: int = 1, recipient: str = "") -> None:
        """Ask, and note the answer when it comes."""
        reader = RequestReader()
        values: dict[str, Any] = {"protocol_state": state, "recipient": recipient, "recipient_count": recipients}
        reader.receive(request(sasl_username=ANNA, instance=self.instance, client_address="192.0.2.7", **values))
        asked = reader.next_request()
        assert asked is not None
        verdict = self.node.sharing.decide(asked, self.connection, self.node.now, self._note)
        if verdict is not None:
            self._note(verdict)

    def close(self) -> None:
        """Hang up."""
        self.node.leave(self.connection)

    def _note(self, verdict: Verdict) -> None:
        self.answers.append(verdict.action)


def late(*limits: Limit) -> Node:
    """Return a node whose store takes its time."""
    node = Node(*limits)
    node.net.late = True
    return node


def stored(node: Node) -> list[int | None]:
    """Return what the store counts."""
    assert isinstance(node.server, Model)
    return node.server.store.counts(ANNA)


def deliver_all(node: Node) -> None:
    """Have all calls carried out and answered, those too that come of that."""
    while node.net.waiting:
        node.net.deliver()


# --- the bound


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_never_more_pass_than_the_bound(chance: random.Random, number: int, maximum: int, share: bool) -> None:
    """Whatever is away from whom and when, no window has more than max + (N - 1) * m; what is merged is what passed."""
    several = Several(number, limit("messages", maximum), share=share)
    alone = -(-maximum // number) if share else maximum
    for _ in range(120):
        place, what = chance.randrange(number), chance.randrange(10)
        if what == 0:
            several.away(place)
        elif what <= 2:
            several.back(place)
        elif what == 3:
            several.wait(chance.choice((1.0, 60.0, 290.0, 300.0, 900.0, 1799.0)))
        else:
            net = several.nodes[place].net
            if net.here and not net.fate and chance.randrange(4) == 0:
                net.fate.append(chance.choice(("unheard", "lost")))
                several.unheard += net.fate[0] == "unheard"
            several.send(place)
    assert several.most() <= maximum + (number - 1) * alone
    for place in range(number):
        several.nodes[place].net.fate.clear()
        several.back(place)
        several.nodes[place].sharing.catching_up.tick(list)
    expected = sum(1 for time in several.passed if several.now < time + PERIOD)
    assert expected <= several.count() <= expected + several.unheard
    assert several.unheard or several.count() == expected
    assert all(not node.bugs and not node.sharing.asking for node in several.nodes)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("number", "maximum"), [(1, 5), (2, 20), (3, 7), (4, 2)])
def test_the_bound_is_reached(number: int, maximum: int, *, share: bool) -> None:
    """One node sends all that it may, then the store goes, and all others send what they may alone."""
    several = Several(number, limit("messages", maximum), share=share)
    alone = -(-maximum // number) if share else maximum
    while several.send(0):
        pass
    for place in range(number):
        several.away(place)
    for place in range(number):
        while several.send(place):
            pass
    assert several.most() == maximum + (number - 1) * alone


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 9))
def test_never_more_pass_than_the_maximum_while_the_store_is_there(
    chance: random.Random, number: int, maximum: int
) -> None:
    """Also where calls of all nodes overlap, connections break, and requests are sent again on other ones."""
    several = Several(number, limit("messages", maximum), limit("recipients", 2 * maximum, name="recipients"))
    for node in several.nodes:
        node.net.late = True
    messages = [Asked(chance.choice(several.nodes), f"m{place}") for place in range(20)]
    for _ in range(150):
        what, message = chance.randrange(6), chance.randrange(len(messages))
        asked = messages[message]
        if what <= 2:
            waiting = [node for node in several.nodes if node.net.waiting]
            if waiting:
                chance.choice(waiting).net.deliver()
        elif what == 3 and asked.answers == [] and asked.connection not in asked.node.sharing._asking:
            asked.ask(recipients=chance.randint(1, 3))
        elif what == 4 and asked.connection in asked.node.sharing._asking:
            again = messages[message] = Asked(asked.node, asked.instance)
            again.ask()
            asked.close()
        elif what == 5:
            several.wait(chance.choice((0.0, 1.0)))
    for node in several.nodes:
        deliver_all(node)
    passed = [asked for asked in messages if asked.answers == ["DUNNO"]]
    assert len(passed) <= maximum
    counts = several.server.store.counts(ANNA)
    assert counts[:1] in ([], [len(passed)])
    assert all(not node.bugs and not node.sharing.asking for node in several.nodes)


# --- one transaction


def test_a_message_that_is_gone_before_its_reply_is_given_back() -> None:
    """The connection breaks while the store is asked: what it counted is given back there, and nobody is answered."""
    node = late(limit("messages", 5))
    asked = Asked(node, "x")
    asked.ask()
    asked.close()
    deliver_all(node)
    assert asked.answers == []
    assert stored(node) == [0]


def test_a_message_lives_on_when_it_is_asked_about_again() -> None:
    """Postfix sends the request again on another connection, before or after the first has broken: it counts once."""
    node = late(limit("messages", 5))
    first, second = Asked(node, "x"), Asked(node, "x")
    first.ask()
    second.ask()
    first.close()
    deliver_all(node)
    assert (first.answers, second.answers) == ([], ["DUNNO"])
    third = Asked(node, "x")
    third.ask()
    deliver_all(node)
    assert third.answers == ["DUNNO"]
    assert stored(node) == [1]


def test_recipients_come_back_with_the_message() -> None:
    """What was given back when a connection broke is counted again by the next request, once."""
    node = late(limit("recipients", 5))
    first = Asked(node, "x")
    for name in "ab":
        first.ask("RCPT", recipient=name)
        deliver_all(node)
    first.close()
    deliver_all(node)
    assert stored(node) == [0]
    second = Asked(node, "x")
    second.ask("RCPT", recipient="b")
    deliver_all(node)
    assert second.answers == ["DUNNO"]
    assert stored(node) == [2]


def test_an_account_that_is_locked_while_the_store_is_asked_is_refused() -> None:
    """What the store has counted for it is given back."""
    node = late(limit("messages", 5))
    asked = Asked(node, "x")
    asked.ask()
    node.net.late = False
    node.lock()
    deliver_all(node)
    assert asked.answers == ["REJECT 5.7.1 Account anna@example.com is locked: spam"]
    assert stored(node) == [0]


def test_other_rules_are_asked_about_anew() -> None:
    """Where the config is reloaded while the store is asked, the answer is that of the rules in force."""
    node = late(limit("messages", 5), limit("messages", 1, "1h", name="hourly"))
    asked = Asked(node, "x")
    asked.ask()
    node.reload(limit("messages", 1, "2h"))
    deliver_all(node)
    assert asked.answers == ["DUNNO"]
    assert stored(node) == [1]


def test_a_message_without_instance_counts_once_though_its_reply_is_lost() -> None:
    """The call is made again under the same name when the store is back."""
    node = Node(limit("messages", 5))
    node.net.fate.append("unheard")
    assert node.connection().ask(protocol_state="DATA", instance="", recipient_count=1) == "DUNNO"
    assert len(node.sharing.catching_up.waiting) == 1
    node.sharing.catching_up.tick(list)
    assert stored(node) == [1]
    assert node.sharing.catching_up.problems() == []


# --- trouble


class Garbage(Model):
    """A store that answers what makes no sense."""

    def read(self, reply: object) -> Outcome:
        """Understand nothing."""
        raise ValueError(f"{type(reply)}")


def test_what_makes_no_sense_is_answered_here_and_told_once() -> None:
    """A reply that the script cannot have given counts as none."""
    node = Node(limit("messages", 2), server=Garbage)
    assert [node.send() for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT messages 3"]
    assert len(node.told("cluster-problem")) == 1


def test_a_bug_is_told_and_the_mail_goes_on() -> None:
    """An exception that is none of the store's, in a call, leaves the answer to the node's own windows."""
    node = Node(limit("messages", 1))
    asked = Asked(node, "x")
    node.net.late = True
    asked.ask()
    _, reply = node.net.waiting.popleft()
    reply.errback(RuntimeError("oops"))
    assert asked.answers == ["DUNNO"]
    assert len(node.bugs) == 1


def test_a_bug_before_the_call_is_told_and_the_mail_goes_on() -> None:
    """The transaction is not stuck: its next request is asked about, and the store is told what it did not hear."""
    node = Node(limit("recipients", 3))
    asked = Asked(node, "x")
    node.net.fate.append("bug")
    for name in "abcd":
        asked.ask("RCPT", recipient=name)
    assert asked.answers == ["DUNNO", "DUNNO", "DUNNO", "REJECT recipients 4"]
    assert len(node.bugs) == 1
    assert node.sharing.asking == 0
    node.sharing.catching_up.tick(list)
    assert stored(node) == [3]


class Misread(Model):
    """A store whose answers nobody understands for a bug of ours, if `broken`."""

    broken = True

    def read(self, reply: object) -> Outcome:
        """Understand, or not."""
        if self.broken:
            raise RuntimeError("oops")
        return super().read(reply)


def test_a_bug_in_reading_a_reply_is_told_and_the_mail_goes_on() -> None:
    """Of a request, and of what is told when the store is back: each is told again when it can be read."""
    node = Node(limit("messages", 2), server=Misread)
    assert [node.send() for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT messages 3"]
    node.go_on()
    assert len(node.sharing.catching_up.waiting) == 3  # of the refused one too: the store may have counted it
    assert node.sharing.asking == 0
    assert node.bugs
    assert isinstance(node.server, Misread)
    node.server.broken = False
    node.now += 60
    node.go_on()
    assert stored(node) == [2]
    assert node.sharing.catching_up.problems() == []


def test_a_bug_leaves_nobody_waiting_who_waits_for_the_same_message() -> None:
    """Postfix sends the request again while the store is asked; then reading the reply, or judging anew, fails."""
    node = late(limit("messages", 5))
    first, second = Asked(node, "x"), Asked(node, "x")
    first.ask()
    second.ask()
    node.net.fate.append("bug")
    _, reply = node.net.waiting.popleft()
    reply.callback("nonsense")
    deliver_all(node)
    assert (first.answers, second.answers) == (["DUNNO"], ["DUNNO"])
    assert node.sharing.asking == 0


def test_the_oldest_of_too_many_is_lost_and_told() -> None:
    """What waits for the store is bounded; how many messages it will never know of stands in the status."""
    node = Node(limit("messages", 1000))
    node.sharing.catching_up.waiting = waiting = Waiting(3)
    node.net.here = False
    node.send(5)
    assert (len(waiting), waiting.lost) == (3, 2)
    node.sharing.catching_up.tick(list)
    assert [fields["reason"] for fields in node.told("cluster-problem")] == [
        "messages that the other servers will never know of, too many have waited: 2"
    ]
    node.net.here = True
    node.sharing.catching_up.came_back()
    node.go_on()
    assert stored(node) == [3]


def test_what_has_left_its_windows_is_not_told() -> None:
    """After a long time away there is nothing to catch up with."""
    node = Node(limit("messages", 9, "10m"))
    node.net.here = False
    node.send(4)
    node.now += 600
    made = node.net.made
    node.net.here = True
    node.sharing.catching_up.came_back()
    assert (node.net.made, len(node.sharing.catching_up.waiting)) == (made, 0)


def test_many_are_told_some_at_a_time() -> None:
    """No turn tells more than AT_ONCE, and all are told in the end."""
    node = Node(limit("messages", 5000))
    node.net.here = False
    node.send(1700)
    node.net.here = True
    turns, before = 0, node.net.made
    node.sharing.catching_up.came_back()
    while node.turns:
        assert node.net.made - before <= 500
        before = node.net.made
        node.turns.popleft()()
        turns += 1
    assert turns >= 3
    assert stored(node) == [1700]


def test_a_store_that_lost_its_data_gets_them_back_from_each_node() -> None:
    """Before an account is asked about, and by and by of all others: events, clients; each once."""
    server = Model(lambda: 10_000.0)
    limits = (limit("messages", 9), limit("recipients", 9), limit("clients", 5))
    one, two = (Node(*limits, server=lambda _clock: server, name=name) for name in ("one", "two"))
    connection = one.connection()
    connection.data(2)
    one.send(2)
    two.send(3)
    assert server.store.counts(ANNA) == [6, 7, 1]
    server.store.lose_data()
    for node in (one, two):
        node.sharing.catching_up.store_lost_data()
        node.go_on()
    assert server.store.counts(ANNA) == [6, 7, 1]
    connection.again()
    assert one.send(1) == "DUNNO"
    assert server.store.counts(ANNA) == [7, 8, 1]


def test_a_reset_forgets_what_waits() -> None:
    """What was let through before a person has reset the counts is not told any more."""
    node = Node(limit("messages", 9))
    node.net.here = False
    node.send(3)
    node.reset()
    assert len(node.sharing.catching_up.waiting) == 0


def test_shares_are_cut_from_windows_alone() -> None:
    """Maxima of windows are divided and rounded up, overrides too; those of one message stay; the way back is exact."""
    usual = Rules(
        (limit("messages", 10), limit("recipients", 100, "message", name="each")),
        (override(["bert"], messages=4),),
    )
    put: list[Rules] = []
    rules = AwayRules(usual, put.append, lambda: 3, share=True)
    rules.away()
    assert [each.max for each in put[-1].limits_for(ANNA)] == [4, 100]
    assert [each.max for each in put[-1].limits_for("bert")] == [2, 100]
    assert put[-1].limits_for(ANNA) is put[-1].limits_for("carl")
    rules.reload(Rules((limit("messages", 2),)))
    assert [each.max for each in put[-1].limits_for(ANNA)] == [1]
    rules.reload(usual)
    rules.here()
    assert put[-1] is usual
