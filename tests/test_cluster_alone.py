"""A node put together as the daemon does it, over a store that is played: it comes, goes, and loses its data."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from policyd.cluster import GENERATION, Cluster, Parts
from policyd.facts import Facts
from policyd.sections_cluster import ClusterConfig, parse_store
from tests.asking import Mail
from tests.turning import TurningClock


class Joined(Mail):
    """A node; nothing is sent anywhere."""

    def __init__(self, has: bytes, **facts: str) -> None:
        super().__init__()
        self.clock = TurningClock()
        self.said: list[str] = []
        self.bugs = 0
        self.generation = has
        self.facts = Facts()
        for kind, text in facts.items():
            self.facts.put(kind, "", text)
        parts = Parts(
            self.policy,
            self.clock,
            lambda _word, fields: self.said.append(str(fields.get("reason", ""))),
            self._bug,
            self.to_wall,
            lambda: None,
            "mail1",
            dict,
            self.facts,
        )
        config = ClusterConfig(parse_store("redis://127.0.0.1:1/0"))
        self.cluster = Cluster(config, parts)
        link: Any = self.cluster._link
        link.here, link.command, link.call = True, self._command, lambda _command: Deferred()

    def tick(self) -> None:
        """Do what the daemon does each second."""
        self.cluster.tick()
        self.clock.advance(1.0)

    def lost(self) -> int:
        """Return how often it was said that the store has lost its data."""
        return sum(reason.startswith("the store has lost") for reason in self.said)

    def _command(self, *words: bytes | str | float) -> Deferred[Any]:
        return succeed(self.generation) if words[0] in ("GET", "SET") else Deferred()

    def _bug(self) -> None:
        self.bugs += 1


def test_what_fails_when_the_store_is_back_is_tried_again() -> None:
    """A bug is told, and a second later the node goes by the store all the same."""
    node = Joined(b"first")
    catching_up: Any = node.cluster.sharing.catching_up
    came_back, calls = catching_up.came_back, list[bool]()

    def failing() -> None:
        calls.append(node.cluster._is_here())
        if len(calls) == 1:
            raise RuntimeError
        came_back()

    catching_up.came_back = failing
    node.tick()
    assert (calls, node.bugs, node.cluster._is_here()) == ([True], 1, False)
    for _ in range(3):
        node.tick()
    assert (calls, node.bugs, node.cluster._is_here()) == ([True, True], 1, True)


def test_a_store_that_is_another_than_before_the_restart_has_lost_its_data() -> None:
    """Only where it is known that it was another; it is told once, and then is the one that is known."""
    first, same, other = Joined(b"a"), Joined(b"a", generation="a"), Joined(b"b", generation="a")
    for node in (first, same, other):
        for _ in range(4):
            node.tick()
    assert [node.lost() for node in (first, same, other)] == [0, 0, 1]
    assert [node.facts.get(GENERATION) for node in (first, same, other)] == ["a", "a", "b"]
    assert [node.bugs for node in (first, same, other)] == [0, 0, 0]


def test_a_database_that_is_read_late_tells_of_the_store_before_too() -> None:
    """Where it could not be read at the start, it is found out then that the store has lost its data."""
    node = Joined(b"b")
    node.tick()
    node.facts.restore([(GENERATION, "", "a")])
    assert node.lost() == 1
    assert node.facts.get(GENERATION) == "b"
