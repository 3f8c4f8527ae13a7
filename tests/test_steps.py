"""The service as a real reactor turns, with what is compiled: what comes in, and what goes out, step by step."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

from policyd.limits import UNTIL_UNLOCKED, Rules
from policyd.policy import Policy
from policyd.prompt import PromptReactor, make_prompt
from policyd.server import PolicyFactory, PolicyProtocol
from policyd.transactions import Connection
from policyd.verdict import PASS, Verdict
from policyd.wire import Request
from tests.compiling import require_compiled
from tests.daemon import request

ANNA = request()
BERT = request(sasl_username="bert@example.com", instance="b")
BROKEN = request(sasl_username="broken", instance="c")
LOCKED = b"action=REJECT 5.7.1 Account bert@example.com is locked: phished\n\n"
TURNS = 200


class BrokenPolicy(Policy):
    """A policy that cannot decide on one account."""

    def decide(self, request: Request, connection: Connection, now: float) -> Verdict:
        """Raise for it."""
        if request.sasl_username == b"broken":
            raise OSError("no such rule")
        return super().decide(request, connection, now)


class Noting(PolicyProtocol):
    """Notes what it is given."""

    given: list[object]

    def dataReceived(self, data: bytes) -> None:
        """Note the bytes."""
        self.given.append(data)
        super().dataReceived(data)

    def finish(self, left: Verdict | Exception | int) -> None:
        """Note what is left."""
        self.given.append(left)
        super().finish(left)


class Factory(PolicyFactory):
    """Has all protocols note what they are given in one list."""

    given: list[object]

    def buildProtocol(self, addr: IAddress | None) -> PolicyProtocol:
        """Return a protocol that notes."""
        protocol = super().buildProtocol(addr)
        protocol.__class__ = Noting
        assert isinstance(protocol, Noting)
        protocol.given = self.given
        return protocol


class Service:
    """A policy service in which bert@example.com is locked, and a connection that has asked about anna once."""

    def __init__(self, path: str) -> None:
        self.reactor = PromptReactor()
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.policy = BrokenPolicy(Rules(), self.report, lambda now: now)
        self.policy.locks.by_hand("bert@example.com", "phished", UNTIL_UNLOCKED, "root", 0.0)
        self.events.clear()
        self.disk: Deferred[None] | None = None
        self.factory = Factory(self.policy, Clock(), self.report, lambda: self.disk)
        self.given: list[object] = []
        self.factory.given = self.given
        self.port = self.reactor.listenUNIX(path, self.factory)
        make_prompt(self.port)
        self.client = socket.socket(socket.AF_UNIX)
        self.client.connect(path)
        self.client.setblocking(False)
        assert self.ask(ANNA) == PASS.reply
        assert self.given == [ANNA]
        assert self.expects
        self.given.clear()

    def report(self, event: str, fields: Mapping[str, object]) -> None:
        """Note what is logged."""
        self.events.append((event, fields))

    @property
    def expects(self) -> bool:
        """Whether the next request is answered in one step."""
        return bool(self.reactor.steps)

    def until(self, done: Callable[[], object]) -> None:
        """Let the reactor turn until something has happened."""
        for _ in range(TURNS):
            if done():
                return
            self.reactor.iterate(0.01)
        raise AssertionError("it does not happen")

    def receive(self) -> bytes:
        """Return what has come, once there is something."""
        found = b""

        def more() -> bytes:
            nonlocal found
            with contextlib.suppress(BlockingIOError):
                found += self.client.recv(2**20)
            return found

        self.until(more)
        return found

    def ask(self, data: bytes) -> bytes:
        """Send, and return what comes."""
        self.client.sendall(data)
        return self.receive()

    def close(self) -> None:
        """End it all."""
        self.client.close()
        self.port.stopListening()
        self.until(lambda: not self.factory.connections)
        self.reactor.removeAll()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service."""
    require_compiled()
    found = Service(str(tmp_path / "socket"))
    yield found
    found.close()


def test_a_request_like_the_first_does_not_meet_the_protocol(service: Service) -> None:
    """It is answered, and tallied, all the same."""
    assert service.ask(ANNA) == PASS.reply
    assert service.given == []
    assert service.policy.tally.requests["RCPT"] == 2


def test_another_verdict_is_sent_by_the_protocol(service: Service) -> None:
    """And the next request is answered in one step again."""
    assert service.ask(BERT) == LOCKED
    (left,) = service.given
    assert isinstance(left, Verdict)
    assert service.ask(ANNA) == PASS.reply
    assert len(service.given) == 1


def test_a_bug_is_told_and_stops_no_mail(service: Service) -> None:
    """With its traceback."""
    assert service.ask(BROKEN) == PASS.reply
    event, fields = service.events[-1]
    assert event == "internal-error"
    assert "no such rule" in str(fields["traceback"])
    assert "in decide" in str(fields["traceback"])
    assert service.policy.tally.internal_errors == 1


def test_a_lock_is_on_the_disk_before_it_is_announced(service: Service) -> None:
    """Nothing is sent, and nothing more received, until then."""
    service.disk = Deferred()
    service.client.sendall(BERT)
    service.until(lambda: service.given)
    service.client.sendall(ANNA)
    for _ in range(3):
        service.reactor.iterate(0.01)
    with pytest.raises(BlockingIOError):
        service.client.recv(1)
    disk, service.disk = service.disk, None
    disk.callback(None)
    assert service.receive() == LOCKED
    assert service.receive() == PASS.reply


@pytest.mark.parametrize("place", range(1, len(ANNA), 111))
def test_what_has_begun_ends_as_it_began(service: Service, place: int) -> None:
    """Its rest is no request, whatever it looks like; then requests are expected again."""
    service.client.sendall(ANNA[:place])
    service.until(lambda: service.given)
    assert not service.expects
    service.client.sendall(ANNA[place:])
    assert service.receive() == PASS.reply
    assert service.expects
    service.client.sendall(ANNA[:place])
    service.until(lambda: len(service.given) == 3)
    service.client.sendall(ANNA)
    service.until(lambda: len(service.given) == 4)
    assert service.given[-1] == ANNA


def test_replies_that_are_not_taken_at_once_keep_their_order(service: Service) -> None:
    """A client that does not read gets all of them, once each, when it does."""
    number, asked = 0, 0
    while service.expects:
        with_reply = (ANNA, BERT)[number % 2]
        try:
            service.client.sendall(with_reply)
        except BlockingIOError:
            break
        number += 1
        service.reactor.iterate(0)
    assert not service.expects, "the socket takes more than was asked"
    service.client.setblocking(True)
    service.client.settimeout(0)
    for asked in range(10):
        service.client.sendall((ANNA, BERT)[(number + asked) % 2])
        service.reactor.iterate(0)
    number += asked + 1
    replies, length = b"", sum(len((PASS.reply, LOCKED)[place % 2]) for place in range(number))
    while len(replies) < length:
        replies += service.receive()
    assert replies == b"".join((PASS.reply, LOCKED)[place % 2] for place in range(number))
    assert [left for left in service.given if isinstance(left, int)]
