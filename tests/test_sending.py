"""When notices are sent: after the answers, when the disk has them, and never two ways at once; on a clock of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor

from policyd.notices import Notice
from policyd.notifying import Notifying
from policyd.relay import NotSentError, look_up_apart, said, within
from tests.asking import ANNA, BERT
from tests.daemon import free_port
from tests.telling import Telling, config
from tests.turning import TurningClock, result

COMMAND_CONFIG = "command: [/bin/true]"


class Desk:
    """A daemon's notices with one channel, whose commands end when the test says so."""

    def __init__(self) -> None:
        self.telling = Telling(COMMAND_CONFIG)
        self.clock = TurningClock()
        self.clock.advance(self.telling.now)
        self.disk: Deferred[None] | None = None
        self.running: list[Deferred[str]] = []
        self.bugs = 0
        self.notifying = Notifying(
            self.clock, self.telling.notices, self._in_thread, lambda: self.disk, self._bug, lambda: 5.0, "mx1"
        )
        self.notifying.apply(config(COMMAND_CONFIG).notify)
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.telling.now = self.clock.seconds()
        self.clock.turn()

    def _in_thread(self, _work: Callable[[], str]) -> Deferred[str]:
        self.running.append(Deferred())
        return self.running[-1]

    def _bug(self) -> None:
        self.bugs += 1


def test_nothing_is_sent_in_the_turn_in_which_it_happens() -> None:
    """The answer leaves first."""
    desk = Desk()
    desk.telling.lock()
    assert desk.running == []
    desk.clock.turn()
    assert len(desk.running) == 1


def test_nothing_is_sent_before_it_is_on_the_disk() -> None:
    """Who waits for that longer, the answer, goes first."""
    desk = Desk()
    desk.disk = Deferred()
    order: list[str] = []
    desk.disk.addCallback(lambda _: order.append("answer"))
    desk.telling.lock()
    desk.advance(1)
    assert desk.running == []
    disk, desk.disk = desk.disk, None
    disk.callback(None)
    assert (order, desk.running) == (["answer"], [])
    desk.clock.turn()
    assert len(desk.running) == 1


def test_what_failed_is_sent_when_its_time_has_come() -> None:
    """And nothing wakes up before."""
    desk = Desk()
    desk.telling.lock()
    desk.clock.turn()
    desk.running[0].errback(NotSentError("no"))
    desk.clock.turn()
    desk.advance(0.9)
    assert len(desk.running) == 1
    desk.advance(0.1)
    assert len(desk.running) == 2
    desk.running[1].callback("ok")
    desk.clock.turn()
    assert (len(desk.telling.notices), desk.clock.getDelayedCalls()) == (0, [])


def test_a_bug_in_a_channel_is_told_and_tried_again() -> None:
    """The notice is not lost for it."""
    desk = Desk()
    desk.telling.lock()
    desk.clock.turn()
    desk.running[0].errback(RuntimeError("oops"))
    desk.advance(1)
    assert (desk.bugs, len(desk.running)) == (1, 2)
    assert "oops" in desk.telling.notices.problems()[0]


def test_no_more_commands_run_at_once_than_four() -> None:
    """The next begins when one ends, and nobody looks in vain meanwhile."""
    desk = Desk()
    for number in range(7):
        desk.telling.lock(f"u{number}")
    desk.clock.turn()
    assert (len(desk.running), desk.clock.getDelayedCalls()) == (4, [])
    desk.running[0].callback("ok")
    desk.clock.turn()
    assert len(desk.running) == 5


def test_after_the_end_nothing_is_sent() -> None:
    """What waits is in the database."""
    desk = Desk()
    desk.telling.lock()
    desk.notifying.stop()
    desk.telling.lock(BERT)
    desk.advance(1000)
    assert desk.running == []
    assert len(desk.telling.notices.take_unsaved()) == 2


def test_a_digest_is_sent_by_itself_when_its_minute_is_over() -> None:
    """Nothing else has to happen for that."""
    desk = Desk()
    for number in range(12):
        desk.telling.lock(f"u{number}")
    for number in range(10):
        desk.clock.turn()
        desk.running[number].callback("ok")
    desk.advance(59.9)
    assert len(desk.running) == 10
    desk.advance(0.1)
    assert len(desk.running) == 11


def test_a_test_tells_what_each_channel_says() -> None:
    """Whether it was taken, and how long that took; nothing of it is kept."""
    desk = Desk()
    done = desk.notifying.test("root")
    desk.advance(2)
    desk.running[0].callback("status 0")
    assert result(done) == [
        {"channel": "command", "sent": True, "said": "status 0", "seconds": pytest.approx(2, abs=0.1)}
    ]
    failing = desk.notifying.test("root")
    desk.running[1].errback(NotSentError("it is broken"))
    assert result(failing)[0]["said"] == "it is broken"
    late = desk.notifying.test("root")
    desk.advance(8)
    assert result(late)[0]["said"] == "no answer within 8 s"
    assert len(desk.telling.notices) == 0


def test_what_takes_too_long_is_given_up() -> None:
    """And told as such; what comes in time is handed on, and no timer stays."""
    clock = TurningClock()
    ended: list[object] = []
    waiting: Deferred[str] = Deferred(ended.append)
    late = Deferred.fromCoroutine(within(clock, 10, lambda: waiting))
    clock.advance(9.9)
    assert ended == []
    clock.advance(0.1)
    assert ended == [waiting]
    failure: Any = result(late.addErrback(lambda failure: failure.value))
    assert (type(failure), str(failure)) == (NotSentError, "no answer within 10 s")
    assert result(Deferred.fromCoroutine(within(clock, 10, lambda: succeed("ok")))) == "ok"
    assert clock.getDelayedCalls() == []


def test_an_error_is_told_in_a_line() -> None:
    """Whatever it says."""
    assert said(ValueError("a\nb\r\n c")) == "a b c"
    assert said(TimeoutError()) == "TimeoutError"
    assert len(said(ValueError("x" * 10_000))) < 1000


def test_notices_have_their_own_ids() -> None:
    """By which a receiver knows one that comes twice."""
    desk = Desk()
    desk.telling.lock()
    desk.telling.lock()
    given: list[Notice] = desk.telling.due("command")
    assert [notice.fields["account"] for notice in given] == [ANNA, ANNA]
    assert len({notice.id for notice in given}) == 2


def test_the_end_of_the_daemon_waits_for_no_name() -> None:
    """Names are looked up, and in threads that the interpreter does not wait for."""
    reactor = SelectReactor()
    look_up_apart(reactor)
    found: list[str] = []
    daemonic: list[bool] = []

    def look(_: object) -> None:
        daemonic.extend(thread.daemon for thread in threading.enumerate() if "names" in thread.name)
        reactor.stop()

    done: Any = HostnameEndpoint(reactor, b"localhost", free_port(), timeout=20).connect(Factory())
    done.addErrback(lambda failure: found.append(failure.type.__name__))
    done.addBoth(look)
    reactor.run(installSignalHandlers=False)
    assert found == ["ConnectionRefusedError"]
    assert daemonic
    assert all(daemonic)
