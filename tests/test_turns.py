"""Long work in the turns of a reactor: how much of it in one, what comes first, and what is given up."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from twisted.internet.defer import CancelledError, Deferred

from policyd.turns import PIECES, SHARE, Turns
from tests.turning import TurningClock, result


class World:
    """A clock that a test moves, and all that was done by then."""

    def __init__(self) -> None:
        self.clock = TurningClock()
        self.turns = Turns(self.clock)
        self.done: list[str] = []

    def work(self, name: str, pieces: int, seconds: float = 0.0) -> Iterator[str]:
        """Yield that many pieces, each of which takes that long."""
        for number in range(pieces):
            self.done.append(name)
            self.clock.work(seconds)
            yield f"{name}{number} "

    def take(self, name: str, pieces: int, *, order: bool = False, seconds: float = 0.0) -> Deferred[list[bytes]]:
        """Have work done."""
        return self.turns.take(self.work(name, pieces, seconds), order=order)

    def turn(self) -> None:
        """Let the reactor go round once."""
        self.clock.turn()


@pytest.fixture
def world() -> World:
    """Begin with no work."""
    return World()


def test_work_is_done_in_later_turns(world: World) -> None:
    """Nothing at once, and all of it in the end."""
    done = world.take("a", 3)
    assert world.done == []
    world.turn()
    assert result(done) == [b"a0 ", b"a1 ", b"a2 "]


def test_what_was_made_is_kept_without_what_is_empty(world: World) -> None:
    """Pieces that make nothing leave nothing behind."""
    done = world.turns.take(iter(["", "ä", "", "b"]), order=False)
    world.turn()
    assert result(done) == ["ä".encode(), b"b"]


def test_a_turn_ends_when_its_share_is_over(world: World) -> None:
    """The piece that is begun is ended."""
    world.take("a", 1000, seconds=SHARE / 4)
    for number in range(1, 4):
        world.turn()
        assert len(world.done) == 4 * number


def test_a_turn_has_so_many_pieces_at_the_most(world: World) -> None:
    """Even where the clock stands still."""
    world.take("a", 2 * PIECES)
    world.turn()
    assert len(world.done) == PIECES


def test_a_turn_is_not_longer_for_many_works(world: World) -> None:
    """They are done one after the other, the first first."""
    for name in "abc":
        world.take(name, 3, seconds=SHARE)
    for number in range(9):
        world.turn()
        assert "".join(world.done) == "aaabbbccc"[: number + 1]


def test_an_order_is_done_before_questions(world: World) -> None:
    """A question that has begun waits; of orders the first is first."""
    world.take("question", 2, seconds=SHARE)
    world.turn()
    world.take("first", 2, order=True, seconds=SHARE)
    world.take("second", 1, order=True, seconds=SHARE)
    for _ in range(6):
        world.turn()
    assert world.done == ["question", "first", "first", "second", "question"]


def test_what_is_given_up_is_not_done(world: World) -> None:
    """Begun or not; what waits behind it goes on."""
    begun, waiting, last = world.take("a", 9, seconds=SHARE), world.take("b", 9), world.take("c", 1)
    world.turn()
    for given_up in (begun, waiting):
        given_up.cancel()
        given_up.addErrback(lambda failure: failure.trap(CancelledError))
    world.turn()
    assert world.done == ["a", "c"]
    assert result(last) == [b"c0 "]


def test_to_give_up_what_is_done_changes_nothing(world: World) -> None:
    """Who hangs up after the answer has it."""
    done = world.take("a", 1)
    world.turn()
    done.cancel()
    assert result(done) == [b"a0 "]


def test_an_error_is_told_to_who_waits(world: World) -> None:
    """And the others' work is done."""

    def fail() -> Iterator[str]:
        yield "x"
        raise ValueError("a bug")

    failed = world.turns.take(fail(), order=False)
    good = world.take("a", 1)
    world.turn()
    assert result(failed.addErrback(lambda failure: failure.check(ValueError)))
    assert result(good) == [b"a0 "]


def test_without_work_there_are_no_turns(world: World) -> None:
    """An idle daemon sleeps; and it wakes for new work."""
    for name in "ab":
        done = world.take(name, 1)
        world.turn()
        world.turn()
        assert world.clock.getDelayedCalls() == []
        assert result(done)


def test_what_is_made_anew_is_not_left_to_one_long_collection(world: World) -> None:
    """Where as much is freed as is made, Python does not look through it; in the end it would, all at once."""
    table: list[list[int]] = [[] for _ in range(300 * PIECES)]

    def renewing() -> Iterator[str]:
        for start in range(0, len(table), 100):
            table[start : start + 100] = [[] for _ in range(100)]
            yield ""

    done = world.turns.take(renewing(), order=True)
    while not done.called:
        world.turn()
    young = {id(thing) for generation in (0, 1) for thing in gc.get_objects(generation)}
    assert sum(id(row) in young for row in table) <= 100 * PIECES
