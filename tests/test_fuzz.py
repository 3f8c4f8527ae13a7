"""A short run of `python -m tests.fuzz`, and what its long ones have found."""

from __future__ import annotations

from tests.fuzz import World, recorded


def test_no_mutated_request_breaks_a_law() -> None:
    """20,000 requests, the same at every run: no exception, valid replies, bounded tables, sums that are right."""
    outcome = World(seed=1).run(20_000)
    assert outcome.answered > 10_000
    assert outcome.malformed > 1000


def test_every_recorded_request_is_answered() -> None:
    """What Postfix has sent, and each input that was a finding once, gets one reply."""
    for data in recorded():
        assert World(seed=1).feed(data).count(b"\n\n") == 1
