"""Nodes that see each other: who is there, who is silent, and who goes by the same name."""

from __future__ import annotations

from typing import Any

from tests.members import Member, Shared, members, pass_time
from tests.turning import TurningClock


def seen(node: Member) -> dict[str, bool]:
    """Return the nodes that one sees, and whether each is silent."""
    return {shown["node"]: shown["silent"] for shown in node.nodes.shown()}


def test_each_node_sees_all() -> None:
    """Within a second or two each node knows the others, with version and script."""
    _, nodes = members(3)
    for node in nodes:
        assert seen(node) == {"mail1": False, "mail2": False, "mail3": False}
        assert node.nodes.now() == 3
        assert node.nodes.problem() == ""
    shown: dict[str, Any] = nodes[0].nodes.shown()[1]
    assert (shown["version"], shown["script"], shown["run"], shown["listen"]) == (
        "1",
        "abc",
        "run-mail2",
        ["tcp:10045"],
    )
    assert shown["started"] == "1970-01-01T00:00:00+00:00"
    assert shown["heard"].startswith("2026-11-23T10:46:4")


def test_a_silent_node_is_told_so_and_forgotten_after_an_hour() -> None:
    """After 5 s a node is silent, after 10 it does not count among those that share, after an hour it is forgotten."""
    _, nodes = members(2)
    nodes[1].away()
    pass_time(nodes, 7)
    assert seen(nodes[0]) == {"mail1": False, "mail2": True}
    assert nodes[0].nodes.now() == 2
    pass_time(nodes, 5)
    assert nodes[0].nodes.now() == 1
    nodes[0].now += 3600
    pass_time(nodes, 3)
    assert seen(nodes[0]) == {"mail1": False}
    assert list(nodes[0].shared.hashes["policyd:nodes"]) == ["mail1"]


def test_while_the_store_is_away_the_number_of_nodes_is_the_last_known() -> None:
    """A node that is alone shares the maxima with as many as there were."""
    _, nodes = members(3)
    for node in nodes:
        node.away()
    pass_time(nodes, 60)
    assert [node.nodes.now() for node in nodes] == [3, 3, 3]


def test_the_number_of_nodes_is_known_again_after_a_restart() -> None:
    """A node that starts while the store is away shares the maxima with as many as there were."""
    shared, nodes = members(3)
    again = Member(shared, "mail1", run="later")
    assert again.nodes.now() == 1
    again.facts.restore((*key, text) for key, text in nodes[0].facts.take_changed().items() if text is not None)
    again.away()
    pass_time([again], 2)
    assert again.nodes.now() == 3


def test_a_node_ahead_of_the_stores_clock_is_silent_all_the_same() -> None:
    """What was written by another clock does not make a node that is gone one that is there."""
    shared, nodes = members(2)
    nodes[1].away()
    shared.ahead -= 100.0
    pass_time(nodes, 2)
    assert seen(nodes[0]) == {"mail1": False, "mail2": True}
    assert nodes[0].nodes.now() == 1
    assert nodes[0].nodes.fresh() == ["mail1"]


def test_a_node_that_ends_is_gone_at_once() -> None:
    """Nobody waits for the answers of a node that has said that it ends; where it cannot say so, nothing breaks."""
    shared, nodes = members(3)
    nodes[2].away()
    for node in nodes[1:]:
        node.nodes.leave()
    pass_time(nodes, 2)
    assert sorted(shared.hashes["policyd:nodes"]) == ["mail1", "mail3"]
    assert nodes[0].nodes.fresh() == ["mail1", "mail3"]
    assert [node.bugs for node in nodes] == [[], [], []]


def test_two_daemons_of_one_name_are_a_problem() -> None:
    """Both say so, and what to do, until one of them is gone for a while."""
    shared, (one,) = members(1)
    twin = Member(shared, "mail1", run="twin")
    for _ in range(4):
        for node in (one, twin):
            node.nodes.tick()
            pass_time([node], 0.3)
    for node in (one, twin):
        assert node.nodes.problem().startswith("another daemon, which listens on tcp:10045, calls itself mail1")
    twin.away()
    pass_time([one], 15)
    assert one.nodes.problem() == ""


def test_a_daemon_that_was_restarted_is_no_twin() -> None:
    """What the run before has left in the store is no other daemon."""
    shared, nodes = members(1)
    nodes[0].away()
    again = Member(shared, "mail1", run="later")
    pass_time([again], 5)
    assert again.nodes.problem() == ""


def test_what_no_node_has_written_is_counted_and_left_out() -> None:
    """Garbage among the nodes hides none of them."""
    shared, (node,) = members(1)
    wrong = (b"", b"[]", b"{}", b'{"run": 1, "heard": 2}', b'{"run": "x", "heard": 1e300}', b"\xff")
    for number, text in enumerate((*wrong, b'{"run": "x", "heard": 2, "listen": 3}')):
        shared.hashes["policyd:nodes"][f"odd{number}"] = text
    pass_time([node], 2)
    assert (seen(node), node.nodes.malformed) == ({"mail1": False}, 7)
    assert node.bugs == []


def test_the_stores_clock_is_learned() -> None:
    """A node whose clock is wrong knows what time the store has."""
    shared = Shared(TurningClock(), ahead=5_000_000.0)
    node = Member(shared, "mail1")
    pass_time([node], 3)
    assert abs(node.node.clock.at(node.now) - (node.now + 5_000_000.0)) < 0.1
