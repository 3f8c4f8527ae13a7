"""policyctl on a node of a cluster: what it shows is the whole cluster's, and its orders hold everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from policyd import gathering
from policyd.calls import RefusedError
from policyd.history import Message
from policyd.shared_desk import TOLD
from tests.asking import ANNA, BERT, limit, seeded
from tests.members import Member, members, pass_time

MANY = limit("messages", 500)
LIST = [MANY, limit("recipients", 900)]


def well(nodes: Sequence[Member]) -> None:
    """Look that nothing went wrong behind the scenes, and all messages made sense."""
    assert [node.bugs for node in nodes] == [[] for _ in nodes]
    assert [node.api.gathering.malformed for node in nodes] == [0 for _ in nodes]


def sent(found: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the names in a list of accounts, each with its first count."""
    return [(shown["account"], shown["limits"][0]["count"]) for shown in found]


def test_a_node_without_clients_shows_the_top_senders_of_the_others() -> None:
    """`policyctl accounts` is the cluster's: counts are summed up, and so is what was refused."""
    _, nodes = members(3, MANY)
    nodes[0].send(300)
    nodes[1].send(300)
    nodes[1].send(7, user=BERT)
    nodes[0].policy.accounts.get(ANNA, nodes[0].now).refused = 2
    nodes[1].policy.accounts.get(ANNA, nodes[1].now).refused = 3
    found = nodes[2].call("GET", "/accounts")
    assert sent(found) == [(ANNA, 600), (BERT, 7)]
    assert (found[0]["refused"], found[0]["held"], found[0]["locked"]) == (5, 0, False)
    by_refused = nodes[2].call("GET", "/accounts", sort="refused", n=1)
    assert [(shown["account"], shown["refused"]) for shown in by_refused] == [(ANNA, 5)]
    assert nodes[2].call("GET", "/accounts", n=0) == []
    well(nodes)


def test_who_is_over_a_share_only_with_all_nodes_together_is_found() -> None:
    """An account at 40% on one node and at 50% on another is over 80%."""
    _, nodes = members(2, MANY)
    nodes[0].send(200)
    nodes[1].send(250)
    nodes[1].send(390, user=BERT)
    assert sent(nodes[0].call("GET", "/accounts", over=80)) == [(ANNA, 450)]
    well(nodes)


@pytest.mark.parametrize("seed", range(10))
def test_nobody_is_missed_by_the_threshold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the mail is spread over the nodes, the list is that of one node that has seen all."""
    from policyd import shared_top  # noqa: PLC0415 -- to make its lists short

    monkeypatch.setattr(shared_top, "LEAST", 2)
    chance = seeded(seed)
    _, nodes = members(3, limit("messages", None))
    total: dict[str, int] = {}
    for number in range(60):
        name = f"{number}@example.com"
        for node in nodes:
            if count := chance.choice([0, 0, 1, 2, 3, 5, chance.randrange(12)]):
                node.send(count, user=name)
                total[name] = total.get(name, 0) + count
    best = sorted(total.values(), reverse=True)
    for most in (1, 3, 10):
        found = sent(nodes[chance.randrange(3)].call("GET", "/accounts", n=most))
        assert [count for _, count in found] == best[:most]
        assert all(total[name] == count for name, count in found)
    well(nodes)


def test_the_list_is_this_nodes_while_the_store_is_away() -> None:
    """Without the store each command answers at once, from what this node knows."""
    _, nodes = members(2, MANY)
    nodes[0].send(3)
    nodes[1].send(4, user=BERT)
    for node in nodes:
        node.away()
    assert sent(nodes[0].call("GET", "/accounts", patience=0)) == [(ANNA, 3)]
    account = nodes[0].call("GET", "/status", account=ANNA)
    assert account["limits"][0]["count"] == 3
    assert account["cluster"] == {"node": "mail1", "here": False, "answered": ["mail1"], "silent": []}
    well(nodes)


def test_an_account_is_shown_as_the_cluster_has_it() -> None:
    """`policyctl status ACCOUNT`: the store's counts, tallies of all nodes summed up, the latest clients of all."""
    _, nodes = members(3, *LIST)
    nodes[0].send(5, recipients=2)
    nodes[1].send(6)
    for place, node in enumerate(nodes[:2]):
        account = node.policy.accounts.get(ANNA, node.now)
        account.refused, account.held, account.attempts_while_locked = 1 + place, 2, 3
        account.note_client(b"198.51.100.%d" % place, node.now - place)
    account_shown = nodes[2].call("GET", "/status", account=ANNA)
    assert [shown["count"] for shown in account_shown["limits"]] == [11, 16]
    assert [account_shown[key] for key in ("seen", "refused", "held", "attempts_while_locked")] == [True, 3, 4, 6]
    addresses = [client["address"] for client in account_shown["clients"]]
    assert sorted(addresses) == ["192.0.2.7", "198.51.100.0", "198.51.100.1"]
    assert account_shown["cluster"]["answered"] == ["mail3", "mail1", "mail2"]
    unknown = nodes[2].call("GET", "/status", account="nobody@example.com")
    assert (unknown["seen"], unknown["clients"], unknown["refused"]) == (False, [], 0)
    well(nodes)


def test_who_does_not_answer_in_time_is_named() -> None:
    """A node that hears no questions is waited for half a second, and is told to be silent."""
    _, nodes = members(3, MANY)
    nodes[1].send(5)
    nodes[2].link.listens = False
    began = nodes[0].now
    shown = nodes[0].call("GET", "/status", account=ANNA)
    assert shown["cluster"]["silent"] == ["mail3"]
    assert shown["limits"][0]["count"] == 5
    assert nodes[0].now - began < 2 * gathering.PATIENCE
    well(nodes)


def message(at: float, account: str = ANNA) -> Message:
    """Return a message of the history."""
    return Message(account, at, at, f"4b{at:g}", "192.0.2.7", account, 1, 0, "passed", "DUNNO", None, False)


def test_the_history_is_that_of_all_nodes() -> None:
    """Messages of all nodes, the latest first, each with the node that it came through."""
    _, nodes = members(2, MANY)
    nodes[0].listed = [message(at) for at in (9.0, 5.0)]
    nodes[1].listed = [message(at) for at in (8.0, 6.0)] + [message(7.0, BERT)]
    value = nodes[0].call("GET", "/history", account=ANNA, n="3")
    found = [(each["queue_id"], each["node"]) for each in value["messages"]]
    assert found == [("4b9", "mail1"), ("4b8", "mail2"), ("4b6", "mail2")]
    assert value["more"] is True
    assert value["cluster"]["silent"] == []
    assert nodes[0].call("GET", "/history", account=ANNA, n="4")["more"] is False
    well(nodes)


def test_a_long_history_comes_in_parts() -> None:
    """Thousands of messages are no single message of the store's, and none is missing."""
    _, nodes = members(2, MANY)
    nodes[1].listed = [message(float(at)) for at in range(5000, 0, -1)]
    value = nodes[0].call("GET", "/history", account=ANNA, n="5000", patience=20)
    assert [each["queue_id"] for each in value["messages"]] == [f"4b{at:g}" for at in range(5000, 0, -1)]
    well(nodes)


def test_queue_ids_are_looked_for_on_this_machine_alone() -> None:
    """Another machine's Postfix may have given the same queue id: what `policyctl queue` asks stays here."""
    _, nodes = members(2, MANY)
    nodes[0].listed, nodes[1].listed = [message(9.0)], [message(8.0)]
    assert len(nodes[0].call("GET", "/history", queue_id=["4b9"])["messages"]) == 1
    assert len(nodes[0].call("GET", "/history", account=ANNA, local="1")["messages"]) == 1
    well(nodes)


def test_orders_say_whether_the_store_knows_of_them() -> None:
    """Each order's answer tells whether the other nodes know already, or are told when the store is back."""
    _, nodes = members(2, MANY)
    given = {"account": ANNA, "limit": "messages", "max": 9, "for": "1h"}
    orders: list[tuple[str, dict[str, Any]]] = [
        ("/lock", {"account": ANNA, "reason": "spam"}),
        ("/unlock", {"accounts": [ANNA, BERT]}),
        ("/reset", {"account": ANNA}),
        ("/allow", given),
        ("/disallow", {"account": ANNA}),
    ]
    for path, values in orders:
        assert nodes[0].call("POST", path, **values)["shared"] is True
    nodes[0].away()
    for path, values in orders:
        assert nodes[0].call("POST", path, **values)["shared"] is False
    nodes[0].back()
    pass_time(nodes, 2)
    well(nodes)


def test_an_order_is_answered_though_the_store_takes_long_to_be_told() -> None:
    """Who has given it waits no longer than TOLD, and reads that the others may not know yet."""
    _, nodes = members(2, MANY)
    nodes[0].link.slow = 2 * TOLD
    done = nodes[0].call("POST", "/lock", patience=TOLD + 0.1, account=ANNA, reason="spam")
    assert done["shared"] is False
    well(nodes)


def test_an_unlock_by_any_node_tells_who_was_locked() -> None:
    """The answer is that of one daemon, though another node had locked the account."""
    _, nodes = members(2, MANY)
    nodes[0].call("POST", "/lock", account=ANNA, reason="spam")
    pass_time(nodes)
    done = nodes[1].call("POST", "/unlock", accounts=[ANNA, BERT])
    assert done == {"unlocked": [ANNA], "free": [BERT], "held": [], "shared": True}
    well(nodes)


def test_an_account_that_only_another_node_has_seen_is_reset() -> None:
    """A reset forgets the counts in the store and on all nodes, and knows that there were some."""
    shared, nodes = members(2, MANY)
    nodes[0].send(5)
    assert nodes[1].call("POST", "/reset", account=ANNA) == {"account": ANNA, "seen": True, "shared": True}
    pass_time(nodes)
    assert nodes[0].count() == 0
    assert shared.resets == ["policyd:{anna@example.com}:l"]
    assert nodes[1].call("POST", "/reset", account="nobody@example.com")["seen"] is False
    well(nodes)


def test_status_tells_of_the_cluster() -> None:
    """`policyctl status` names the nodes, and what of the store is not as it should be."""
    _, nodes = members(2, MANY)
    value = nodes[0].call("GET", "/status")
    cluster = value["cluster"]
    assert value["problems"] == []
    assert [cluster[key] for key in ("store", "prefix", "node", "here")] == ["redis://x", "policyd", "mail1", True]
    assert [(node["node"], node["silent"]) for node in cluster["nodes"]] == [("mail1", False), ("mail2", False)]
    assert (cluster["unshared"], cluster["orders"]) == ({"waiting": 0, "lost": 0}, {"waiting": 0})
    nodes[0].away()
    nodes[0].lock()
    cluster = nodes[0].call("GET", "/status")["cluster"]
    assert (cluster["here"], cluster["orders"]) == (False, {"waiting": 1})
    assert len(cluster["nodes"]) == 2


def test_questions_and_answers_that_make_no_sense_are_counted() -> None:
    """Whatever is published on our channels, nothing breaks, and the next question is answered."""
    _, nodes = members(2, MANY)
    ask, answer = (channel.encode() for channel in nodes[0].api.gathering.channels)
    good = {"what": "top", "id": "x", "node": "mail2", "run": "y", "sort": "messages", "most": 3, "over": None}
    wrong: list[dict[str, Any]] = [{"sort": "colour"}, {"most": -1}, {"most": True}, {"most": 10**9}, {"over": "x"}]
    wrong += [{"what": "dance"}, {"what": "tallies"}, {"what": "tallies", "names": [1]}, {"what": "account"}]
    wrong += [{"what": "history"}, {"run": 3}, {"id": "x" * 1000}, {"what": 5}]
    wrong += [{"node": "x" * 1000}, {"run": "x" * 1000}]
    for change in wrong:
        nodes[0].api.gathering.heard(ask, json.dumps({**good, **change}).encode())
    for text in (b"", b"{", b"[]", b"\xff", b'{"id": "x"}', b"1" * (gathering.MAX_PART + 1)):
        nodes[0].api.gathering.heard(answer, text)
        nodes[0].api.gathering.heard(ask, text)
    pass_time(nodes)
    assert nodes[0].api.gathering.malformed == len(wrong) + 12
    assert nodes[0].bugs == []
    nodes[0].send(2)
    assert sent(nodes[1].call("GET", "/accounts")) == [(ANNA, 2)]


def test_questions_are_refused_as_one_daemon_does() -> None:
    """What makes no sense to one daemon makes none to a cluster."""
    _, nodes = members(2, MANY)
    wrong: list[tuple[str, dict[str, Any]]] = [("/accounts", {"sort": "colour"}), ("/history", {}), ("/lock", {})]
    for path, values in wrong:
        with pytest.raises(RefusedError):
            nodes[0].call("POST" if path == "/lock" else "GET", path, **values)


def test_a_million_answers_are_worked_off_in_turns() -> None:
    """A question about all accounts is answered in pieces: no turn looks at more than a few hundred."""
    _, nodes = members(2, MANY)
    for number in range(3000):
        nodes[1].policy.accounts.get(f"{number}@example.com", nodes[1].now)
    question = {"what": "top", "id": "x", "node": "mail1", "run": "y", "sort": "messages", "most": 3, "over": None}
    nodes[1].api.gathering.heard(b"policyd:ask", json.dumps(question).encode())
    nodes[1].shared.commands.clear()
    nodes[1].clock.advance(0.0001)
    assert nodes[1].shared.commands == []
    pass_time(nodes, 1)
    assert nodes[1].shared.commands == ["PUBLISH"]
    well(nodes)
