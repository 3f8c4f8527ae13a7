"""Orders to reload, and the readings of the config that they share: nothing is lost or answered too early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from policyd.config import Config, ConfigError, ConfigProblem
from policyd.reloading import LINES, Reading, Reloaded, Reloading, in_thread
from tests.asking import EPOCH
from tests.turning import TurningClock

HOUSE = Config()


def reading(maximum: int) -> Reading:
    """Return the reading of a file that changes something."""
    config = replace(HOUSE, max_accounts=maximum)
    return Reading(config, config.rules(), [f"max_accounts: {maximum}"])


def errors(number: int = 1) -> ConfigError:
    """Return what is wrong with a file."""
    return ConfigError(ConfigProblem("x.yaml", line, "limits", "want sense") for line in range(1, number + 1))


class World:
    """A file, a thread that a test ends by hand, and all that was told."""

    def __init__(self) -> None:
        self.clock = TurningClock()
        self.told: list[str] = []
        self.lines: list[tuple[str, Mapping[str, object]]] = []
        self.in_force = 0
        self.file = 0
        self._seen = 0
        self._threads: list[Deferred[Reading]] = []
        self.reloading = Reloading(
            self.clock,
            self._begin,
            self._in_thread,
            self._apply,
            lambda: self.told.append("ready"),
            lambda word, fields: self.lines.append((word, fields)),
            lambda: EPOCH,
        )

    def order(self, by: str = "anna") -> list[Any]:
        """Give an order; what it is answered is in the list when it is."""
        answered: list[Any] = []
        self.reloading.order(by, 7).addBoth(answered.append)
        return answered

    def read(self, outcome: Reading | Exception | None = None) -> None:
        """Have the thread end, by default with what was in the file when it began."""
        (thread,), self._threads = self._threads, []
        found = outcome or reading(self._seen)
        thread.callback(Failure(found) if isinstance(found, Exception) else found)

    def _begin(self) -> Callable[[], Reading]:
        self.told.append("reloading")
        self._seen = self.file
        return lambda: reading(self._seen)

    def _in_thread(self, _read: Callable[[], Reading]) -> Deferred[Reading]:
        thread: Deferred[Reading] = Deferred()
        self._threads.append(thread)
        return thread

    def _apply(self, found: Reading) -> Reloaded:
        self.in_force = found.config.max_accounts
        return Reloaded(found.changed, ["listen"])


@pytest.fixture
def world() -> World:
    """Begin with a file that was never read."""
    return World()


def test_an_order_is_answered_when_the_config_is_in_force(world: World) -> None:
    """Not before it is read; the manager is told before and after."""
    world.file = 5
    answered = world.order()
    assert (answered, world.told) == ([], ["reloading"])
    world.read()
    assert answered == [(["max_accounts: 5"], ["listen"])]
    assert (world.in_force, world.told) == (5, ["reloading", "ready"])
    told = {"by": "anna", "uid": 7, "changed": "max_accounts: 5", "needs_restart": "listen"}
    assert world.lines == [("reload", told)]


def test_an_order_that_comes_during_a_reading_waits_for_its_own(world: World) -> None:
    """The file may have been written since that one began."""
    world.file = 1
    first = world.order()
    world.file = 2
    second = world.order()
    world.read()
    assert (len(first), len(second), world.in_force) == (1, 0, 1)
    world.read()
    assert (second[0].changed, world.in_force) == (["max_accounts: 2"], 2)
    assert world.told == ["reloading", "ready"] * 2


def test_orders_that_wait_share_a_reading(world: World) -> None:
    """A hundred of them; each is answered, and is a line of the log."""
    world.order()
    waiting = [world.order(f"user{number}") for number in range(100)]
    world.file = 3
    world.read()
    world.read()
    assert [len(answered) for answered in waiting] == [1] * 100
    assert world.told == ["reloading", "ready"] * 2
    assert [fields["by"] for _, fields in world.lines] == ["anna", *(f"user{number}" for number in range(100))]


def test_one_reading_is_as_good_as_the_next(world: World) -> None:
    """When all orders are answered, the next begins anew; so does one that is given upon an answer."""
    again: list[list[Any]] = []
    world.reloading.order("anna").addCallback(lambda _: again.append(world.order()))
    world.read()
    world.read()
    third = world.order()
    world.read()
    assert len(again[0]) == len(third) == 1
    assert world.told == ["reloading", "ready"] * 3


def test_errors_are_told_to_all_who_wait(world: World) -> None:
    """Each has its lines in the log, nothing is in force, and the problem stays until a good config is read."""
    world.order()
    waiting = [world.order(), world.order("bert")]
    world.read()
    world.read(errors(2))
    for (failure,) in waiting:
        assert failure.check(ConfigError)
        assert len(failure.value.problems) == 2
    assert [(word, fields["by"]) for word, fields in world.lines[1:]] == [
        ("reload-failed", by) for by in ("anna", "anna", "bert", "bert")
    ]
    since = "2026-11-23T08:00:00+00:00"
    assert world.reloading.problem == (
        f"the config has errors since {since}, and the old one is in force: x.yaml:1: limits: want sense"
    )
    assert world.told[-1] == "ready"
    world.order()
    world.read()
    assert world.reloading.problem == ""


def test_a_bug_is_told_to_who_waits_and_does_not_stop_the_next(world: World) -> None:
    """Whatever goes wrong, the manager is told that all is ready, and another order is carried out."""
    failed, waiting = world.order(), world.order()
    world.read(ZeroDivisionError("a bug"))
    assert failed[0].check(ZeroDivisionError)
    assert world.told == ["reloading", "ready", "reloading"]
    world.read()
    assert waiting[0].changed


def test_thousands_of_errors_are_not_logged_in_one_turn(world: World) -> None:
    """Requests are answered in between, and all are in the log before the answer."""
    answered = world.order()
    world.read(errors(3 * LINES + 1))
    for number in range(1, 4):
        assert (len(world.lines), answered) == (number * LINES, [])
        world.clock.turn()
    assert len(world.lines) == 3 * LINES + 1
    assert answered[0].check(ConfigError)


class FromThread:
    """A reactor that is called from another thread."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:  # noqa: N802 -- Twisted's
        """Note what is to be called."""
        self.calls.append((function, arguments))
        self.called.set()


@pytest.mark.parametrize("wrong", [False, True])
def test_what_takes_long_is_done_in_another_thread(wrong: bool) -> None:
    """What it returns, or raises, comes back in the reactor's."""
    reactor = FromThread()

    def work() -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert threading.current_thread().daemon, "the end would wait for it"
        return 1 // (not wrong)

    outcome: list[Any] = []
    in_thread(reactor, work).addBoth(outcome.append)  # type: ignore[arg-type]  # it has what is wanted of one
    assert reactor.called.wait(10)
    assert outcome == []
    for function, arguments in reactor.calls:
        function(*arguments)
    assert outcome[0].check(ZeroDivisionError) if wrong else outcome == [1]
