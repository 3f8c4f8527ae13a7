"""One node with a store that is always there answers as a policy does that counts in memory, to the word."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.limits import Count
from tests.asking import seeded
from tests.oracle import Asked
from tests.sharers import Node, Real
from tests.stores import Client, Process
from tests.test_counting import COUNTS, HOOKS, NUMBERED, Play, Smtpd

_PREFIXES = (f"p{number}" for number in count())


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Return a connection to a real store."""
    process = Process()
    client = process.client()
    try:
        yield client
    finally:
        client.close()
        process.close()


def in_a_real_store(client: Client) -> Callable[..., Node]:
    """Return what makes a node whose store is a real one, and empty."""
    return partial(Node, server=lambda clock: Real(client, next(_PREFIXES), clock))


class SharedPlay(Play):
    """A play in which nobody asks about a message on another connection after 300 s.

    Then a policy in memory takes it for another message, and the store may take it for the same for as long again.
    """

    def ask(self, smtpd: Smtpd, asked: Asked) -> str:
        """Ask both, and compare their answers."""
        if smtpd.connection is None and smtpd.last and self.mail.now >= smtpd.at + 300.0:
            self.next_message(smtpd)
            return "REJECT"
        return super().ask(smtpd, asked)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from((NUMBERED, COUNTS, ("bytes",))), st.integers(1, 60))
def test_answers_are_those_of_lists(chance: random.Random, counts: tuple[Count, ...], length: int) -> None:
    """Every answer, count and tally is the one that lists of all events give, at every moment."""
    play = SharedPlay(chance, counts, mail=Node)
    for _ in range(length):
        play.go_on()


@pytest.mark.parametrize("counts", [NUMBERED, COUNTS, ("bytes",), ("bytes", "messages")])
@pytest.mark.parametrize("seed", range(10))
def test_answers_are_those_of_lists_for_long(seed: int, counts: tuple[Count, ...]) -> None:
    """The same over thousands of events."""
    play = SharedPlay(seeded(seed), counts, HOOKS if seed % 2 else HOOKS[2:3] + HOOKS[4:], mail=Node)
    for _ in range(2000):
        play.go_on()
    assert isinstance(play.mail, Node)
    assert play.mail.bugs == []
    assert not play.mail.late


@pytest.mark.parametrize("counts", [NUMBERED, COUNTS, ("bytes",)])
@pytest.mark.parametrize("seed", range(5))
def test_answers_are_those_of_lists_with_a_real_store(seed: int, counts: tuple[Count, ...], client: Client) -> None:
    """The same with a real store, which counts by its script."""
    hooks = HOOKS if seed % 2 else HOOKS[2:3] + HOOKS[4:]
    play = SharedPlay(seeded(seed), counts, hooks, mail=in_a_real_store(client))
    for _ in range(1000):
        play.go_on()
