"""The link to the store on a clock of ours: when calls are given up, when it is tried again, and who is told what."""

from __future__ import annotations

from itertools import pairwise

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from policyd.shared_calls import AwayError
from policyd.shared_link import ELSEWHERE, LONGEST_PAUSE, MAX_WAITING, RECENT, UNABLE, Link
from policyd.shared_news import BEAT, MAX_BEATS
from policyd.shared_replies import MAX_REPLY
from policyd.shared_store import Wire
from tests.turning import TurningClock

OK = b"+OK\r\n"
CALL = b"*2\r\n$7\r\nEVALSHA\r\n$1\r\nx\r\n"
PATIENCE = 0.1


class Transport(StringTransport):
    """A connection of whose end its protocol is told."""

    def abortConnection(self) -> None:  # noqa: N802 -- Twisted's name
        """Hang up."""
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionDone()))

    loseConnection = abortConnection  # noqa: N815 -- Twisted's name

    def makes(self, wire: Wire) -> None:
        """Connect."""
        self.protocol = wire
        wire.makeConnection(self)


class Far:
    """A link, and the store as the test plays it."""

    def __init__(self) -> None:
        self.clock = TurningClock()
        self.dials: list[Deferred[Wire]] = []
        self.told: list[str] = []
        self.link = Link(self.clock, self._dial, PATIENCE, lambda command: b"full " + command, "p")
        self.link.on_here = lambda: self.told.append("here")
        self.link.on_away = lambda why: self.told.append(f"away: {why}")
        self.link.on_wrong = lambda why: self.told.append(f"wrong: {why}")

    def _dial(self, _most: int = MAX_REPLY) -> Deferred[Wire]:
        self.dials.append(Deferred())
        return self.dials[-1]

    def accept(self) -> Transport:
        """Let the oldest caller in."""
        transport = Transport()  # type: ignore[no-untyped-call]  # Twisted's
        transport.makes(Wire())
        self.dials.pop(0).callback(transport.protocol)
        return transport

    def refuse(self) -> None:
        """Have the oldest caller turned away."""
        self.dials.pop(0).errback(AwayError("it refuses the connection"))

    def connect(self) -> Transport:
        """Start, and answer the probe."""
        self.link.start()
        transport = self.accept()
        assert b"EVAL" in sent(transport)
        transport.protocol.dataReceived(OK)
        assert self.link.here
        self.told.clear()
        return transport


def sent(transport: Transport) -> bytes:
    """Return what was sent since this was last asked."""
    data: bytes = transport.value()  # type: ignore[no-untyped-call]  # Twisted's
    transport.clear()  # type: ignore[no-untyped-call]  # Twisted's
    return data


def answers(*calls: Deferred[object]) -> list[object]:
    """Return what has come of calls: replies, what an AwayError says, or None for those that wait."""
    found: list[object] = []
    for call in calls:
        seen: list[object] = []
        call.addErrback(_said).addCallback(seen.append)
        found.append(seen[0] if seen else None)
    return found


def _said(failure: Failure) -> str:
    failure.trap(AwayError)
    return str(failure.value)


def test_it_is_here_when_a_probe_has_shown_so() -> None:
    """Before that calls fail at once."""
    far = Far()
    assert answers(far.link.call(CALL)) == ["not connected yet"]
    far.link.start()
    transport = far.accept()
    assert not far.link.here
    assert b"'SET', KEYS[1]" in sent(transport)
    assert answers(far.link.call(CALL)) == ["not connected yet"]
    transport.protocol.dataReceived(OK)
    assert (far.link.here, far.link.problem, far.told) == (True, "", ["here"])


def test_replies_belong_to_calls_in_order() -> None:
    """In whatever pieces they come."""
    far = Far()
    transport = far.connect()
    calls = [far.link.call(CALL) for _ in range(5)]
    assert sent(transport) == CALL * 5
    for piece in (b":0\r\n:0\r\n$1", b"\r\nx\r\n*1\r\n:7", b"\r\n:0\r\n"):
        transport.protocol.dataReceived(piece)
    assert answers(*calls) == [0, 0, b"x", [7], 0]


def test_a_call_is_given_up_in_time() -> None:
    """And those after it in theirs; its reply, when it comes, is nobody's."""
    far = Far()
    transport = far.connect()
    first = far.link.call(CALL)
    far.clock.advance(0.06)
    second = far.link.call(CALL)
    far.clock.advance(0.039)
    seen: list[str] = []
    first.addErrback(lambda failure: seen.append(str(failure.value)))
    assert seen == []
    far.clock.advance(0.001)
    assert seen == ["no answer within 100 ms"]
    assert far.told == ["away: no answer within 100 ms"]
    assert far.link.problem == "the store is away: no answer within 100 ms"
    transport.protocol.dataReceived(b":1\r\n:2\r\n")
    assert answers(second) == [2]


def test_a_store_is_not_away_because_this_process_was_held_up() -> None:
    """Replies that have come meanwhile are read before calls are given up; those that have not are given up then."""
    far = Far()
    transport = far.connect()
    first, second = far.link.call(CALL), far.link.call(CALL)
    far.clock.work(1.0)
    far.clock.callLater(0, transport.protocol.dataReceived, b":7\r\n")
    far.clock.turn()
    assert answers(first) == [7]
    far.clock.turn(2)
    assert answers(second) == ["no answer within 100 ms"]


def test_one_timer_watches_all_calls() -> None:
    """However many there are."""
    far = Far()
    transport = far.connect()
    calls = [far.link.call(CALL) for _ in range(100)]
    assert len(far.clock.getDelayedCalls()) == 1
    transport.protocol.dataReceived(b":0\r\n" * 100)
    assert answers(*calls) == [0] * 100
    far.clock.advance(PATIENCE)
    assert far.clock.getDelayedCalls() == []


def test_while_it_is_away_nothing_is_sent_but_probes() -> None:
    """With pauses between them that grow, and have a maximum."""
    far = Far()
    transport = far.connect()
    far.link.call(CALL).addErrback(lambda _: None)
    far.clock.advance(PATIENCE)
    sent(transport)
    times = []
    for _ in range(200):
        assert answers(far.link.call(CALL)) == ["no answer within 100 ms"]
        far.clock.advance(0.01)
        if data := sent(transport):
            assert data.count(b"EVAL") == 1
            times.append(far.clock.seconds())
    pauses = [round(later - earlier, 2) for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([0.5, 0.9], abs=0.11)
    assert far.told == ["away: no answer within 100 ms"]


def test_it_is_here_again_when_a_probe_is_answered() -> None:
    """Late replies before it are dropped, in order."""
    far = Far()
    transport = far.connect()
    far.link.call(CALL).addErrback(lambda _: None)
    far.clock.advance(PATIENCE)
    far.clock.advance(0.2)
    transport.protocol.dataReceived(b":5\r\n")
    assert not far.link.here
    transport.protocol.dataReceived(OK)
    assert far.link.here
    assert far.told[-1] == "here"
    call = far.link.call(CALL)
    transport.protocol.dataReceived(b":6\r\n")
    assert answers(call) == [6]


def test_a_silent_connection_is_replaced() -> None:
    """A peer that is gone without a word never says so."""
    far = Far()
    transport = far.connect()
    far.link.call(CALL).addErrback(lambda _: None)
    for _ in range(50):
        far.clock.advance(0.1)
    assert not transport.connected
    assert len(far.dials) == 1


@pytest.mark.parametrize("code", sorted(UNABLE))
def test_a_store_that_is_not_able_is_away(code: str) -> None:
    """For a moment; over a connection of its own where that may help."""
    far = Far()
    transport = far.connect()
    call = far.link.call(CALL)
    transport.protocol.dataReceived(f"-{code} so it is\r\n".encode())
    assert answers(call) == [f"it says {code} so it is"]
    assert far.told == [f"away: it says {code} so it is"]
    assert transport.connected == (code not in ELSEWHERE)
    far.clock.advance(0.2)
    if code in ELSEWHERE:
        transport = far.accept()
    transport.protocol.dataReceived(f"-{code} still\r\n".encode())
    assert far.link.problem == f"the store is away: it says {code} still"
    assert len(far.told) == 1


def test_a_store_that_has_no_room_for_the_connection_is_away() -> None:
    """That is nothing that is wrong with its data."""
    far = Far()
    transport = far.connect()
    call = far.link.call(CALL)
    transport.protocol.dataReceived(b"-ERR max number of clients reached\r\n")
    assert answers(call) == ["it says ERR max number of clients reached"]
    assert far.told == ["away: it says ERR max number of clients reached"]
    assert far.link.problem == "the store is away: it says ERR max number of clients reached"


def test_an_error_that_ends_as_a_sentence_does_not_end_twice() -> None:
    """What the store says is part of a sentence of ours."""
    far = Far()
    transport = far.connect()
    far.link.call(CALL).addErrback(lambda _: None)
    transport.protocol.dataReceived(b"-LOADING Redis is loading the dataset in memory.\r\n")
    assert far.link.problem == "the store is away: it says LOADING Redis is loading the dataset in memory"


def test_wrong_data_is_one_calls_trouble() -> None:
    """It is told once of each kind, and named for a while."""
    far = Far()
    transport = far.connect()
    calls = [far.link.call(CALL) for _ in range(3)]
    transport.protocol.dataReceived(b"-WRONGTYPE not that\r\n" * 2 + b":0\r\n")
    assert answers(*calls) == ["it says WRONGTYPE not that"] * 2 + [0]
    assert (far.link.here, far.told) == (True, ["wrong: it says WRONGTYPE not that"])
    assert far.link.problem == "the store has wrong data: it says WRONGTYPE not that"
    far.clock.advance(RECENT)
    assert far.link.problem == ""


def test_a_script_that_was_forgotten_is_brought_along() -> None:
    """Once; the call's time goes on."""
    far = Far()
    transport = far.connect()
    first, second = far.link.call(CALL), far.link.call(CALL)
    sent(transport)
    far.clock.advance(0.05)
    transport.protocol.dataReceived(b"-NOSCRIPT No matching script.\r\n" * 2)
    assert sent(transport) == (b"full " + CALL) * 2
    transport.protocol.dataReceived(b":0\r\n")
    assert answers(first) == [0]
    far.clock.advance(0.05)
    assert answers(second) == ["no answer within 100 ms"]


def test_a_script_that_is_forgotten_twice_is_given_up() -> None:
    """Nothing goes round in a circle."""
    far = Far()
    transport = far.connect()
    call = far.link.call(CALL)
    transport.protocol.dataReceived(b"-NOSCRIPT a\r\n")
    transport.protocol.dataReceived(b"-NOSCRIPT b\r\n")
    assert answers(call) == ["it says NOSCRIPT b"]


def test_a_lost_connection_fails_what_waits_for_it() -> None:
    """At once; and it is made anew."""
    far = Far()
    transport = far.connect()
    here: list[bool] = []
    call = far.link.call(CALL)
    call.addErrback(lambda _: here.append(far.link.here))
    transport.loseConnection()
    assert here == [False]
    assert far.told == ["away: the connection was lost"]
    far.clock.advance(0.2)
    far.refuse()
    assert far.link.problem == "the store is away: it refuses the connection"
    far.clock.advance(0.4)
    far.accept().protocol.dataReceived(OK)
    assert far.told == ["away: the connection was lost", "here"]


def test_it_is_tried_again_for_ever() -> None:
    """At least once in a while."""
    far = Far()
    far.link.start()
    for _ in range(100):
        far.refuse()
        far.clock.advance(LONGEST_PAUSE)
    assert far.told == ["away: it refuses the connection"]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400\r\n", b":0\r\n:0\r\n", b"-ERR max number of clients reached\r\n" * 2])
def test_a_store_that_says_what_nobody_asked_is_hung_up_on(data: bytes) -> None:
    """Nobody knows whose replies the next ones are."""
    far = Far()
    transport = far.connect()
    call = far.link.call(CALL)
    transport.protocol.dataReceived(data)
    assert not transport.connected
    assert not far.link.here
    assert answers(call) != [None]


def test_who_no_longer_waits_does_not_confuse_the_others() -> None:
    """A call that was cancelled keeps its place."""
    far = Far()
    transport = far.connect()
    first, second = far.link.call(CALL), far.link.call(CALL)
    first.addErrback(lambda _: None)
    first.cancel()
    transport.protocol.dataReceived(b":1\r\n:2\r\n")
    assert answers(second) == [2]


def test_only_so_many_calls_wait() -> None:
    """More fail at once."""
    far = Far()
    far.connect()
    for _ in range(MAX_WAITING):
        far.link.call(CALL).addErrback(lambda _: None)
    assert answers(far.link.call(CALL)) == answers(far.link.command("PING")) == ["too many calls wait"]
    far.clock.advance(PATIENCE)


def test_any_command_can_be_sent() -> None:
    """Texts, bytes and numbers; it is given up as calls are."""
    far = Far()
    transport = far.connect()
    call = far.link.command("HSET", b"k", "f", 5)
    assert sent(transport) == b"*4\r\n$4\r\nHSET\r\n$1\r\nk\r\n$1\r\nf\r\n$1\r\n5\r\n"
    far.clock.advance(PATIENCE)
    assert answers(call) == ["no answer within 100 ms"]


def test_an_end_is_an_end() -> None:
    """What waits fails, nobody is told, and nothing is left to be done."""
    far = Far()
    transport = far.connect()
    call = far.link.call(CALL)
    far.link.stop()
    assert answers(call, far.link.call(CALL)) == ["policyd is ending"] * 2
    assert not transport.connected
    far.clock.advance(10)
    assert (far.told, far.dials, far.clock.getDelayedCalls()) == ([], [], [])


class Listener(Far):
    """A link that listens to a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.news: list[tuple[bytes, bytes]] = []
        self.subscribed = 0
        self.link.subscribe(["a", "b"], lambda *message: self.news.append(message), self._on_subscribed)
        self.link.start()
        self.calls = self.accept()
        self.calls.protocol.dataReceived(OK)

    def _on_subscribed(self) -> None:
        self.subscribed += 1

    def listen(self) -> Transport:
        """Let the listening connection in."""
        transport = self.accept()
        assert sent(transport) == b"*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$1\r\nb\r\n"
        transport.protocol.dataReceived(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        assert self.subscribed == 0
        transport.protocol.dataReceived(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n")
        return transport


MESSAGE = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"


def test_news_are_heard() -> None:
    """From when it is told that they are."""
    listener = Listener()
    transport = listener.listen()
    assert listener.subscribed == 1
    transport.protocol.dataReceived(MESSAGE * 2)
    assert listener.news == [(b"a", b"hi")] * 2


def test_a_listening_connection_is_asked_for_signs_of_life() -> None:
    """One that gives none is replaced within 2 s, one that does is not."""
    listener = Listener()
    transport = listener.listen()
    for _ in range(10):
        listener.clock.advance(BEAT)
        assert sent(transport) == b"*1\r\n$4\r\nPING\r\n"
        transport.protocol.dataReceived(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    for _ in range(MAX_BEATS + 1):
        assert transport.connected
        listener.clock.advance(BEAT)
    assert not transport.connected
    listener.subscribed = 0
    listener.clock.advance(0.1)
    listener.dials = listener.dials[-1:]
    listener.listen()
    assert listener.subscribed == 1


def test_who_may_not_listen_tries_again() -> None:
    """With a pause."""
    listener = Listener()
    transport = listener.accept()
    transport.protocol.dataReceived(b"-NOPERM this user has no permissions\r\n")
    assert not transport.connected
    listener.clock.advance(0.099)
    assert listener.dials == []
    listener.clock.advance(0.001)
    assert len(listener.dials) == 1


def test_where_calls_go_anew_news_are_heard_anew() -> None:
    """The store may be elsewhere, and a connection to where it was stays open."""
    listener = Listener()
    transport = listener.listen()
    listener.calls.loseConnection()
    assert not transport.connected


def test_listening_ends_with_the_link() -> None:
    """Nothing is left to be done."""
    listener = Listener()
    transport = listener.listen()
    listener.link.stop()
    assert not transport.connected
    listener.clock.advance(10)
    assert (listener.dials, listener.clock.getDelayedCalls()) == ([], [])
